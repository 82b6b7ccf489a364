//! Sets of fields, in the form of `fieldsV1`.
//!
//! A path element is the text that `fieldsV1` has for it: `f:spec`, `k:{"name":"web"}`, `v:"x"`, `i:3`. A field can be in
//! the set itself, or only some of what is below it.

use std::cmp::Ordering;

use compact_str::{CompactString, format_compact};

use crate::codec::json;
use crate::{Map, Value};

/// A set of fields of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(Vec<(CompactString, Node)>);

/// What is in the set at some path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// The path itself.
    pub(super) member: bool,
    pub(super) below: FieldSet,
}

/// The element of a field of a struct or a key of a map.
pub(super) fn field(name: &str) -> CompactString {
    let mut text = CompactString::with_capacity(name.len() + 2);
    text.push_str("f:");
    text.push_str(name);
    text
}

/// The name of a field or a key, if that is what the element is.
pub(super) fn field_name(element: &str) -> Option<&str> {
    element.strip_prefix("f:")
}

/// The element of an item of a list that is told apart by these entries.
pub(super) fn key(entries: Map) -> CompactString {
    let mut text = CompactString::const_new("k:");
    text.push_str(&String::from_utf8_lossy(&json::encode(&Value::Object(entries))));
    text
}

/// The element of an item of a set.
pub(super) fn item(value: &Value) -> CompactString {
    let mut text = CompactString::const_new("v:");
    text.push_str(&String::from_utf8_lossy(&json::encode(value)));
    text
}

impl Node {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// The set of some fields, each given by the names on its path: `metadata.labels`.
    #[must_use]
    pub fn of(paths: &[&str]) -> Self {
        let mut set = FieldSet::default();
        for path in paths {
            let elements: Vec<CompactString> = path.split('.').map(field).collect();
            set.insert(&elements);
        }
        set
    }

    /// The set of one field, given by the elements on its path.
    pub(super) fn of_path(path: &[CompactString]) -> Self {
        let mut set = FieldSet::default();
        set.insert(path);
        set
    }

    /// Whether a path itself is in the set.
    pub(super) fn contains(&self, path: &[CompactString]) -> bool {
        match path {
            [] => false,
            [last] => self.get(last).is_some_and(|node| node.member),
            [first, rest @ ..] => self.get(first).is_some_and(|node| node.below.contains(rest)),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, element: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(e, _)| e.as_str().cmp(element))
    }

    pub(super) fn get(&self, element: &str) -> Option<&Node> {
        self.find(element).ok().map(|i| &self.0[i].1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&CompactString, &Node)> {
        self.0.iter().map(|(e, node)| (e, node))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Node)> {
        self.0.iter_mut().map(|(e, node)| (e.as_str(), node))
    }

    /// The node at an element, made if need be. Whoever asks puts something into it.
    fn entry(&mut self, element: &CompactString) -> &mut Node {
        let i = match self.find(element) {
            Ok(i) => i,
            Err(i) => {
                self.0.insert(i, (element.clone(), Node::default()));
                i
            }
        };
        &mut self.0[i].1
    }

    /// Adds a node, unless there is nothing in it.
    pub(super) fn put(&mut self, element: CompactString, node: Node) {
        if node.is_empty() {
        } else if self.0.last().is_none_or(|(last, _)| *last < element) {
            self.push(element, node);
        } else {
            match self.find(&element) {
                Ok(i) => self.0[i].1 = union_nodes(&self.0[i].1, &node),
                Err(i) => self.0.insert(i, (element, node)),
            }
        }
    }

    /// Adds a node with something in it behind all that are there.
    pub(super) fn push(&mut self, element: CompactString, node: Node) {
        debug_assert!(self.0.last().is_none_or(|(last, _)| *last < element), "{element} is not the last one");
        self.0.push((element, node));
    }

    pub(super) fn insert(&mut self, path: &[CompactString]) {
        let Some((last, parents)) = path.split_last() else { return };
        let at = parents.iter().fold(self, |at, element| &mut at.entry(element).below);
        at.entry(last).member = true;
    }

    /// Keeps what a function makes of each node that is in this set or in the other.
    fn zip(&self, other: &FieldSet, f: impl Fn(Option<&Node>, Option<&Node>) -> Node + Copy) -> FieldSet {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut out = Vec::new();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return FieldSet(out),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((l, _)), Some((r, _))) => l.cmp(r),
            };
            let l = if order == Ordering::Greater { None } else { left.next() };
            let r = if order == Ordering::Less { None } else { right.next() };
            let node = f(l.map(|(_, node)| node), r.map(|(_, node)| node));
            if let (false, Some((element, _))) = (node.is_empty(), l.or(r)) {
                out.push((element.clone(), node));
            }
        }
    }

    #[must_use]
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        self.zip(other, |l, r| match (l, r) {
            (Some(l), Some(r)) => union_nodes(l, r),
            (l, r) => l.or(r).cloned().unwrap_or_default(),
        })
    }

    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.zip(other, |l, r| match (l, r) {
            (Some(l), Some(r)) => Node { member: l.member && r.member, below: l.below.intersection(&r.below) },
            _ => Node::default(),
        })
    }

    /// What is in this set and not in the other, path by path.
    #[must_use]
    pub fn difference(mut self, other: &FieldSet) -> FieldSet {
        self.subtract(other);
        self
    }

    /// Leaves what is not in the other, path by path.
    pub fn subtract(&mut self, other: &FieldSet) {
        if other.is_empty() {
            return;
        }
        self.0.retain_mut(|(element, node)| {
            if let Some(other) = other.get(element) {
                node.member &= !other.member;
                node.below.subtract(&other.below);
            }
            !node.is_empty()
        });
    }

    /// What is in this set and neither in the other nor below something that is in the other.
    #[must_use]
    pub fn difference_below(mut self, other: &FieldSet) -> FieldSet {
        self.subtract_below(other);
        self
    }

    fn subtract_below(&mut self, other: &FieldSet) {
        if other.is_empty() {
            return;
        }
        self.0.retain_mut(|(element, node)| match other.get(element) {
            Some(other) if other.member => false,
            Some(other) => {
                node.below.subtract_below(&other.below);
                !node.is_empty()
            }
            None => true,
        });
    }

    /// Every path in the set as messages show it (`.spec.ports[port=80]`): at each level the fields themselves come first.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect_paths("", &mut out);
        out
    }

    fn collect_paths(&self, prefix: &str, out: &mut Vec<String>) {
        for (element, node) in &self.0 {
            if node.member {
                out.push(format!("{prefix}{}", shown(element)));
            }
        }
        for (element, node) in &self.0 {
            if !node.below.is_empty() {
                node.below.collect_paths(&format!("{prefix}{}", shown(element)), out);
            }
        }
    }

    /// The object that `fieldsV1` is.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let entries = self.0.iter().map(|(element, node)| {
            let mut below = node.below.to_value();
            if node.member && !node.below.is_empty() {
                below.make_object().insert(".", Value::object());
            }
            (element.clone(), below)
        });
        Value::Object(entries.collect())
    }

    /// From `fieldsV1`. `None` for what is none.
    #[must_use]
    pub fn from_value(value: &Value) -> Option<FieldSet> {
        let mut set = FieldSet::default();
        for (element, below) in value.as_object()?.iter().filter(|(element, _)| *element != ".") {
            let member = below.entries().is_empty() || below.get(".").is_some();
            let node = Node { member, below: FieldSet::from_value(below)? };
            set.put(canonical(element)?, node);
        }
        Some(set)
    }
}

