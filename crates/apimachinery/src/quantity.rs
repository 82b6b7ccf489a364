//! Amounts of resources: `500m`, `1.5Gi`, `1e3`.
//!
//! A [`Quantity`] is exact down to one billionth, as upstream's is; what is smaller is rounded away from zero, and what
//! exceeds the largest representable amount is taken for that amount.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use compact_str::{CompactString, ToCompactString, format_compact};

/// Upstream's messages for what is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How an amount is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// An exact amount with the way in which it is to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    /// Billionths.
    nano: i128,
    pub format: Format,
}

const NANO: i128 = 1_000_000_000;
/// More digits than that do not fit an `i64`.
const MAX_I64_DIGITS: usize = 18;
/// Upstream caps binary amounts there.
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;
const DECIMAL_SUFFIXES: [(i32, &str); 10] =
    [(-9, "n"), (-6, "u"), (-3, "m"), (0, ""), (3, "k"), (6, "M"), (9, "G"), (12, "T"), (15, "P"), (18, "E")];
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// The parts of the text of a quantity.
struct Parts<'a> {
    negative: bool,
    /// Without leading zeros, unless it is zero.
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

/// What a suffix multiplies by: a power of ten or of two.
#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

/// The text that upstream would write for it: mostly the canonical form, but text that is close enough stays as it is.
///
/// # Errors
/// [`QuantityError`] for what is no quantity.
pub fn canonical(text: &str) -> Result<CompactString, QuantityError> {
    let text = text.trim();
    let (quantity, keep) = parse(text)?;
    Ok(if keep { text.into() } else { quantity.to_compact_string() })
}

fn parse(text: &str) -> Result<(Quantity, bool), QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    if text == "0" {
        return Ok((Quantity::default(), true));
    }
    let parts = split(text)?;
    let (scale, mut format) = interpret(parts.suffix).ok_or(QuantityError::Suffix)?;
    let keep = keeps_text(&parts, scale);
    let mut nano = magnitude(&parts, scale);
    if format == Format::BinarySi {
        nano = nano.min(MAX_BINARY);
        if 0 < nano && nano < NANO {
            format = Format::DecimalSi;
        }
    }
    Ok((Quantity { nano: if parts.negative { -nano } else { nano }, format }, keep))
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let rest = unsigned.trim_start_matches('0');
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = rest.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let mut end = letters;
    if matches!(rest.as_bytes().get(end), Some(b'-' | b'+')) {
        end += 1;
    }
    end += digits(rest.get(end..).unwrap_or_default());
    if end < rest.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole: if whole.is_empty() { "0" } else { whole }, fraction, suffix: rest })
}

fn interpret(suffix: &str) -> Option<(Scale, Format)> {
    if let Some((power, _)) = DECIMAL_SUFFIXES.iter().find(|(_, s)| *s == suffix) {
        return Some((Scale::Ten(*power), Format::DecimalSi));
    }
    if let Some(i) = BINARY_SUFFIXES.iter().position(|s| *s == suffix) {
        return Some((Scale::Two(u32::try_from(i).ok()? * 10), Format::BinarySi));
    }
    let power = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some((Scale::Ten(power), Format::DecimalExponent))
}

/// Upstream's shortcut: small numbers that look canonical are written back as they came.
fn keeps_text(parts: &Parts<'_>, scale: Scale) -> bool {
    let digits = parts.whole.len() + parts.fraction.len();
    match scale {
        Scale::Ten(power) => {
            let Some(scale) = i32::try_from(parts.fraction.len()).ok().and_then(|n| power.checked_sub(n)) else {
                return false;
            };
            let shifted = || parts.whole.bytes().chain(parts.fraction.bytes());
            digits <= MAX_I64_DIGITS
                && scale >= -9
                && scale % 3 == 0
                && !(digits >= 3 && shifted().skip(digits - 3).all(|b| b == b'0'))
                && shifted().next() != Some(b'0')
        }
        Scale::Two(power) => {
            // 15 digits, less what the multiplication needs: three for every ten bits, rounded down.
            let room = 14usize.checked_sub(power as usize * 3 / 10).is_some_and(|room| parts.whole.len() <= room);
            let last = parts.whole.parse::<i64>().unwrap_or(0);
            room && parts.fraction.is_empty() && last & 7 != 0
        }
    }
}

