//! The columns of a custom resource's Table: JSONPaths into the object.

use api::Column;
use api::strategy::Now;
use apimachinery::Value;

/// A column and where its cells come from.
#[derive(Clone)]
pub(crate) struct PrinterColumn {
    pub column: Column,
    path: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(i64),
    All,
    /// `[?(@.a.b=="c")]`, or with `!=`.
    Where {
        path: Vec<String>,
        equal: bool,
        value: String,
    },
}

#[must_use]
pub(super) fn columns_of(version: &Value) -> Vec<PrinterColumn> {
    let column = |name: &str, kind: &str, format: &str, priority: i64, path: &str| PrinterColumn {
        column: Column { name: name.into(), kind: kind.into(), format: format.into(), priority },
        path: parse(path),
    };
    let mut columns = vec![column("Name", "string", "name", 0, ".metadata.name")];
    let wanted = version["additionalPrinterColumns"].items();
    columns.extend(wanted.iter().map(|c| {
        let priority = c["priority"].as_i64().unwrap_or(0);
        let text = |field: &str| c.str_at(&[field]).to_owned();
        column(&text("name"), &text("type"), &text("format"), priority, &text("jsonPath"))
    }));
    if wanted.is_empty() {
        columns.push(column("Age", "date", "", 0, ".metadata.creationTimestamp"));
    }
    columns
}

/// Unknown syntax ends the path, which then finds nothing.
fn parse(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut chars = path.trim_matches(['{', '}']).chars().peekable();
    let mut key = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => key.extend(chars.next()),
            '.' | '[' => {
                if !key.is_empty() {
                    steps.push(Step::Key(std::mem::take(&mut key)));
                }
                if c == '[' {
                    let mut inner = String::new();
                    let mut depth = 1;
                    for c in chars.by_ref() {
                        match c {
                            '[' => depth += 1,
                            ']' => depth -= 1,
                            _ => {}
                        }
                        if depth == 0 {
                            break;
                        }
                        inner.push(c);
                    }
                    steps.push(bracket(&inner));
                }
            }
            c => key.push(c),
        }
    }
    if !key.is_empty() {
        steps.push(Step::Key(key));
    }
    steps
}

fn bracket(inner: &str) -> Step {
    let inner = inner.trim();
    let unquoted = |text: &str| text.trim().trim_matches(['\'', '"']).to_owned();
    if inner == "*" {
        return Step::All;
    }
    if let Ok(i) = inner.parse() {
        return Step::Index(i);
    }
    if let Some(test) = inner.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (left, equal, right) = match (test.split_once("=="), test.split_once("!=")) {
            (Some((l, r)), _) => (l, true, r),
            (None, Some((l, r))) => (l, false, r),
            (None, None) => (test, false, ""),
        };
        let path = left.trim().trim_start_matches("@.").split('.').map(str::to_owned).collect();
        return Step::Where { path, equal, value: unquoted(right) };
    }
    Step::Key(unquoted(inner))
}

fn find<'v>(value: &'v Value, steps: &[Step], found: &mut Vec<&'v Value>) {
    let Some((step, rest)) = steps.split_first() else {
        found.push(value);
        return;
    };
    match step {
        Step::Key(key) => {
            if let Some(value) = value.get(key) {
                find(value, rest, found);
            }
        }
        Step::Index(i) => {
            let items = value.items();
            let at = if *i < 0 { items.len().checked_sub(i.unsigned_abs() as usize) } else { usize::try_from(*i).ok() };
            if let Some(item) = at.and_then(|at| items.get(at)) {
                find(item, rest, found);
            }
        }
        Step::All => {
            value.items().iter().for_each(|item| find(item, rest, found));
            value.entries().values().for_each(|item| find(item, rest, found));
        }
        Step::Where { path, equal, value: wanted } => {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            for item in value.items() {
                let text = plain(item.at(&path));
                if (text == *wanted) == *equal {
                    find(item, rest, found);
                }
            }
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.to_string(),
        Value::Null => String::new(),
        other => apimachinery::field::shown(other),
    }
}

impl PrinterColumn {
    /// The cell of an object; `Null` for a path that finds nothing.
    #[must_use]
    pub(super) fn cell(&self, object: &Value, now: Now) -> Value {
        let mut found = Vec::new();
        find(object, &self.path, &mut found);
        let Some(first) = found.first() else { return Value::Null };
        match (self.column.kind.as_str(), *first) {
            ("integer", Value::Int(_)) | ("number", Value::Int(_) | Value::Float(_)) | ("boolean", Value::Bool(_)) => {
                (*first).clone()
            }
            #[expect(clippy::cast_possible_truncation, reason = "as upstream converts a float for an integer column")]
            ("integer", Value::Float(f)) => Value::Int(*f as i64),
            ("string", _) => found.iter().map(|v| plain(v)).collect::<Vec<_>>().join(",").into(),
            ("date", Value::String(_)) => api::age(first, now),
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: &str, path: &str, want: &str) {
        let object: Value = serde_json::from_str(
            r#"{"spec":{"n":3,"a.b":"x","l":["p","q"]},"status":{"conditions":[{"type":"A","status":"1"},{"type":"B","status":"2"}]}}"#,
        )
        .unwrap();
        let column = Column { name: "c".into(), kind: kind.into(), format: String::new(), priority: 0 };
        let cell = PrinterColumn { column, path: parse(path) }.cell(&object, Now(0));
        assert_eq!(apimachinery::field::shown(&cell), want, "{path}");
    }

    #[test]
    fn paths_find_their_cells() {
        check("integer", ".spec.n", "3");
        check("string", ".spec.n", r#""3""#);
        check("string", r".spec.a\.b", r#""x""#);
        check("string", ".spec.l[1]", r#""q""#);
        check("string", ".spec.l[*]", r#""p,q""#);
        check("string", r#".status.conditions[?(@.type=="B")].status"#, r#""2""#);
        check("string", ".spec.none", "null");
        check("boolean", ".spec.n", "null");
    }
}
