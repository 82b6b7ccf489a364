//! Paths inside volumes: never upwards.

use apimachinery::field::{Cursor, FieldErrors};

use super::{Checks, text};

/// No `..` among its elements.
pub(crate) fn no_backsteps(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if steps_back(text(at)) {
        errs.invalid_text(at, "must not contain '..'");
    }
}

pub(crate) fn steps_back(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// Relative, and below where it starts.
pub(crate) fn descending(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if text(at).starts_with('/') {
        errs.invalid_text(at, "must be a relative path");
    }
    no_backsteps(errs, at);
}

/// As [`descending`], and not one of the names that the kubelet's own files have.
pub(crate) fn not_reserved(errs: &mut FieldErrors, at: &Cursor<'_>) {
    descending(errs, at);
    if text(at).starts_with("..") && !text(at).starts_with("../") {
        errs.invalid_text(at, "must not start with '..'");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;
    use apimachinery::Value;
    use apimachinery::field::Path;

    #[track_caller]
    fn check(path: &str, want: &[&str]) {
        let value = Value::from(path);
        let mut errs = FieldErrors::new();
        not_reserved(&mut errs, &Cursor::new(Path::new("p"), &value));
        assert_findings(&errs, want);
    }

    #[test]
    fn paths_stay_inside() {
        check("a/b..c", &[]);
        check("/a", &[r#"p: Invalid value: "/a": must be a relative path"#]);
        check("a/../b", &[r#"p: Invalid value: "a/../b": must not contain '..'"#]);
        check("..data", &[r#"p: Invalid value: "..data": must not start with '..'"#]);
        check("../x", &[r#"p: Invalid value: "../x": must not contain '..'"#]);
    }
}
