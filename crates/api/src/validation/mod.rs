//! Rules that several kinds share, with upstream's messages.
//!
//! Rules over text return messages, so that a caller decides which field they are about; rules over a part of an object
//! add to [`FieldErrors`] themselves. Fields that are absent read as Go's zero values, because that is what upstream's
//! messages show.

pub(crate) mod conditions;
pub(crate) mod deprecated_labels;
pub(crate) mod labels;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod net;
pub(crate) mod node_selector;
pub(crate) mod numbers;
pub(crate) mod paths;
pub(crate) mod resources;

use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors, Path, shown};

/// What validation says again and again.
pub(crate) trait Checks {
    /// Every message about the text of a field.
    fn each(&mut self, at: &Cursor<'_>, messages: Vec<String>);

    /// About a field whose zero value is the empty string.
    fn invalid_text(&mut self, at: &Cursor<'_>, detail: impl Into<String>);

    /// About a field whose zero value is 0.
    fn invalid_int(&mut self, at: &Cursor<'_>, detail: impl Into<String>);

    /// About a value that upstream shows as its internal type has it: with Go's names of the fields.
    fn invalid_struct(&mut self, at: &Cursor<'_>, detail: impl Into<String>);

    fn duplicate_struct(&mut self, at: &Cursor<'_>, detail: &str);

    /// Of a struct none of whose kinds is known.
    fn unsupported_struct(&mut self, at: &Cursor<'_>, supported: &[&str]);

    /// About something that is too large, or too little, to be shown.
    fn invalid_bare(&mut self, path: &Path, detail: &str);

    /// Is the text one of those? Says so if not; the list is shown in the order given.
    fn one_of(&mut self, at: &Cursor<'_>, allowed: &[&str]) -> bool;

    /// Is there something? Says that it is required if not.
    fn present(&mut self, at: &Cursor<'_>, detail: &str) -> bool;

    fn non_negative(&mut self, at: &Cursor<'_>);

    /// A whole that may not change and is too large to be shown: upstream appends the difference.
    fn changed(&mut self, path: &Path, detail: &str);

    /// A field of a struct that must keep its value.
    fn immutable_struct(&mut self, new: &Cursor<'_>, old: &Cursor<'_>);
}

pub(crate) fn text<'a>(at: &Cursor<'a>) -> &'a str {
    at.value.as_str().unwrap_or_default()
}

pub(crate) fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// With the names that Go's struct fields have; only whether they begin with a capital matters to readers.
pub(crate) fn go_struct(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut out = Value::object();
            for (key, field) in map.iter() {
                let mut chars = key.chars();
                let name: String = chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect();
                out.make_object().insert(name, go_struct(field));
            }
            out
        }
        Value::Array(items) => items.iter().map(go_struct).collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}

/// Null, and what JSON spells as empty, are the same to Go's semantic comparison.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&Value::Null)))
                && y.iter().all(|(k, v)| x.contains_key(k) || same(&Value::Null, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        (Value::Null, Value::Object(m)) | (Value::Object(m), Value::Null) => m.values().all(|v| same(v, &Value::Null)),
        (Value::Null, other) | (other, Value::Null) => other.is_empty_value(),
        (a, b) => a == b,
    }
}

impl Checks for FieldErrors {
    fn each(&mut self, at: &Cursor<'_>, messages: Vec<String>) {
        for message in messages {
            self.invalid_text(at, message);
        }
    }

    fn invalid_text(&mut self, at: &Cursor<'_>, detail: impl Into<String>) {
        if at.is_absent() {
            self.invalid_value(&at.path, "", detail);
        } else {
            self.invalid(at, detail);
        }
    }

    fn invalid_int(&mut self, at: &Cursor<'_>, detail: impl Into<String>) {
        self.invalid_value(&at.path, int(at.value), detail);
    }

    fn invalid_struct(&mut self, at: &Cursor<'_>, detail: impl Into<String>) {
        self.invalid_value(&at.path, go_struct(at.value), detail);
    }

    fn duplicate_struct(&mut self, at: &Cursor<'_>, detail: &str) {
        self.0.push(FieldError {
            kind: ErrorKind::Duplicate,
            path: at.path.clone(),
            shown: Some(shown(&go_struct(at.value))),
            detail: detail.to_owned(),
        });
    }

    fn unsupported_struct(&mut self, at: &Cursor<'_>, supported: &[&str]) {
        self.not_supported(&Cursor::new(at.path.clone(), &go_struct(at.value)), supported);
    }

    fn invalid_bare(&mut self, path: &Path, detail: &str) {
        let (kind, path, detail) = (ErrorKind::Invalid, path.clone(), detail.to_owned());
        self.0.push(FieldError { kind, path, shown: None, detail });
    }

    fn one_of(&mut self, at: &Cursor<'_>, allowed: &[&str]) -> bool {
        let known = allowed.contains(&text(at));
        if !known {
            let empty = Value::from("");
            let value = if at.is_absent() { &empty } else { at.value };
            self.not_supported(&Cursor::new(at.path.clone(), value), allowed);
        }
        known
    }

    fn present(&mut self, at: &Cursor<'_>, detail: &str) -> bool {
        let missing = at.is_empty_value();
        if missing {
            self.required(&at.path, detail);
        }
        !missing
    }

    fn non_negative(&mut self, at: &Cursor<'_>) {
        if int(at.value) < 0 {
            self.invalid(at, "must be greater than or equal to 0");
        }
    }

    fn changed(&mut self, path: &Path, detail: &str) {
        self.forbidden(path, format!("{detail}\n@@ @@\n"));
    }

    fn immutable_struct(&mut self, new: &Cursor<'_>, old: &Cursor<'_>) {
        if !same(new.value, old.value) {
            self.invalid_struct(new, "field is immutable");
        }
    }
}

/// Runs a rule over an object, given as JSON, and compares its findings, one line each.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_findings(found: &FieldErrors, want: &[&str]) {
    let got: Vec<String> = found.0.iter().map(ToString::to_string).collect();
    assert_eq!(got, want);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_empty_are_the_same() {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert!(same(&json(r#"{"a":{"b":[]},"c":1}"#), &json(r#"{"c":1,"d":""}"#)));
        assert!(!same(&json(r#"{"a":{"b":[1]}}"#), &json("{}")));
    }

    #[test]
    fn findings_show_zero_values() {
        let object = Value::object();
        let at = Cursor::root(&object).field("x");
        let mut errs = FieldErrors::new();
        errs.invalid_text(&at, "a");
        errs.invalid_int(&at, "b");
        errs.one_of(&at, &["C"]);
        assert_findings(
            &errs,
            &[
                r#"x: Invalid value: "": a"#,
                "x: Invalid value: 0: b",
                r#"x: Unsupported value: "": supported values: "C""#,
            ],
        );
    }
}
