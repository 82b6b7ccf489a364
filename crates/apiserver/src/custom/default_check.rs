//! The defaults of a definition's schemas: each must itself be valid.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{decode, validate};

/// What is wrong with the default of one schema, if it has one.
pub(super) fn check(at: &Cursor<'_>, root: bool, errs: &mut FieldErrors) {
    let default = at.field("default");
    if default.is_absent() || default.value.is_null() {
        return;
    }
    let mut pruned: Value = default.value.clone();
    let mut unknown = Vec::new();
    decode::prune(&mut pruned, at.value, root, "", &mut unknown);
    if !unknown.is_empty() {
        errs.invalid(&default, "must not have unknown fields");
    }
    validate::validate(&default, at.value, None, errs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::field::Path;

    #[track_caller]
    fn complaints(schema: &str, want: &[&str]) {
        let schema: Value = serde_json::from_str(schema).unwrap();
        let mut errs = FieldErrors::new();
        check(&Cursor::new(Path::new("s"), &schema), false, &mut errs);
        assert_eq!(errs.0.iter().map(ToString::to_string).collect::<Vec<_>>(), want);
    }

    #[test]
    fn a_default_fits_its_own_schema() {
        complaints(r#"{"type":"string","default":"a"}"#, &[]);
        complaints(r#"{"type":"object","properties":{"a":{"type":"string"}},"default":{"a":"b"}}"#, &[]);
        complaints(
            r#"{"type":"string","enum":["a"],"default":"b"}"#,
            &[r#"s.default: Unsupported value: "b": supported values: "a""#],
        );
        complaints(
            r#"{"type":"object","properties":{"a":{"type":"string"}},"default":{"z":"b"}}"#,
            &[r#"s.default: Invalid value: {"z":"b"}: must not have unknown fields"#],
        );
    }
}
