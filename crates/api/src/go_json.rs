//! JSON with the fields in the order of Go's structs, where clients see it as text.

use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors};

/// A struct, written field by field.
#[derive(Default)]
pub(crate) struct Struct(String);

impl Struct {
    fn raw(mut self, name: &str, json: &str) -> Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        self.0.push_str(&format!("{comma}{name:?}:{json}"));
        self
    }

    /// As it is, `null` if it is absent.
    pub(crate) fn always(self, name: &str, value: &Value) -> Self {
        self.raw(name, &json(value))
    }

    /// Only if it is there.
    pub(crate) fn optional(self, name: &str, value: &Value) -> Self {
        if value.is_null() { self } else { self.always(name, value) }
    }

    pub(crate) fn nested(self, name: &str, inner: Option<Struct>) -> Self {
        match inner {
            Some(inner) => self.raw(name, &inner.finish()),
            None => self,
        }
    }

    pub(crate) fn list(self, name: &str, items: &[String]) -> Self {
        self.raw(name, &format!("[{}]", items.join(",")))
    }

    pub(crate) fn finish(self) -> String {
        format!("{{{}}}", self.0)
    }
}

fn json(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// A label selector, with its fields in Go's order.
pub(crate) fn selector(at: &Value) -> Option<Struct> {
    if at.is_null() {
        return None;
    }
    let expressions: Vec<String> = at["matchExpressions"]
        .items()
        .iter()
        .map(|e| {
            let part = Struct::default().always("key", &e["key"]).always("operator", &e["operator"]);
            let part = if e["values"].items().is_empty() { part } else { part.always("values", &e["values"]) };
            part.finish()
        })
        .collect();
    let whole = Struct::default();
    let whole =
        if at["matchLabels"].is_empty_value() { whole } else { whole.always("matchLabels", &at["matchLabels"]) };
    Some(if expressions.is_empty() { whole } else { whole.list("matchExpressions", &expressions) })
}

/// A finding about a label selector, which is shown as upstream's JSON of it.
pub(crate) fn invalid_selector(errs: &mut FieldErrors, at: &Cursor<'_>, detail: &str) {
    let shown = selector(at.value).map_or_else(|| "null".to_owned(), Struct::finish);
    errs.0.push(FieldError {
        kind: ErrorKind::Invalid,
        path: at.path.clone(),
        shown: Some(shown),
        detail: detail.to_owned(),
    });
}

/// A selector that must stay as it is.
pub(crate) fn immutable_selector(errs: &mut FieldErrors, new: &Cursor<'_>, old: &Cursor<'_>) {
    if !crate::validation::same(new.value, old.value) {
        invalid_selector(errs, new, "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_shown_in_the_order_of_the_struct() {
        let value: Value = serde_json::from_str(
            r#"{"matchExpressions":[{"key":"x","operator":"In","values":["y"]}],"matchLabels":{"a":"c"}}"#,
        )
        .unwrap();
        let shown = selector(&value).map(Struct::finish);
        let want = r#"{"matchLabels":{"a":"c"},"matchExpressions":[{"key":"x","operator":"In","values":["y"]}]}"#;
        assert_eq!(shown.as_deref(), Some(want));
    }
}
