//! Amounts of resources: upstream's quantities, to the precision that scheduling needs.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Billionths of one unit (core, byte, piece): quantities are exact to nine places after the point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i128);

const NANOS: i128 = 1_000_000_000;

impl Amount {
    pub const ZERO: Self = Self(0);

    /// Reads `1.5`, `100m`, `2Gi`, `1e3`. What is not a quantity is nothing: the API server has checked it.
    #[must_use]
    pub fn of(quantity: &Quantity) -> Self {
        Self::parse(&quantity.0).unwrap_or_default()
    }

    #[must_use]
    pub const fn whole(units: i64) -> Self {
        Self(units as i128 * NANOS)
    }

    #[must_use]
    pub const fn milli(thousandths: i64) -> Self {
        Self(thousandths as i128 * (NANOS / 1000))
    }

    /// Whole units, rounded up, as upstream's `Value`.
    #[must_use]
    pub fn value(self) -> i64 {
        ceil(self.0, NANOS)
    }

    /// Thousandths, rounded up, as upstream's `MilliValue`.
    #[must_use]
    pub fn milli_value(self) -> i64 {
        ceil(self.0, NANOS / 1000)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits_end =
            text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let (negative, number) = match number.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        // Numerator over a power of ten, so that nothing is lost before the suffix is applied.
        let mut value: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        value = value.checked_mul(NANOS)?;
        let mut place = NANOS / 10;
        for digit in fraction.bytes() {
            if !digit.is_ascii_digit() {
                return None;
            }
            value = value.checked_add(i128::from(digit - b'0') * place)?;
            place /= 10;
        }
        let value = apply_suffix(value, suffix)?;
        Some(Self(if negative { -value } else { value }))
    }
}

fn apply_suffix(nanos: i128, suffix: &str) -> Option<i128> {
    let binary = |power: u32| nanos.checked_mul(1i128 << (10 * power));
    let decimal = |exponent: i32| {
        let factor = 10i128.checked_pow(exponent.unsigned_abs())?;
        if exponent >= 0 { nanos.checked_mul(factor) } else { Some(ceil_wide(nanos, factor)) }
    };
    match suffix {
        "" => Some(nanos),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => decimal(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    }
}

fn ceil(nanos: i128, unit: i128) -> i64 {
    i64::try_from(ceil_wide(nanos, unit)).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

fn ceil_wide(value: i128, unit: i128) -> i128 {
    value.div_euclid(unit) + i128::from(value.rem_euclid(unit) != 0)
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly_and_rounded_up() {
        for (text, value, milli) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("1.5", 2, 1500),
            ("0.0001", 1, 1),
            ("2Gi", 2 << 30, 2_147_483_648_000),
            ("1.5Ki", 1536, 1_536_000),
            ("1e3", 1000, 1_000_000),
            ("1E", 1_000_000_000_000_000_000, i64::MAX),
            ("-1", -1, -1000),
            ("5k", 5000, 5_000_000),
            ("100n", 1, 1),
            ("nonsense", 0, 0),
            ("", 0, 0),
        ] {
            let amount = Amount::of(&Quantity(text.into()));
            assert_eq!((amount.value(), amount.milli_value()), (value, milli), "{text}");
        }
    }
}
