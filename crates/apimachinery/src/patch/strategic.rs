//! Strategic merge patch: lists merge by the key that their field names, and directives say what cannot be said by
//! example.
//!
//! - `$patch: replace|delete|merge` in an object, or in an item of a list;
//! - `$retainKeys: [...]` drops the fields of an object that are not listed;
//! - `$setElementOrder/LIST` gives the order of a list's items;
//! - `$deleteFromPrimitiveList/LIST` takes values out of a list of scalars.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use compact_str::CompactString;

use super::PatchError;
use super::go_format::{go_format, go_format_list};
use crate::codec::json;
use crate::schema::{PatchStrategy, Shape, TypeRef};
use crate::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Merges `patch` into `target`, an object of that type.
///
/// # Errors
/// [`PatchError::Directive`] in upstream's words, for directives that are none and items without their merge key.
pub fn strategic_merge(target: &mut Value, patch: Value, ty: &TypeRef) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(
            "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}".into(),
        ));
    };
    let original = std::mem::take(target.make_object());
    *target = Value::Object(merge_map(original, patch, Some(ty))?);
    Ok(())
}

fn directive(message: impl Into<String>) -> PatchError {
    PatchError::Directive(message.into())
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    directive(format!("map: {} does not contain declared merge key: {key}", go_format(item)))
}

/// What the schema says of a field.
struct FieldInfo<'t> {
    ty: Option<&'t TypeRef>,
    strategy: PatchStrategy,
}

fn field_of<'t>(ty: Option<&'t TypeRef>, name: &str) -> FieldInfo<'t> {
    let (ty, strategy) = match ty.map(|ty| &ty.shape) {
        Some(Shape::Struct(shape)) => match shape.field(name) {
            Some(field) => (Some(&field.ty), field.patch.clone()),
            None => (None, PatchStrategy::default()),
        },
        Some(Shape::Map(map)) => (Some(&map.value), PatchStrategy::default()),
        Some(Shape::SchemaOr(_, props)) => return field_of(Some(props), name),
        _ => (None, PatchStrategy::default()),
    };
    FieldInfo { ty, strategy }
}

fn item_type(ty: Option<&TypeRef>) -> Option<&TypeRef> {
    match ty.map(|ty| &ty.shape) {
        Some(Shape::List(list)) => Some(&list.item),
        _ => None,
    }
}

fn merge_map(mut original: Map, mut patch: Map, ty: Option<&TypeRef>) -> Result<Map, PatchError> {
    if let Some(what) = patch.remove(PATCH) {
        return match what.as_str() {
            Some("replace") => Ok(without_directives(patch)),
            Some("delete") => Ok(Map::new()),
            _ => {
                let text = go_format(&what);
                patch.insert(PATCH, what);
                Err(directive(format!("unknown patch type: {text} in map: {}", go_format(&Value::Object(patch)))))
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, ty)?;
    // Upstream's order is random; deletions come last here, as they take out what a merge may have put in.
    let (deletions, changes): (Vec<_>, Vec<_>) = patch.into_iter().partition(|(key, _)| key.starts_with(DELETE_FROM));
    for (key, value) in changes {
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(old) = original.get_mut(&key) else {
            if let Some(value) = new_value(value) {
                original.insert(key, value);
            }
            continue;
        };
        let field = field_of(ty, &key);
        match (&mut *old, value) {
            (Value::Object(map), Value::Object(changes)) if !field.strategy.replace => {
                *map = merge_map(std::mem::take(map), changes, field.ty)?;
            }
            (Value::Array(items), Value::Array(changes)) if field.strategy.merge => {
                *items = merge_list(std::mem::take(items), changes, item_type(field.ty), &field.strategy.merge_key)?;
            }
            (old, value) => *old = new_value(value).unwrap_or_default(),
        }
    }
    for (key, values) in deletions {
        if let (Some(Value::Array(items)), Value::Array(values)) = (original.get_mut(&key[DELETE_FROM.len()..]), values)
        {
            let gone: HashSet<Vec<u8>> = values.iter().map(json::encode).collect();
            items.retain(|item| !gone.contains(&json::encode(item)));
        }
    }
    Ok(original)
}

fn retain_keys(original: &mut Map, patch: &mut Map) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(directive("invalid patch format of retainKeys")) };
    let retained = |name: &str| keys.iter().any(|k| k.as_str() == Some(name));
    for (name, value) in patch.iter() {
        let exempt = value.is_null() || name.starts_with(DELETE_FROM) || name.starts_with(SET_ORDER);
        if !exempt && !retained(name) {
            return Err(directive("patch content doesn't match retainKeys list"));
        }
    }
    original.retain(|name, _| retained(name));
    Ok(())
}

