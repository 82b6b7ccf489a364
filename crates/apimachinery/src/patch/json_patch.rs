//! JSON patch (RFC 6902), with the indexes from the end that upstream's library allows.

use std::sync::OnceLock;

use super::PatchError;
use crate::Value;
use crate::codec::{Options, json};
use crate::schema::{Field, ListKind, ListShape, Shape, Struct, TypeRef};

/// Upstream's limit on the operations of one patch.
pub const MAX_OPERATIONS: usize = 10_000;
/// And on what copies may add, in bytes of JSON.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// A patch that has been read but not yet applied.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPatch {
    operations: Vec<Operation>,
    /// Unknown and duplicate fields of the operations themselves, for strict validation.
    pub strict: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Operation {
    op: String,
    path: Option<String>,
    from: Option<String>,
    value: Option<Value>,
}

impl JsonPatch {
    /// Reads a patch.
    ///
    /// # Errors
    /// [`PatchError::Malformed`] for what is no list of operations, [`PatchError::TooLarge`] for too many of them.
    pub fn parse(body: &[u8]) -> Result<Self, PatchError> {
        let decoded = json::decode(body, operations_type(), Options { unstructured: true, ..Options::default() })
            .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
        let Value::Array(items) = decoded.value else {
            return Err(PatchError::Malformed(
                "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch".into(),
            ));
        };
        if items.len() > MAX_OPERATIONS {
            return Err(PatchError::TooLarge(format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                items.len()
            )));
        }
        let mut strict: Vec<String> = decoded.strict.iter().map(|s| format!("json patch {s}")).collect();
        let mut operations = Vec::with_capacity(items.len());
        for (i, item) in items.into_iter().enumerate() {
            let Value::Object(fields) = item else {
                return Err(PatchError::Malformed(
                    "error decoding patch: json: cannot unmarshal into Go value of type jsonpatch.Operation".into(),
                ));
            };
            let mut operation = Operation { op: String::new(), path: None, from: None, value: None };
            for (key, value) in fields {
                let text = value.as_str().map(str::to_owned);
                match key.as_str() {
                    "op" => operation.op = text.unwrap_or_default(),
                    "path" => operation.path = text,
                    "from" => operation.from = text,
                    "value" => operation.value = Some(value),
                    other if strict.len() < 100 => strict.push(format!("json patch unknown field \"[{i}].{other}\"")),
                    _ => {}
                }
            }
            operations.push(operation);
        }
        Ok(JsonPatch { operations, strict })
    }

    /// Applies the operations in order. After an error `target` is in between.
    ///
    /// # Errors
    /// [`PatchError::Unprocessable`] for an operation that cannot be done or a test that fails.
    pub fn apply(&self, target: &mut Value) -> Result<(), PatchError> {
        let mut copied = 0;
        for operation in &self.operations {
            operation.apply(target, &mut copied)?;
        }
        Ok(())
    }
}

/// Only so that duplicate fields are found.
fn operations_type() -> &'static TypeRef {
    static TYPE: OnceLock<TypeRef> = OnceLock::new();
    TYPE.get_or_init(|| {
        let text = TypeRef::new("", Shape::String(""));
        let fields = ["op", "path", "from"].map(|name| Field::new(name, text.clone()));
        let mut fields = Vec::from(fields);
        fields.push(Field::new("value", TypeRef::any()));
        let item = TypeRef::new("", Shape::Struct(Struct::new(fields)));
        TypeRef::new("", Shape::List(ListShape { item, kind: ListKind::Atomic, wrapped: false }))
    })
}