/// The amount without its sign, in billionths, rounded up.
fn magnitude(parts: &Parts<'_>, scale: Scale) -> i128 {
    // So many digits that more would only change what is rounded away or capped anyway.
    const MAX_WHOLE: usize = 40;
    const MAX_FRACTION: usize = 40;
    if parts.whole.len() > MAX_WHOLE {
        return i128::MAX;
    }
    let (fraction, cut) = parts.fraction.split_at(parts.fraction.len().min(MAX_FRACTION));
    let mut number = BigUint::default();
    for digit in parts.whole.bytes().chain(fraction.bytes()) {
        number.multiply_add(10, u32::from(digit - b'0'));
    }
    let mut inexact = cut.bytes().any(|b| b != b'0');
    if number.is_zero() {
        return i128::from(inexact);
    }
    let fraction_digits = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let power = match scale {
        Scale::Ten(power) => power.saturating_add(9).saturating_sub(fraction_digits),
        Scale::Two(power) => {
            for _ in 0..power {
                number.multiply_add(2, 0);
            }
            9 - fraction_digits
        }
    };
    if power > 40 {
        return i128::MAX;
    }
    for _ in 0..power {
        number.multiply_add(10, 0);
    }
    // The number has at most 100 digits: beyond that only the fact that it is not zero is left.
    for _ in 0..power.min(0).unsigned_abs().min(130) {
        inexact |= number.divide(10) != 0;
    }
    number.to_i128().map_or(i128::MAX, |n| n.saturating_add(i128::from(inexact)))
}

/// As much arithmetic on large numbers as parsing needs; least significant limb first.
#[derive(Default)]
struct BigUint(Vec<u32>);

impl BigUint {
    fn is_zero(&self) -> bool {
        self.0.iter().all(|limb| *limb == 0)
    }

    fn multiply_add(&mut self, by: u32, add: u32) {
        let mut carry = u64::from(add);
        for limb in &mut self.0 {
            let wide = u64::from(*limb) * u64::from(by) + carry;
            *limb = (wide & u64::from(u32::MAX)) as u32;
            carry = wide >> 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    /// Divides, and returns the remainder.
    fn divide(&mut self, by: u32) -> u32 {
        let mut rest = 0u64;
        for limb in self.0.iter_mut().rev() {
            let wide = (rest << 32) | u64::from(*limb);
            *limb = (wide / u64::from(by)) as u32;
            rest = wide % u64::from(by);
        }
        rest as u32
    }

    fn to_i128(&self) -> Option<i128> {
        let mut value = 0i128;
        for limb in self.0.iter().rev() {
            value = value.checked_mul(1 << 32)?.checked_add(i128::from(*limb))?;
        }
        Some(value)
    }
}

// === impl Quantity ===

impl Quantity {
    /// A whole number.
    #[must_use]
    pub fn new(value: i64, format: Format) -> Self {
        Quantity { nano: i128::from(value) * NANO, format }
    }

    #[must_use]
    pub fn from_milli(milli: i64, format: Format) -> Self {
        Quantity { nano: i128::from(milli) * (NANO / 1000), format }
    }

    /// The next whole number that is not smaller in magnitude, within the bounds of `i64`.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// The same in thousandths.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let up = divide_up(self.nano, unit);
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }

    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Without a fraction.
    #[must_use]
    pub fn is_integer(&self) -> bool {
        self.nano % NANO == 0
    }

    #[must_use]
    pub fn as_f64(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "that is what asking for a float means")]
        let nano = self.nano as f64;
        nano / 1e9
    }

    /// Rounded away from zero to a multiple of 10^`power`, where `power` is between -9 and 0.
    #[must_use]
    pub fn round_up(self, power: i32) -> Self {
        let unit = 10i128.pow(u32::try_from(power.clamp(-9, 0) + 9).unwrap_or(0));
        Quantity { nano: divide_up(self.nano, unit).saturating_mul(unit), ..self }
    }

    #[must_use]
    pub fn saturating_add(self, other: Quantity) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nano: self.nano.saturating_add(other.nano), format }
    }

    #[must_use]
    pub fn saturating_sub(self, other: Quantity) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nano: self.nano.saturating_sub(other.nano), format }
    }

    fn fmt_decimal(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut mantissa, mut power) = (self.nano, -9);
        while mantissa % 1000 == 0 && power < 18 {
            mantissa /= 1000;
            power += 3;
        }
        match self.format {
            Format::DecimalExponent if power == 0 => write!(f, "{mantissa}"),
            Format::DecimalExponent => write!(f, "{mantissa}e{power}"),
            Format::DecimalSi | Format::BinarySi => {
                let suffix = DECIMAL_SUFFIXES.iter().find(|(p, _)| *p == power).map_or("", |(_, suffix)| suffix);
                write!(f, "{mantissa}{suffix}")
            }
        }
    }

    fn fmt_binary(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut mantissa, mut index) = (divide_up(self.nano, NANO), 0);
        while mantissa % 1024 == 0 && index + 1 < BINARY_SUFFIXES.len() {
            mantissa /= 1024;
            index += 1;
        }
        write!(f, "{mantissa}{}", BINARY_SUFFIXES[index])
    }
}