fn union_nodes(l: &Node, r: &Node) -> Node {
    Node { member: l.member || r.member, below: l.below.union(&r.below) }
}

/// The text that we would write for an element that somebody else wrote.
fn canonical(element: &str) -> Option<CompactString> {
    let (kind, rest) = element.split_once(':')?;
    match kind {
        "f" => Some(element.into()),
        "k" => match json::value(rest.as_bytes()).ok()? {
            Value::Object(entries) => Some(key(entries)),
            _ => None,
        },
        "v" => Some(item(&json::value(rest.as_bytes()).ok()?)),
        "i" => rest.parse::<i64>().ok().map(|i| format_compact!("i:{i}")),
        _ => None,
    }
}

/// An element as messages show it.
fn shown(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "k" => {
            let entries = json::value(rest.as_bytes()).unwrap_or_default();
            let pairs =
                entries.entries().iter().map(|(k, v)| format!("{k}={}", String::from_utf8_lossy(&json::encode(v))));
            format!("[{}]", pairs.collect::<Vec<_>>().join(","))
        }
        "v" => format!("[={rest}]"),
        "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: &str) -> FieldSet {
        FieldSet::from_value(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[track_caller]
    fn check(got: &FieldSet, want: &str) {
        assert_eq!(serde_json::to_string(&got.to_value()).unwrap(), want);
    }

    #[test]
    fn sets_are_read_and_written_as_fields_v1() {
        let text = r#"{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:ports":{"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:port":{}}}}}"#;
        check(&set(text), text);
        check(&set(r#"{"k:{ \"b\":1, \"a\":2 }":{}}"#), r#"{"k:{\"a\":2,\"b\":1}":{}}"#);
        assert_eq!(
            set(text).paths(),
            [
                ".metadata.labels",
                ".metadata.labels.a",
                r#".spec.ports[port=80,protocol="TCP"]"#,
                r#".spec.ports[port=80,protocol="TCP"].port"#
            ]
        );
        assert_eq!(FieldSet::from_value(&Value::from([("x", Value::object())])), None);
    }

    #[test]
    fn set_algebra_works_path_by_path() {
        let a = set(r#"{"f:a":{".":{},"f:x":{},"f:y":{}},"f:b":{}}"#);
        let b = set(r#"{"f:a":{"f:x":{}},"f:c":{}}"#);
        check(&a.union(&b), r#"{"f:a":{".":{},"f:x":{},"f:y":{}},"f:b":{},"f:c":{}}"#);
        check(&a.intersection(&b), r#"{"f:a":{"f:x":{}}}"#);
        check(&a.clone().difference(&b), r#"{"f:a":{".":{},"f:y":{}},"f:b":{}}"#);
        check(&a.clone().difference_below(&FieldSet::of(&["a"])), r#"{"f:b":{}}"#);
        check(&a.clone().difference(&FieldSet::of(&["a"])), r#"{"f:a":{"f:x":{},"f:y":{}},"f:b":{}}"#);
        assert!(a.clone().difference(&a).is_empty());
    }
}