impl Operation {
    fn apply(&self, target: &mut Value, copied: &mut usize) -> Result<(), PatchError> {
        let path = || self.path.as_deref().ok_or_else(|| missing("path", &self.op));
        let from = || self.from.as_deref().ok_or_else(|| missing("from", &self.op));
        let value = || self.value.clone().unwrap_or_default();
        match self.op.as_str() {
            "add" => add(target, path()?, value()),
            "remove" => remove(target, path()?).map(drop),
            "replace" => {
                let path = path()?;
                *find_mut(target, path).ok_or_else(|| absent("replace", path))? = value();
                Ok(())
            }
            "move" => {
                let (from, path) = (from()?, path()?);
                if path.strip_prefix(from).is_some_and(|below| below.starts_with('/')) {
                    return Err(fail(format!("move operation cannot move {from} into itself")));
                }
                let value = remove(target, from)?;
                add(target, path, value)
            }
            "copy" => {
                let from = from()?;
                let value = find(target, from).cloned().ok_or_else(|| absent("copy", from))?;
                *copied += json::encode(&value).len();
                if *copied > MAX_COPIED {
                    return Err(PatchError::TooLarge(format!(
                        "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                    )));
                }
                add(target, path()?, value)
            }
            "test" => {
                let path = path()?;
                let want = self.value.as_ref().unwrap_or(&Value::Null);
                // What is not there equals null.
                if find(target, path).unwrap_or(&Value::Null) == want {
                    Ok(())
                } else {
                    Err(fail(format!("testing value {path} failed: test failed")))
                }
            }
            other => Err(fail(format!("Unexpected kind: {other}"))),
        }
    }
}

fn fail(message: String) -> PatchError {
    PatchError::Unprocessable(message)
}

fn missing(what: &str, op: &str) -> PatchError {
    fail(format!("{op} operation does not have a {what}"))
}

fn absent(op: &str, path: &str) -> PatchError {
    fail(format!("{op} operation does not apply: doc is missing path: {path}: missing value"))
}

/// The unescaped keys of a pointer; `None` for what is no pointer.
fn keys(path: &str) -> Option<impl Iterator<Item = String>> {
    if !path.is_empty() && !path.starts_with('/') {
        return None;
    }
    Some(path.split('/').skip(1).map(|key| key.replace("~1", "/").replace("~0", "~")))
}

fn find<'a>(target: &'a Value, path: &str) -> Option<&'a Value> {
    keys(path)?.try_fold(target, |at, key| match at {
        Value::Object(map) => map.get(&key),
        Value::Array(items) => items.get(index(&key, items.len())?),
        _ => None,
    })
}

fn find_mut<'a>(target: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    keys(path)?.try_fold(target, |at, key| match at {
        Value::Object(map) => map.get_mut(&key),
        Value::Array(items) => {
            let i = index(&key, items.len())?;
            items.get_mut(i)
        }
        _ => None,
    })
}

/// An index below `len`, or from the end if negative.
fn index(key: &str, len: usize) -> Option<usize> {
    let n: isize = key.parse().ok()?;
    let n = if n < 0 { len.checked_sub(n.unsigned_abs())? } else { n.unsigned_abs() };
    (n < len).then_some(n)
}

/// The container of what a path leads to, and the last key.
fn parent<'a>(target: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, _) = path.rsplit_once('/')?;
    let last = keys(path)?.last()?;
    Some((find_mut(target, parent)?, last))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (container, key) = parent(target, path).ok_or_else(|| absent("add", path))?;
    match container {
        Value::Object(map) => {
            map.insert(key, value);
            Ok(())
        }
        Value::Array(items) if key == "-" => {
            items.push(value);
            Ok(())
        }
        Value::Array(items) => {
            let at = index(&key, items.len() + 1)
                .ok_or_else(|| fail(format!("Unable to access invalid index: {key}: invalid index referenced")))?;
            items.insert(at, value);
            Ok(())
        }
        _ => Err(absent("add", path)),
    }
}

