//! Numbers with bounds: identities of users and groups, and what is a number or a percentage.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{Checks, int};

/// The identity of a user or a group on Linux.
pub(crate) fn identity(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if !at.is_absent() && !(0..=i64::from(i32::MAX)).contains(&int(at.value)) {
        errs.invalid(at, "must be between 0 and 2147483647, inclusive");
    }
}

/// More than 0; an absent field is 0.
pub(crate) fn positive(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if int(at.value) <= 0 {
        errs.invalid_int(at, "must be greater than zero");
    }
}

/// `25%` as 25; nothing for what is no percentage.
pub(crate) fn percent(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().unwrap_or(i64::MAX))
}

/// The number itself or that of its percents; 0 for what is neither.
pub(crate) fn int_or_percent(value: &Value) -> i64 {
    match value {
        Value::String(s) => percent(value).or_else(|| s.parse().ok()).unwrap_or_default(),
        _ => int(value),
    }
}

/// A number that is not negative, or a percentage.
pub(crate) fn non_negative_or_percent(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if at.value.as_str().is_some() {
        if percent(at.value).is_none() {
            errs.invalid(
                at,
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex \
                 used for validation is '[0-9]+%')",
            );
        }
    } else {
        errs.non_negative(at);
    }
}

pub(crate) fn at_most_all(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if percent(at.value).is_some_and(|p| p > 100) {
        errs.invalid(at, "must not be greater than 100%");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;
    use apimachinery::field::Path;

    #[test]
    fn numbers_and_percentages() {
        let mut errs = FieldErrors::new();
        let values = [Value::from("10"), "110%".into(), (-1i64).into(), "25%".into()];
        for value in &values {
            let at = Cursor::new(Path::new("x"), value);
            non_negative_or_percent(&mut errs, &at);
            at_most_all(&mut errs, &at);
        }
        assert_findings(
            &errs,
            &[
                "x: Invalid value: \"10\": a valid percent string must be a numeric string followed by an ending '%' (e.g. \
                 '1%',  or '93%', regex used for validation is '[0-9]+%')",
                "x: Invalid value: \"110%\": must not be greater than 100%",
                "x: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        assert_eq!((int_or_percent(&"7%".into()), int_or_percent(&7i64.into())), (7, 7));
    }
}
