//! Times as the API writes them: RFC 3339 in UTC, to the second (`Time`) or with six digits of fraction (`MicroTime`).
//!
//! Parsing accepts what Go's `time.Parse` accepts for the same layout and refuses the rest in its words.

use compact_str::{CompactString, format_compact};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

const LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const MICRO_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";

/// A text that is no time of that layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    #[error("parsing time {} as {}: cannot parse {} as {}", quoted(.value), quoted(.layout), quoted(.rest), quoted(.element))]
    Mismatch { layout: &'static str, value: String, rest: String, element: &'static str },
    #[error("parsing time {}: {what} out of range", quoted(.value))]
    Range { value: String, what: &'static str },
    #[error("parsing time {}: extra text: {}", quoted(.value), quoted(.rest))]
    Extra { value: String, rest: String },
}

/// A `Time` in its canonical form.
///
/// # Errors
/// [`TimeError`] as Go words it.
pub fn normalize(text: &str) -> Result<CompactString, TimeError> {
    parse(text).map(format)
}

/// A `MicroTime` in its canonical form.
///
/// # Errors
/// [`TimeError`] as Go words it.
pub fn normalize_micro(text: &str) -> Result<CompactString, TimeError> {
    parse_micro(text).map(format_micro)
}

/// A `Time` of any offset, with or without a fraction.
///
/// # Errors
/// [`TimeError`] as Go words it.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    Parser { layout: LAYOUT, value: text, rest: text }.parse(false)
}

/// A `MicroTime` of any offset.
///
/// # Errors
/// [`TimeError`] as Go words it.
pub fn parse_micro(text: &str) -> Result<Timestamp, TimeError> {
    Parser { layout: MICRO_LAYOUT, value: text, rest: text }.parse(true)
}

/// `2026-01-02T15:04:05Z`
#[must_use]
pub fn format(time: Timestamp) -> CompactString {
    let t = Offset::UTC.to_datetime(time);
    format_compact!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

/// `2026-01-02T15:04:05.000000Z`
#[must_use]
pub fn format_micro(time: Timestamp) -> CompactString {
    let t = Offset::UTC.to_datetime(time);
    format_compact!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.subsec_nanosecond() / 1000
    )
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => c.to_string().bytes().for_each(|b| out.push_str(&format!("\\x{b:02x}"))),
        }
    }
    out.push('"');
    out
}