fn remove(target: &mut Value, path: &str) -> Result<Value, PatchError> {
    let (container, key) = parent(target, path).ok_or_else(|| absent("remove", path))?;
    let removed = match container {
        Value::Object(map) => map.remove(&key),
        Value::Array(items) => index(&key, items.len()).map(|at| items.remove(at)),
        _ => None,
    };
    removed.ok_or_else(|| absent("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(target: &str, patch: &str) -> Result<String, PatchError> {
        let mut value: Value = serde_json::from_str(target).unwrap();
        JsonPatch::parse(patch.as_bytes())?.apply(&mut value)?;
        Ok(serde_json::to_string(&value).unwrap())
    }

    #[test]
    fn operations_do_what_they_say() {
        for (target, patch, want) in [
            (r#"{"a":1}"#, r#"[{"op":"add","path":"/b","value":[1]}]"#, r#"{"a":1,"b":[1]}"#),
            (r#"{"a":[1,3]}"#, r#"[{"op":"add","path":"/a/1","value":2}]"#, r#"{"a":[1,2,3]}"#),
            (r#"{"a":[1]}"#, r#"[{"op":"add","path":"/a/-","value":2}]"#, r#"{"a":[1,2]}"#),
            (r#"{"a":[1,2]}"#, r#"[{"op":"remove","path":"/a/-1"}]"#, r#"{"a":[1]}"#),
            (
                r#"{"a/b":1,"c~d":2}"#,
                r#"[{"op":"remove","path":"/a~1b"},{"op":"replace","path":"/c~0d","value":3}]"#,
                r#"{"c~d":3}"#,
            ),
            (
                r#"{"a":{"x":1}}"#,
                r#"[{"op":"copy","from":"/a","path":"/b"},{"op":"move","from":"/a/x","path":"/y"}]"#,
                r#"{"a":{},"b":{"x":1},"y":1}"#,
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"test","path":"/a","value":1},{"op":"test","path":"/none","value":null}]"#,
                r#"{"a":1}"#,
            ),
            (r#"{"a":1}"#, r#"[{"op":"replace","path":"","value":{"b":2}}]"#, r#"{"b":2}"#),
        ] {
            assert_eq!(run(target, patch).as_deref(), Ok(want), "{patch}");
        }
    }

    #[test]
    fn what_cannot_be_done_fails() {
        for patch in [
            r#"[{"op":"test","path":"/a","value":2}]"#,
            r#"[{"op":"remove","path":"/none"}]"#,
            r#"[{"op":"add","path":"/none/x","value":1}]"#,
            r#"[{"op":"replace","path":"/none","value":1}]"#,
            r#"[{"op":"remove","path":"/l/7"}]"#,
            r#"[{"op":"add","path":"/l/7","value":1}]"#,
            r#"[{"op":"add","path":"l","value":1}]"#,
            r#"[{"op":"frobnicate","path":"/a"}]"#,
            r#"[{"op":"remove"}]"#,
            r#"[{"op":"move","from":"/o","path":"/o/x"}]"#,
            r#"[{"op":"remove","path":""}]"#,
        ] {
            let got = run(r#"{"a":1,"l":[1],"o":{}}"#, patch);
            assert!(matches!(got, Err(PatchError::Unprocessable(_))), "{patch}: {got:?}");
        }
        assert!(matches!(run("{}", r#"{"op":"remove"}"#), Err(PatchError::Malformed(_))));
        assert!(matches!(run("{}", "[1]"), Err(PatchError::Malformed(_))));
        assert!(matches!(run("{}", "["), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn size_is_bounded() {
        let many = format!("[{}]", vec![r#"{"op":"test","path":"/x"}"#; MAX_OPERATIONS + 1].join(","));
        assert!(matches!(run("{}", &many), Err(PatchError::TooLarge(_))));
        let doubling = vec![r#"{"op":"copy","from":"/a","path":"/a/-"}"#; 40].join(",");
        assert!(matches!(run(r#"{"a":["xxxxxxxx"]}"#, &format!("[{doubling}]")), Err(PatchError::TooLarge(_))));
    }

    #[test]
    fn strict_findings_name_the_operation() {
        let patch = JsonPatch::parse(br#"[{"op":"test","path":"/a","extra":1}]"#).unwrap();
        assert_eq!(patch.strict, [r#"json patch unknown field "[0].extra""#]);
    }
}
