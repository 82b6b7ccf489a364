//! Field paths and the errors of validation, worded as Kubernetes words them.

use std::fmt;
use std::ops::Deref;

use compact_str::{CompactString, format_compact};

use crate::Value;

/// Where a field is, as users read it: `spec.containers[0].ports[1].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(CompactString);

impl Path {
    #[must_use]
    pub fn root() -> Self {
        Path::default()
    }

    #[must_use]
    pub fn new(path: &str) -> Self {
        Path(path.into())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        // Put together by hand: every field that is looked at has a path, and few of them are ever read.
        let mut path = CompactString::with_capacity(self.0.len() + 1 + name.len());
        path.push_str(&self.0);
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        Path(path)
    }

    #[must_use]
    pub fn index(&self, i: usize) -> Self {
        Path(format_compact!("{}[{i}]", self.0))
    }

    /// An entry of a map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format_compact!("{}[{key}]", self.0))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value together with its path, so that a check and the error that it gives never disagree about where they are.
/// Dereferences to the [`Value`], which is `Null` for what is absent.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    pub path: Path,
    pub value: &'a Value,
}

impl<'a> Cursor<'a> {
    #[must_use]
    pub fn root(value: &'a Value) -> Self {
        Cursor { path: Path::root(), value }
    }

    #[must_use]
    pub fn new(path: Path, value: &'a Value) -> Self {
        Cursor { path, value }
    }

    /// The field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Cursor<'a> {
        Cursor { path: self.path.child(name), value: &self.value[name] }
    }

    /// The field at the end of several names.
    #[must_use]
    pub fn fields(&self, names: &[&str]) -> Cursor<'a> {
        names.iter().fold(self.clone(), |at, name| at.field(name))
    }

    /// The elements of a list; none if it is absent or no list.
    pub fn elements(&self) -> impl Iterator<Item = Cursor<'a>> + use<'a> {
        let path = self.path.clone();
        self.value.items().iter().enumerate().map(move |(i, value)| Cursor { path: path.index(i), value })
    }

    /// The entries of a map with their keys.
    pub fn map_entries(&self) -> impl Iterator<Item = (&'a str, Cursor<'a>)> + use<'a> {
        let path = self.path.clone();
        self.value.entries().into_iter().map(move |(k, value)| (k.as_str(), Cursor { path: path.key(k), value }))
    }

    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.value.is_null()
    }
}

impl Deref for Cursor<'_> {
    type Target = Value;

    fn deref(&self) -> &Value {
        self.value
    }
}

/// What is wrong with a field; each has a reason that clients may match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    NotFound,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
    Internal,
}

impl ErrorKind {
    /// `reason` of the cause in a Status.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            ErrorKind::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::NotFound => "Not found",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// One finding of validation.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub path: Path,
    /// The offending value as the message shows it, already rendered (strings in quotes); `None` where none is shown.
    pub shown: Option<String>,
    pub detail: String,
}

impl FieldError {
    /// The message without the path, as in a cause of a Status.
    #[must_use]
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let Some(shown) = &self.shown {
            text.push_str(": ");
            text.push_str(shown);
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.0.is_empty() { "<nil>" } else { self.path.as_str() };
        write!(f, "{path}: {}", self.body())
    }
}

/// A value as messages show it: strings in quotes, numbers plain, everything else as JSON.
#[must_use]
pub fn shown(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// All findings about one object, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldErrors(pub Vec<FieldError>);

impl FieldErrors {
    #[must_use]
    pub fn new() -> Self {
        FieldErrors::default()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn extend(&mut self, other: FieldErrors) {
        self.0.extend(other.0);
    }

    fn push(&mut self, kind: ErrorKind, path: &Path, shown: Option<String>, detail: impl Into<String>) {
        self.0.push(FieldError { kind, path: path.clone(), shown, detail: detail.into() });
    }

    pub fn required(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Required, path, None, detail);
    }

    pub fn invalid(&mut self, at: &Cursor<'_>, detail: impl Into<String>) {
        self.push(ErrorKind::Invalid, &at.path, Some(shown(at.value)), detail);
    }

    /// As [`FieldErrors::invalid`], for a value that stands nowhere as such (a map's key, a part of a string).
    pub fn invalid_value(&mut self, path: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(ErrorKind::Invalid, path, Some(shown(&value.into())), detail);
    }

    pub fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::Duplicate, path, Some(shown(&value.into())), "");
    }

    pub fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::NotFound, path, Some(shown(&value.into())), "");
    }

    pub fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Forbidden, path, None, detail);
    }

    /// `supported` is listed in the message in quotes, in the order given (upstream sorts it).
    pub fn not_supported(&mut self, at: &Cursor<'_>, supported: &[&str]) {
        let listed: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let detail = if listed.is_empty() { String::new() } else { format!("supported values: {}", listed.join(", ")) };
        self.push(ErrorKind::NotSupported, &at.path, Some(shown(at.value)), detail);
    }

    /// More than `max` bytes; the value itself is not shown.
    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.push(ErrorKind::TooLong, path, None, format!("may not be more than {max} bytes"));
    }

    pub fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        let unit = if max == 1 { "item" } else { "items" };
        self.push(ErrorKind::TooMany, path, Some(actual.to_string()), format!("must have at most {max} {unit}"));
    }

    pub fn type_invalid(&mut self, at: &Cursor<'_>, detail: impl Into<String>) {
        self.push(ErrorKind::TypeInvalid, &at.path, Some(shown(at.value)), detail);
    }

    pub fn internal(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Internal, path, None, detail);
    }

    /// A field that must keep its value.
    pub fn immutable(&mut self, new: &Cursor<'_>, old: &Cursor<'_>) {
        if new.value != old.value {
            self.invalid(new, "field is immutable");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_writes_them() {
        let obj = Value::from([("spec", Value::from([("replicas", Value::from(-1)), ("mode", "Never".into())]))]);
        let spec = Cursor::root(&obj).field("spec");
        let mut errs = FieldErrors::new();
        errs.invalid(&spec.field("replicas"), "must be greater than or equal to 0");
        errs.not_supported(&spec.field("mode"), &["Always", "OnFailure"]);
        errs.required(&spec.field("selector").path, "");
        errs.too_many(&spec.field("list").path.index(2), 5, 3);
        let texts: Vec<String> = errs.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                r#"spec.mode: Unsupported value: "Never": supported values: "Always", "OnFailure""#,
                "spec.selector: Required value",
                "spec.list[2]: Too many: 5: must have at most 3 items",
            ]
        );
    }
}