struct Parser<'a> {
    layout: &'static str,
    value: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    fn parse(mut self, micro: bool) -> Result<Timestamp, TimeError> {
        let year = self.digits(4, 4, "2006")?;
        self.literal("-")?;
        let month = self.digits(2, 2, "01")?;
        self.in_range(1, month, 12, "month")?;
        self.literal("-")?;
        let day = self.digits(2, 2, "02")?;
        self.literal("T")?;
        let hour = self.digits(1, 2, "15")?;
        self.in_range(0, hour, 23, "hour")?;
        self.literal(":")?;
        let minute = self.digits(2, 2, "04")?;
        self.in_range(0, minute, 59, "minute")?;
        self.literal(":")?;
        let second = self.digits(2, 2, "05")?;
        self.in_range(0, second, 59, "second")?;
        let nano = if micro { self.micros()? } else { self.fraction() };
        let offset = self.zone()?;
        if !self.rest.is_empty() {
            return Err(TimeError::Extra { value: self.value.into(), rest: self.rest.into() });
        }
        let out_of_range = |what| TimeError::Range { value: self.value.into(), what };
        let small = |n: i32| i8::try_from(n).unwrap_or(i8::MAX);
        let year = i16::try_from(year).map_err(|_| out_of_range("year"))?;
        let civil = DateTime::new(year, small(month), small(day), small(hour), small(minute), small(second), nano)
            .map_err(|_| out_of_range("day"))?;
        let at_utc = Offset::UTC.to_timestamp(civil).map_err(|_| out_of_range("year"))?;
        let time = at_utc.checked_sub(jiff::SignedDuration::from_secs(offset)).map_err(|_| out_of_range("year"))?;
        // The year has four digits when it is written, too.
        let year = Offset::UTC.to_datetime(time).year();
        if (0..=9999).contains(&year) { Ok(time) } else { Err(out_of_range("year")) }
    }

    fn mismatch(&self, element: &'static str) -> TimeError {
        TimeError::Mismatch { layout: self.layout, value: self.value.into(), rest: self.rest.into(), element }
    }

    fn in_range(&self, min: i32, n: i32, max: i32, what: &'static str) -> Result<(), TimeError> {
        if (min..=max).contains(&n) { Ok(()) } else { Err(TimeError::Range { value: self.value.into(), what }) }
    }

    fn literal(&mut self, text: &'static str) -> Result<(), TimeError> {
        self.rest = self.rest.strip_prefix(text).ok_or_else(|| self.mismatch(text))?;
        Ok(())
    }

    /// A number of at least and at most so many digits.
    fn digits(&mut self, min: usize, max: usize, element: &'static str) -> Result<i32, TimeError> {
        let n = self.rest.bytes().take(max).take_while(u8::is_ascii_digit).count();
        if n < min {
            return Err(self.mismatch(element));
        }
        let (number, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(number.bytes().fold(0, |n, digit| n * 10 + i32::from(digit - b'0')))
    }

    /// A fraction that the layout does not ask for: nanoseconds, zero if there is none.
    fn fraction(&mut self) -> i32 {
        let Some(after) = self.rest.strip_prefix(['.', ',']) else { return 0 };
        let n = after.bytes().take_while(u8::is_ascii_digit).count();
        if n == 0 {
            return 0;
        }
        self.rest = &after[n..];
        after.bytes().take(n).chain(std::iter::repeat(b'0')).take(9).fold(0, |n, d| n * 10 + i32::from(d - b'0'))
    }

    /// Exactly six digits behind a point.
    fn micros(&mut self) -> Result<i32, TimeError> {
        let digits = self.rest.strip_prefix(['.', ',']).and_then(|after| after.get(..6));
        let Some(digits) = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit())) else {
            return Err(self.mismatch(".000000"));
        };
        let micros = digits.bytes().fold(0, |n, d| n * 10 + i32::from(d - b'0'));
        self.rest = &self.rest[7..];
        Ok(micros * 1000)
    }

    /// The offset in seconds.
    fn zone(&mut self) -> Result<i64, TimeError> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let bytes = self.rest.as_bytes();
        let digit = |i: usize| bytes.get(i).filter(|b| b.is_ascii_digit()).map(|b| i64::from(b - b'0'));
        let sign = match bytes.first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(self.mismatch("Z07:00")),
        };
        let (Some(h1), Some(h2), Some(b':'), Some(m1), Some(m2)) =
            (digit(1), digit(2), bytes.get(3), digit(4), digit(5))
        else {
            return Err(self.mismatch("Z07:00"));
        };
        let (hours, minutes) = (h1 * 10 + h2, m1 * 10 + m2);
        let out_of_range = |what| TimeError::Range { value: self.value.into(), what };
        if hours > 24 {
            return Err(out_of_range("time zone offset hour"));
        }
        if minutes > 59 {
            return Err(out_of_range("time zone offset minute"));
        }
        self.rest = &self.rest[6..];
        Ok(sign * (hours * 3600 + minutes * 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_utc_to_the_second() {
        for (text, want) in [
            ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
            ("2020-01-01T02:30:00+02:00", "2020-01-01T00:30:00Z"),
            ("2020-01-01T00:00:10.999Z", "2020-01-01T00:00:10Z"),
            ("2019-12-31T23:00:00-01:30", "2020-01-01T00:30:00Z"),
        ] {
            assert_eq!(normalize(text).as_deref(), Ok(want));
        }
        assert_eq!(normalize_micro("2020-01-01T02:00:00.000001+02:00").unwrap(), "2020-01-01T00:00:00.000001Z");
    }

    #[test]
    fn what_is_no_time_is_refused_in_gos_words() {
        let error = |text| normalize(text).unwrap_err().to_string();
        assert_eq!(
            error("yesterday"),
            r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#
        );
        assert_eq!(error("2020-13-01T00:00:00Z"), r#"parsing time "2020-13-01T00:00:00Z": month out of range"#);
        assert_eq!(error("2020-02-30T00:00:00Z"), r#"parsing time "2020-02-30T00:00:00Z": day out of range"#);
        assert_eq!(
            error("2020-01-01"),
            r#"parsing time "2020-01-01" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#
        );
        assert_eq!(error("2020-01-01T00:00:00Zx"), r#"parsing time "2020-01-01T00:00:00Zx": extra text: "x""#);
        assert_eq!(
            normalize_micro("2020-01-01T00:00:10.5Z").unwrap_err().to_string(),
            r#"parsing time "2020-01-01T00:00:10.5Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse ".5Z" as ".000000""#
        );
    }
}