/// Lists that come with an order: merged here, and taken out of the patch.
fn merge_ordered_lists(original: &mut Map, patch: &mut Map, ty: Option<&TypeRef>) -> Result<(), PatchError> {
    let orders: Vec<CompactString> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive_key in orders {
        let name = &directive_key[SET_ORDER.len()..];
        let Some(Value::Array(order)) = patch.remove(&directive_key) else {
            return Err(directive("invalid patch format of setElementOrder list"));
        };
        let field = field_of(ty, name);
        let key = &field.strategy.merge_key;
        let old = match original.get(name) {
            None | Some(Value::Null) => None,
            Some(Value::Array(items)) => Some(items.clone()),
            Some(_) => return Err(directive("expected a []interface {}, but received a map[string]interface {}")),
        };
        let new = match patch.get(name) {
            None => None,
            Some(Value::Array(items)) => Some(items.clone()),
            Some(_) => return Err(directive("expected a []interface {}, but received a map[string]interface {}")),
        };
        check_order(new.as_deref().unwrap_or_default(), &order, key)?;
        let merged = match (old.clone(), new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(new_value).collect(),
            (Some(old), Some(new)) if field.strategy.merge => merge_list(old, new, item_type(field.ty), key)?,
            (Some(_), Some(new)) => new,
        };
        let ordered = enforce_order(merged, &order, &old.unwrap_or_default(), key)?;
        original.insert(name, ordered);
        patch.remove(name);
    }
    Ok(())
}

/// The items of the patch must come in the order that it demands.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), PatchError> {
    let mut rest = order.iter();
    for item in patch.iter().filter(|item| item.get(PATCH).and_then(Value::as_str) != Some("delete")) {
        if !key.is_empty() && item.get(key).is_none() {
            return Err(no_merge_key(item, key));
        }
        if !rest.any(|ordered| same(ordered, item, key)) {
            return Err(directive(format!(
                "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                go_format_list(patch),
                &SET_ORDER[..SET_ORDER.len() - 1],
                go_format_list(order)
            )));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
}

/// What tells an item apart: its key's value, or its own, as text.
fn identity(item: &Value, key: &str) -> Option<Vec<u8>> {
    let value = if key.is_empty() { Some(item) } else { item.get(key) };
    value.map(json::encode)
}

/// Where in a list each item is; the first of equal ones counts.
struct Positions(HashMap<Vec<u8>, usize>);

impl Positions {
    fn of(list: &[Value], key: &str) -> Self {
        let mut positions = HashMap::with_capacity(list.len());
        for (i, item) in list.iter().enumerate() {
            if let Some(identity) = identity(item, key) {
                positions.entry(identity).or_insert(i);
            }
        }
        Positions(positions)
    }

    fn get(&self, item: &Value, key: &str) -> Option<usize> {
        self.0.get(&identity(item, key)?).copied()
    }
}

/// Merges the items of a list by key, or those of a list of scalars by value.
fn merge_list(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    ty: Option<&TypeRef>,
    key: &str,
) -> Result<Vec<Value>, PatchError> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    check_elements(&original, &patch)?;
    let server_order = original.clone();
    if !matches!(original.first().or(patch.first()), Some(Value::Object(_))) {
        let mut seen: HashSet<Vec<u8>> = original.iter().map(json::encode).collect();
        original.extend(patch.iter().filter(|item| seen.insert(json::encode(item))).cloned());
        return enforce_order(original, &patch, &server_order, "");
    }
    if key.is_empty() {
        return Err(directive("cannot merge lists without merge key"));
    }
    let (mut changes, mut replace) = (Vec::with_capacity(patch.len()), false);
    let mut deleted = HashSet::new();
    for item in patch {
        match item.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
            None => changes.push(item),
            Some("delete") => {
                let Some(identity) = identity(&item, key) else { return Err(no_merge_key(&item, key)) };
                deleted.insert(identity);
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(directive("merging lists cannot yet be specified in the patch")),
            Some(other) => {
                return Err(directive(format!("unknown patch type: {other} in map: {}", go_format(&item))));
            }
        }
    }
    if replace {
        return Ok(changes.into_iter().filter_map(new_value).collect());
    }
    if !deleted.is_empty() {
        original.retain(|item| identity(item, key).is_none_or(|identity| !deleted.contains(&identity)));
    }
    let order = changes.clone();
    let mut positions = Positions::of(&original, key);
    for change in changes {
        let Some(identity) = identity(&change, key) else { return Err(no_merge_key(&change, key)) };
        match (positions.0.entry(identity), change) {
            (Entry::Occupied(at), Value::Object(change)) => {
                let item = &mut original[*at.get()];
                let old = std::mem::take(item.make_object());
                *item = Value::Object(merge_map(old, change, ty)?);
            }
            (Entry::Vacant(slot), change) => {
                if let Some(item) = new_value(change) {
                    slot.insert(original.len());
                    original.push(item);
                }
            }
            (Entry::Occupied(_), _) => {}
        }
    }
    enforce_order(original, &order, &server_order, key)
}

