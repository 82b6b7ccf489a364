//! Timestamps and durations.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use super::Error;
use super::value::Val;

const UNITS: [(&str, i128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

pub(super) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    apimachinery::time::parse(text).ok()
}

/// Go's notation: `1h30m`, `-1.5s`.
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut nanos: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(*unit)?)?;
        let mut scale = *unit;
        for digit in fraction.bytes() {
            scale /= 10;
            nanos += i128::from(digit.checked_sub(b'0')?) * scale;
        }
        rest = after;
    }
    i64::try_from(if negative { -nanos } else { nanos }).ok()
}

pub(super) fn timestamp_text(at: Timestamp) -> String {
    at.to_string()
}

/// Seconds, as CEL's `string(duration)` has them.
pub(super) fn duration_text(nanos: i64) -> String {
    let (sign, n) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (seconds, fraction) = (n / 1_000_000_000, n % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{fraction:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

pub(super) fn encode_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// `timestamp(x)`, `duration(x)`.
pub(super) fn convert<'a>(name: &str, v: &Val<'a>) -> Result<Val<'a>, Error> {
    match (name, v) {
        ("timestamp", Val::Timestamp(_)) | ("duration", Val::Duration(_)) => Ok(v.clone()),
        ("timestamp", Val::String(s)) => {
            apimachinery::time::parse(s).map(Val::Timestamp).map_err(|e| Error::new(e.to_string()))
        }
        ("timestamp", Val::Int(i)) => {
            Timestamp::from_second(*i).map(Val::Timestamp).map_err(|_| Error::new("timestamp overflow"))
        }
        ("duration", Val::String(s)) => {
            let wrong = || Error::new(format!("time: invalid duration {:?}", s.as_ref()));
            parse_duration(s).map(Val::Duration).ok_or_else(wrong)
        }
        ("duration", Val::Int(i)) => Ok(Val::Duration(*i)),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn of_timestamp<'a>(name: &str, at: Timestamp, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    let zone = match args {
        [] => TimeZone::UTC,
        [Val::String(name)] => zone_of(name).ok_or_else(|| Error::new(format!("unknown time zone {name}")))?,
        _ => return Err(Error::no_overload()),
    };
    let t: Zoned = at.to_zoned(zone);
    Ok(Val::Int(match name {
        "getFullYear" => t.year().into(),
        "getMonth" => i64::from(t.month()) - 1,
        "getDate" => t.day().into(),
        "getDayOfMonth" => i64::from(t.day()) - 1,
        "getDayOfWeek" => t.weekday().to_sunday_zero_offset().into(),
        "getDayOfYear" => i64::from(t.day_of_year()) - 1,
        "getHours" => t.hour().into(),
        "getMinutes" => t.minute().into(),
        "getSeconds" => t.second().into(),
        "getMilliseconds" => t.millisecond().into(),
        _ => return Err(Error::no_overload()),
    }))
}

fn zone_of(name: &str) -> Option<TimeZone> {
    let Some((hours, minutes)) = name.split_once(':') else { return TimeZone::get(name).ok() };
    let negative = hours.starts_with('-');
    let hours: i32 = hours.trim_start_matches(['-', '+']).parse().ok()?;
    let minutes: i32 = minutes.parse().ok()?;
    let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
    Offset::from_seconds(if negative { -seconds } else { seconds }).ok().map(TimeZone::fixed)
}

pub(super) fn of_duration<'a>(name: &str, nanos: i64, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    if !args.is_empty() {
        return Err(Error::no_overload());
    }
    Ok(Val::Int(match name {
        "getHours" => nanos / 3_600_000_000_000,
        "getMinutes" => nanos / 60_000_000_000,
        "getSeconds" => nanos / 1_000_000_000,
        "getMilliseconds" => nanos / 1_000_000 % 1000,
        _ => return Err(Error::no_overload()),
    }))
}
