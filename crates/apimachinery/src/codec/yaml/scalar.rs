//! What a plain scalar means in YAML 1.1, as Go's yaml.v2 has it.

use crate::Value;

/// The value of an unquoted scalar.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return text.into();
    }
    let plain = text.replace('_', "");
    int(&plain).or_else(|| float(&plain)).unwrap_or_else(|| text.into())
}

/// Go's `ParseInt` with base 0: `0x1F`, `0o17`, `017`, `0b11`.
fn int(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    let number = if negative { -magnitude } else { magnitude };
    match i64::try_from(number) {
        Ok(n) => Some(Value::Int(n)),
        #[expect(clippy::cast_precision_loss, reason = "beyond i64, JSON numbers are floats to Kubernetes")]
        Err(_) => u64::try_from(number).ok().map(|n| Value::Float(n as f64)),
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`; without a fraction JSON has it as an integer.
fn float(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let mantissa_ok = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && all_digits(fraction),
        Some((whole, fraction)) => all_digits(whole) && all_digits(fraction),
        None => !mantissa.is_empty() && all_digits(mantissa),
    };
    let exponent_ok = exponent.is_none_or(|e| {
        let digits = e.strip_prefix(['-', '+']).unwrap_or(e);
        !digits.is_empty() && all_digits(digits)
    });
    if !mantissa_ok || !exponent_ok {
        return None;
    }
    let number: f64 = text.parse().ok().filter(|n: &f64| n.is_finite())?;
    #[expect(clippy::cast_possible_truncation, reason = "has no fraction and is small")]
    Some(if number.fract() == 0.0 && number.abs() < 1e15 { Value::Int(number as i64) } else { Value::Float(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_those_of_yaml_1_1() {
        for (text, want) in [
            ("yes", Value::Bool(true)),
            ("Off", Value::Bool(false)),
            ("yEs", "yEs".into()),
            ("~", Value::Null),
            ("12", 12.into()),
            ("-0x1F", (-31).into()),
            ("0755", 493.into()),
            ("0o17", 15.into()),
            ("089", 89.into()),
            ("1_000", 1000.into()),
            ("1.5", 1.5.into()),
            ("1.0", 1.into()),
            ("1e3", 1000.into()),
            (".5", 0.5.into()),
            ("1.2.3", "1.2.3".into()),
            ("-", "-".into()),
            ("2020-01-01", "2020-01-01".into()),
            ("18446744073709551615", 18_446_744_073_709_551_615.0.into()),
            ("10.0.0.1", "10.0.0.1".into()),
        ] {
            assert_eq!(resolve(text), want, "{text}");
        }
    }
}