/// All items must be of one kind, and no lists.
fn check_elements(original: &[Value], patch: &[Value]) -> Result<(), PatchError> {
    let mut first = None;
    for item in original.iter().chain(patch) {
        let kind = std::mem::discriminant(item);
        match first {
            None if matches!(item, Value::Array(_)) => return Err(directive("lists of lists are not supported")),
            None => first = Some(kind),
            Some(first) if first != kind => {
                return Err(directive(format!(
                    "list element types are not identical: [{} {}]",
                    go_format_list(original),
                    go_format_list(patch)
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Items that the patch names come in its order; the others keep their place between them as far as that can be.
fn enforce_order(
    merged: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    key: &str,
) -> Result<Vec<Value>, PatchError> {
    if !key.is_empty() {
        for item in merged.iter().chain(order) {
            if item.get(key).is_none() {
                return Err(no_merge_key(item, key));
            }
        }
    }
    let (wanted, served) = (Positions::of(order, key), Positions::of(server_order, key));
    let place = |item: &Value| (wanted.get(item, key), served.get(item, key));
    let all = merged.into_iter().map(|item| (place(&item), item));
    let (mut named, mut others): (Vec<_>, Vec<_>) = all.partition(|((wanted, _), _)| wanted.is_some());
    named.sort_by_key(|((wanted, _), _)| *wanted);
    // What the server did not have goes last.
    others.sort_by_key(|((_, served), _)| served.unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(((_, name), _)), Some(((_, other), _))) = (named.peek(), others.peek()) {
        let before = matches!((other, name), (Some(other), Some(name)) if other < name);
        out.extend(if before { others.next() } else { named.next() }.map(|(_, item)| item));
    }
    out.extend(named.map(|(_, item)| item));
    out.extend(others.map(|(_, item)| item));
    Ok(out)
}

/// A value that was not there before: its directives have nothing to direct, its nulls nothing to remove.
fn new_value(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => match map.get(PATCH).and_then(Value::as_str) {
            Some("delete") => None,
            _ => Some(Value::Object(without_directives(map))),
        },
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(new_value).filter(is_item).collect())),
        value => Some(value),
    }
}

/// `{$patch: replace}` alone is no item.
fn is_item(value: &Value) -> bool {
    !matches!(value, Value::Null)
}

fn without_directives(map: Map) -> Map {
    map.into_iter()
        .filter(|(key, value)| {
            !value.is_null()
                && key != PATCH
                && key != RETAIN_KEYS
                && !key.starts_with(SET_ORDER)
                && !key.starts_with(DELETE_FROM)
        })
        .filter_map(|(key, value)| Some((key, new_value(value)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Gvk;
    use crate::schema::Schema;

    fn run(kind: &str, target: &str, patch: &str) -> Result<String, PatchError> {
        let (group, kind) = kind.split_once('/').unwrap_or(("", kind));
        let ty = Schema::builtin().kind(&Gvk::new(group, "v1", kind)).unwrap();
        let mut value: Value = serde_json::from_str(target).unwrap();
        strategic_merge(&mut value, serde_json::from_str(patch).unwrap(), ty)?;
        Ok(serde_json::to_string(&value).unwrap())
    }

    #[track_caller]
    fn pod(target: &str, patch: &str, want: &str) {
        let wrap = |s: &str| format!(r#"{{"spec":{s}}}"#);
        assert_eq!(run("Pod", &wrap(target), &wrap(patch)), Ok(wrap(want)), "{patch}");
    }

    #[test]
    fn lists_merge_by_their_key() {
        pod(
            r#"{"containers":[{"image":"1","name":"one"},{"image":"2","name":"two"}]}"#,
            r#"{"containers":[{"name":"two","image":"2b"},{"name":"three"}]}"#,
            r#"{"containers":[{"image":"1","name":"one"},{"image":"2b","name":"two"},{"name":"three"}]}"#,
        );
        pod(
            r#"{"containers":[{"env":[{"name":"A"},{"name":"B"}],"name":"one"},{"name":"three"}]}"#,
            r#"{"containers":[{"name":"three","$patch":"delete"},{"name":"one","env":[{"name":"A","$patch":"delete"},{"name":"C"}]}]}"#,
            r#"{"containers":[{"env":[{"name":"C"},{"name":"B"}],"name":"one"}]}"#,
        );
        pod(
            r#"{"containers":[{"name":"one","ports":[{"containerPort":80},{"containerPort":81}]}]}"#,
            r#"{"containers":[{"name":"one","ports":[{"containerPort":81,"protocol":"UDP"},{"containerPort":80,"name":"web"}]}]}"#,
            r#"{"containers":[{"name":"one","ports":[{"containerPort":81,"protocol":"UDP"},{"containerPort":80,"name":"web"}]}]}"#,
        );
    }

    #[test]
    fn directives_order_replace_and_retain() {
        pod(
            r#"{"containers":[{"name":"one"},{"name":"two"}]}"#,
            r#"{"$setElementOrder/containers":[{"name":"two"},{"name":"one"}],"containers":[{"name":"one","image":"x"}]}"#,
            r#"{"containers":[{"name":"two"},{"image":"x","name":"one"}]}"#,
        );
        pod(
            r#"{"volumes":[{"emptyDir":{},"name":"v1"},{"configMap":{"name":"c"},"name":"v2"}]}"#,
            r#"{"volumes":[{"name":"v2","$retainKeys":["name","secret"],"secret":{"secretName":"s"}}]}"#,
            r#"{"volumes":[{"emptyDir":{},"name":"v1"},{"name":"v2","secret":{"secretName":"s"}}]}"#,
        );
        pod(
            r#"{"nodeSelector":{"a":"b"},"tolerations":[{"key":"t1"}],"volumes":[{"name":"v1"}]}"#,
            r#"{"nodeSelector":{"$patch":"delete"},"tolerations":[{"key":"t2"}],"volumes":[{"$patch":"replace"},{"name":"only"}]}"#,
            r#"{"nodeSelector":{},"tolerations":[{"key":"t2"}],"volumes":[{"name":"only"}]}"#,
        );
        assert_eq!(
            run(
                "ConfigMap",
                r#"{"metadata":{"finalizers":["a","b"],"labels":{"x":"1"}}}"#,
                r#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"],"$setElementOrder/finalizers":["c","b"],"finalizers":["c"],"labels":{"$patch":"replace","y":"2"}}}"#
            )
            .as_deref(),
            Ok(r#"{"metadata":{"finalizers":["c","b"],"labels":{"y":"2"}}}"#)
        );
    }

    #[test]
    fn null_removes_and_new_values_lose_their_directives() {
        pod(r#"{"hostname":"h","nodeName":"n"}"#, r#"{"hostname":null,"subdomain":null}"#, r#"{"nodeName":"n"}"#);
        pod(
            "{}",
            r#"{"containers":[{"name":"a","$setElementOrder/env":[],"env":[{"name":"x","$patch":"delete"}],"image":null}]}"#,
            r#"{"containers":[{"env":[],"name":"a"}]}"#,
        );
    }

    #[test]
    fn faults_are_in_upstreams_words() {
        let error = |target: &str, patch: &str| run("apps/Deployment", target, patch).unwrap_err().to_string();
        let live = r#"{"spec":{"strategy":{},"template":{"spec":{"containers":[{"name":"one"},{"name":"two"}]}}}}"#;
        assert_eq!(
            error(live, r#"{"spec":{"template":{"spec":{"containers":[{"image":"x"}]}}}}"#),
            "map: map[image:x] does not contain declared merge key: name"
        );
        assert_eq!(
            error(live, r#"{"spec":{"strategy":{"$patch":"explode"}}}"#),
            "unknown patch type: explode in map: map[$patch:explode]"
        );
        assert_eq!(
            error(
                live,
                r#"{"spec":{"template":{"spec":{"$setElementOrder/containers":[{"name":"two"}],"containers":[{"name":"one","image":"a"}]}}}}"#
            ),
            "The order in patch list:\n[map[image:a name:one]]\n doesn't match $setElementOrder list:\n[map[name:two]]\n"
        );
        assert_eq!(
            error(live, r#"{"spec":{"strategy":{"$retainKeys":["type"],"rollingUpdate":{}}}}"#),
            "patch content doesn't match retainKeys list"
        );
    }
}