fn divide_up(n: i128, unit: i128) -> i128 {
    let whole = n / unit;
    if n % unit == 0 { whole } else { whole + n.signum() }
}

/// The canonical form.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        // Binary amounts below 1024 are written in full: that avoids rounding.
        if self.format == Format::BinarySi && self.nano.abs() >= 1024 * NANO {
            return self.fmt_binary(f);
        }
        self.fmt_decimal(f)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text).map(|(quantity, _)| quantity)
    }
}

/// By amount; how it is written makes no difference.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl From<Quantity> for crate::Value {
    fn from(quantity: Quantity) -> Self {
        crate::Value::String(format_compact!("{quantity}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_canonical_as_upstream_writes_it() {
        for (text, want) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("64Mi", "64Mi"),
            ("100", "100"),
            ("1000", "1k"),
            ("100000", "100k"),
            ("1e3", "1e3"),
            ("1000e3", "1e6"),
            ("0.1Ki", "102400m"),
            ("0.0001Ki", "102400u"),
            ("1", "1"),
            ("-1", "-1"),
            ("-0.5", "-500m"),
            ("0.0000000001", "1n"),
            ("12.345678901234567890", "12345678902n"),
            ("8Ei", "9223372036854775807"),
            ("1.500", "1.500"), // upstream's shortcut
            (" 5 ", "5"),
            ("00", "0"),
            ("1023Ki", "1023Ki"),
            ("512", "512"),
            ("0Mi", "0"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_says_so_in_upstreams_words() {
        assert_eq!(canonical(""), Err(QuantityError::Format));
        assert_eq!(canonical("abc"), Err(QuantityError::Format));
        assert_eq!(canonical("1 Gi"), Err(QuantityError::Format));
        assert_eq!(canonical("1GiB"), Err(QuantityError::Format));
        assert_eq!(canonical("1KM"), Err(QuantityError::Suffix));
        assert_eq!(canonical("1e"), Err(QuantityError::Suffix));
        assert_eq!(canonical("ü"), Err(QuantityError::Format));
    }

    #[test]
    fn amounts_compare_and_add_exactly() {
        let q = |s: &str| s.parse::<Quantity>().unwrap();
        assert_eq!(q("1Gi"), q("1073741824"));
        assert!(q("1G") < q("1Gi"));
        assert_eq!(q("0.1").saturating_add(q("200m")).to_string(), "300m");
        assert_eq!(q("1Gi").saturating_sub(q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("1001m").value(), 2);
        assert_eq!(q("-1001m").value(), -2);
        assert_eq!(q("1500m").milli_value(), 1500);
        assert_eq!(q("1.0001").round_up(-3).to_string(), "1001m");
        assert_eq!(q(&"9".repeat(500)).value(), i64::MAX);
    }
}
