//! Schedules in cron's form, with the messages of the parser that upstream uses.

/// What is wrong with a schedule, if anything is.
pub(super) fn problem(schedule: &str) -> Option<String> {
    if schedule.is_empty() {
        return Some("empty spec string".to_owned());
    }
    let mut rest = schedule;
    for prefix in ["TZ=", "CRON_TZ="] {
        if let Some(after) = schedule.strip_prefix(prefix) {
            let Some((zone, spec)) = after.split_once(' ') else {
                return Some("provided bad location : no space after it".to_owned());
            };
            if !super::time_zone::exists(zone) {
                return Some(format!("provided bad location {zone}: unknown time zone {zone}"));
            }
            rest = spec.trim();
        }
    }
    if rest.starts_with('@') {
        return descriptor(rest);
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let shown = fields.join(" ");
        return Some(format!("expected exactly 5 fields, found {}: [{shown}]", fields.len()));
    }
    fields.iter().zip(FIELDS).find_map(|(field, bounds)| {
        field.split(',').filter(|p| !p.is_empty()).find_map(|part| range(part, bounds).err())
    })
}

struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
    first: u32,
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Minutes, hours, days of the month, months, days of the week.
const FIELDS: &[Bounds] = &[
    Bounds { min: 0, max: 59, names: &[], first: 0 },
    Bounds { min: 0, max: 23, names: &[], first: 0 },
    Bounds { min: 1, max: 31, names: &[], first: 0 },
    Bounds { min: 1, max: 12, names: MONTHS, first: 1 },
    Bounds { min: 0, max: 6, names: DAYS, first: 0 },
];

/// One part of a field: `*`, `3`, `1-5`, any of them with a step.
fn range(part: &str, bounds: &Bounds) -> Result<(), String> {
    let steps: Vec<&str> = part.split('/').collect();
    let ends: Vec<&str> = steps[0].split('-').collect();
    let single = ends.len() == 1;
    let (start, mut end) = if ends[0] == "*" || ends[0] == "?" {
        (bounds.min, bounds.max)
    } else {
        let start = number_or_name(ends[0], bounds)?;
        match ends.as_slice() {
            [_] => (start, start),
            [_, end] => (start, number_or_name(end, bounds)?),
            _ => return Err(format!("too many hyphens: {part}")),
        }
    };
    let step = match steps.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if single {
                end = bounds.max;
            }
            step
        }
        _ => return Err(format!("too many slashes: {part}")),
    };
    let (min, max) = (bounds.min, bounds.max);
    if start < min {
        return Err(format!("beginning of range ({start}) below minimum ({min}): {part}"));
    }
    if end > max {
        return Err(format!("end of range ({end}) above maximum ({max}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(())
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(i) => Ok(bounds.first + u32::try_from(i).unwrap_or_default()),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => Ok(u32::try_from(n).unwrap_or(u32::MAX)),
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

const DESCRIPTORS: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

fn descriptor(text: &str) -> Option<String> {
    if DESCRIPTORS.contains(&text) {
        return None;
    }
    match text.strip_prefix("@every ") {
        Some(duration) if is_go_duration(duration) => None,
        Some(duration) => Some(format!("failed to parse duration {text}: time: invalid duration {duration:?}")),
        None => Some(format!("unrecognized descriptor: {text}")),
    }
}

/// `1h30m`, `1.5s`, `-2us`.
fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (amount, after) = rest.split_at(digits);
        let unit = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].into_iter().find_map(|u| after.strip_prefix(u));
        match unit {
            Some(next) if amount.bytes().any(|b| b.is_ascii_digit()) && amount.matches('.').count() < 2 => rest = next,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schedule: &str, want: Option<&str>) {
        assert_eq!(problem(schedule).as_deref(), want, "{schedule}");
    }

    #[test]
    fn schedules_are_read_as_upstream_reads_them() {
        for good in [
            "*/5 * * * *",
            "@hourly",
            "@every 1h30m",
            "0 0 1 JAN mon-fri",
            "TZ=Europe/Berlin 0 * * * *",
            "0 12 ? * 1,3",
        ] {
            check(good, None);
        }
        check("61 * * *", Some("expected exactly 5 fields, found 4: [61 * * *]"));
        check("61 * * * *", Some("end of range (61) above maximum (59): 61"));
        check("* * 0 * *", Some("beginning of range (0) below minimum (1): 0"));
        check("5-1 * * * *", Some("beginning of range (5) beyond end of range (1): 5-1"));
        check("*/0 * * * *", Some("step of range should be a positive number: */0"));
        check("a * * * *", Some("failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"));
        check("1/2/3 * * * *", Some("too many slashes: 1/2/3"));
        check("@often", Some("unrecognized descriptor: @often"));
        check("TZ=Mars/Base 0 * * * *", Some("provided bad location Mars/Base: unknown time zone Mars/Base"));
    }
}
