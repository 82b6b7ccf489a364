//! The walks over objects that server-side apply is made of: which fields an object has, how two objects differ, what
//! their merge is, and what is left when fields are taken out. The semantics are those of structured-merge-diff.

use std::collections::HashMap;

use compact_str::CompactString;

use super::fields::{FieldSet, Node, field, field_name, item, key};
use crate::schema::{ListKind, ListShape, Shape, Struct, TypeRef};
use crate::{Map, Value};

/// A type, and what its field says about taking it whole.
#[derive(Clone, Copy)]
pub(super) struct Typed<'t> {
    ty: &'t TypeRef,
    atomic: Option<bool>,
}

/// What a value is to the walks.
enum Atom<'t> {
    /// Owned as a whole: a scalar, or a list or map that is atomic.
    Leaf,
    Map(Fields<'t>),
    List(&'t ListShape),
}

/// How to find the types of the entries of an object.
#[derive(Clone, Copy)]
enum Fields<'t> {
    Struct(&'t Struct),
    /// Every key has this type.
    Keys(&'t TypeRef),
}

/// How two objects differ.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// What only the old one has.
    pub(super) removed: FieldSet,
    /// What only the new one has, or has otherwise.
    pub(super) changed: FieldSet,
}

impl<'t> Typed<'t> {
    pub(super) fn new(ty: &'t TypeRef) -> Self {
        Typed { ty, atomic: None }
    }

    fn atom(self, value: &Value) -> Atom<'t> {
        let whole = |by_type: bool| self.atomic.unwrap_or(by_type);
        match &self.ty.shape {
            Shape::Struct(shape) if !whole(shape.atomic) => Atom::Map(Fields::Struct(shape)),
            Shape::Map(shape) if !whole(shape.atomic) => Atom::Map(Fields::Keys(&shape.value)),
            Shape::List(list) if list.kind != ListKind::Atomic => Atom::List(list),
            // Without a schema, objects are told apart by their keys and lists are atomic.
            Shape::Deduced if matches!(value, Value::Object(_)) => Atom::Map(Fields::Keys(self.ty)),
            _ => Atom::Leaf,
        }
    }
}

impl<'t> Fields<'t> {
    /// The type of an entry; that of a field that the struct does not have is deduced from its value.
    fn get(self, name: &str) -> Typed<'t> {
        match self {
            Fields::Struct(shape) => match shape.field(name) {
                Some(field) => Typed { ty: &field.ty, atomic: field.atomic },
                None => Typed::new(deduced()),
            },
            Fields::Keys(ty) => Typed::new(ty),
        }
    }

    fn is_declared(self, name: &str) -> bool {
        matches!(self, Fields::Struct(shape) if shape.field(name).is_some())
    }
}

fn deduced() -> &'static TypeRef {
    static DEDUCED: std::sync::OnceLock<TypeRef> = std::sync::OnceLock::new();
    DEDUCED.get_or_init(TypeRef::deduced)
}

fn entries(value: Option<&Value>) -> &Map {
    value.unwrap_or(&Value::Null).entries()
}

fn items(value: Option<&Value>) -> &[Value] {
    value.unwrap_or(&Value::Null).items()
}

/// The path element of an item of a list that is not atomic. A key that the item lacks has its default, if it has one.
fn element(list: &ListShape, value: &Value) -> CompactString {
    let ListKind::Map(keys) = &list.kind else { return item(value) };
    let parts = keys.iter().filter_map(|name| {
        let value = match value.get(name) {
            Some(value) => value.clone(),
            None => list.item.field(name)?.default.clone().filter(|d| !d.is_empty_value())?,
        };
        Some((name.clone(), value))
    });
    key(parts.collect())
}

fn item_type(list: &ListShape) -> Typed<'_> {
    Typed::new(&list.item)
}

// === which fields an object has ===

/// The fields that an applied object has an opinion on.
pub(super) fn field_set(value: &Value, ty: Typed<'_>) -> FieldSet {
    let mut root = Node::default();
    collect(value, ty, &mut root);
    root.below
}

fn collect(value: &Value, ty: Typed<'_>, node: &mut Node) {
    match ty.atom(value) {
        Atom::Leaf => node.member = true,
        Atom::Map(fields) => {
            for (name, value) in value.entries().iter() {
                let mut below = Node::default();
                collect(value, fields.get(name), &mut below);
                let empty = matches!(value, Value::Object(map) if map.is_empty());
                below.member |= value.is_null() || empty || !fields.is_declared(name);
                node.below.put(field(name), below);
            }
        }
        Atom::List(list) => {
            for value in value.items() {
                let mut below = Node { member: true, ..Node::default() };
                collect(value, item_type(list), &mut below);
                node.below.put(element(list, value), below);
            }
        }
    }
}

// === how two objects differ ===

pub(super) fn compare(old: &Value, new: &Value, ty: Typed<'_>) -> Comparison {
    let Difference { removed, changed } = difference(Some(old), Some(new), ty);
    Comparison { removed: removed.below, changed: changed.below }
}

/// How two values at a path differ. Built from below, in the order of the elements: nothing is looked up in it.
#[derive(Debug, Default)]
struct Difference {
    removed: Node,
    changed: Node,
}

impl Difference {
    fn leaf(old: Option<&Value>, new: Option<&Value>) -> Self {
        let mut out = Difference::default();
        let side = if new.is_none() && old.is_some() { &mut out.removed } else { &mut out.changed };
        side.member = true;
        out
    }

    /// Adds what differs below. Elements come in their order.
    fn push(&mut self, element: impl FnOnce() -> CompactString, below: Difference) {
        match (below.removed.is_empty(), below.changed.is_empty()) {
            (true, true) => {}
            (true, false) => self.changed.below.push(element(), below.changed),
            (false, true) => self.removed.below.push(element(), below.removed),
            (false, false) => {
                let element = element();
                self.removed.below.push(element.clone(), below.removed);
                self.changed.below.push(element, below.changed);
            }
        }
    }

    /// Behind a map or a list that has been looked through: it has come or gone itself, too.
    fn whole(mut self, old: Option<&Value>, new: Option<&Value>) -> Self {
        self.changed.member |= old.is_none();
        self.removed.member |= new.is_none() && old.is_some();
        self
    }
}

fn difference(old: Option<&Value>, new: Option<&Value>, ty: Typed<'_>) -> Difference {
    if old == new {
        return Difference::default();
    }
    let null = &Value::Null;
    let (left, right) = (ty.atom(old.unwrap_or(null)), ty.atom(new.unwrap_or(null)));
    match (left, right) {
        (Atom::Map(fields), Atom::Leaf) | (Atom::Leaf, Atom::Map(fields)) => {
            // Without a schema a value may turn into another kind of value; absent and null ones turn into any.
            let absent = |value: Option<&Value>| value.is_none_or(Value::is_null);
            let mut out = map_difference(old, new, fields);
            out.changed.member |= !absent(old) && !absent(new);
            out
        }
        (Atom::Map(fields), _) => map_difference(old, new, fields),
        (Atom::List(list), _) => list_difference(old, new, list),
        (Atom::Leaf, _) => Difference::leaf(old, new),
    }
}

fn map_difference(old: Option<&Value>, new: Option<&Value>, fields: Fields<'_>) -> Difference {
    let (left, right) = (entries(old), entries(new));
    if left.is_empty() && right.is_empty() {
        return Difference::leaf(old, new);
    }
    let mut out = Difference::default();
    for (name, old, new) in left.beside(right) {
        out.push(|| field(name), difference(old, new, fields.get(name)));
    }
    out.whole(old, new)
}

/// The items of a list with their elements, in the order of these.
type Elements<'v> = [(CompactString, &'v Value)];

fn list_difference(old: Option<&Value>, new: Option<&Value>, list: &ListShape) -> Difference {
    if items(old).is_empty() && items(new).is_empty() {
        return Difference::leaf(old, new);
    }
    let in_order = |value| {
        let mut elements: Vec<(CompactString, &Value)> = items(value).iter().map(|v| (element(list, v), v)).collect();
        elements.sort_by(|(a, _), (b, _)| a.cmp(b));
        elements
    };
    let (left, right) = (in_order(old), in_order(new));
    let (mut left, mut right) = (left.as_slice(), right.as_slice());
    let mut out = Difference::default();
    while let Some((element, _)) = [left.first(), right.first()].into_iter().flatten().min_by(|a, b| a.0.cmp(&b.0)) {
        let (old, new) = (take_equal(&mut left, element), take_equal(&mut right, element));
        out.push(|| element.clone(), item_difference(old, new, item_type(list)));
    }
    out.whole(old, new)
}

/// Takes the items of an element from the front of a list.
fn take_equal<'s, 'v>(side: &mut &'s Elements<'v>, element: &str) -> &'s Elements<'v> {
    let many = side.iter().take_while(|(e, _)| e == element).count();
    let (taken, rest) = side.split_at(many);
    *side = rest;
    taken
}

/// Objects from before a rule may have items twice: those are compared as one.
fn item_difference<'v>(old: &Elements<'v>, new: &Elements<'v>, ty: Typed<'_>) -> Difference {
    let first = |side: &Elements<'v>| side.first().map(|(_, value)| *value);
    let twice = |side: &Elements<'v>| side.len() > 1;
    let mut out = match (twice(old), twice(new)) {
        (false, false) => return difference(first(old), first(new), ty),
        (true, true) => Difference::default(),
        (true, false) => difference(None, first(new), ty),
        (false, true) => difference(first(old), None, ty),
    };
    if twice(new) {
        out.changed.member |= old != new;
    } else {
        out.removed.member = true;
    }
    out
}

// === their merge ===

/// `live` with everything that `applied` says.
pub(super) fn merge(live: &Value, applied: &Value, ty: Typed<'_>) -> Value {
    merged(Some(live), Some(applied), ty).unwrap_or_default()
}

fn merged(live: Option<&Value>, applied: Option<&Value>, ty: Typed<'_>) -> Option<Value> {
    let Some(new) = applied else { return live.cloned() };
    let Some(old) = live else { return Some(new.clone()) };
    let atom = ty.atom(if new.is_null() { old } else { new });
    match atom {
        Atom::Leaf => Some(new.clone()),
        Atom::Map(fields) => {
            let (left, right) = (old.entries(), new.entries());
            if left.is_empty() || right.is_empty() {
                return Some(if left.is_empty() { new.clone() } else { old.clone() });
            }
            let mut out: Vec<(CompactString, Value)> = Vec::with_capacity(left.len() + right.len());
            for name in left.keys().chain(right.keys().filter(|name| !left.contains_key(name))) {
                if let Some(value) = merged(left.get(name), right.get(name), fields.get(name)) {
                    out.push((name.clone(), value));
                }
            }
            Some(Value::Object(Map::from_entries(out).0))
        }
        Atom::List(list) => {
            let (left, right) = (old.items(), new.items());
            if left.is_empty() || right.is_empty() {
                return Some(if left.is_empty() { new.clone() } else { old.clone() });
            }
            Some(Value::Array(merged_list(left, right, list)))
        }
    }
}

/// The applied items come in their order; the others stay where they were between them.
fn merged_list(live: &[Value], applied: &[Value], list: &ListShape) -> Vec<Value> {
    let elements = |values: &[Value]| values.iter().map(|v| element(list, v)).collect::<Vec<_>>();
    let (left, right) = (elements(live), elements(applied));
    let mut in_left: HashMap<&str, Option<&Value>> = HashMap::with_capacity(left.len());
    for (element, value) in left.iter().zip(live) {
        // Of what is there twice it cannot be said which one is meant.
        in_left.entry(element).and_modify(|v| *v = None).or_insert(Some(value));
    }
    let in_right: HashMap<&str, usize> = right.iter().enumerate().map(|(i, e)| (e.as_str(), i)).collect();
    let mut shared = right.iter().filter(|e| in_left.contains_key(e.as_str())).peekable();
    let mut done: Vec<bool> = vec![false; right.len()];
    let mut out = Vec::with_capacity(left.len() + right.len());
    let take = |i: usize| merged(in_left.get(right[i].as_str()).copied().flatten(), Some(&applied[i]), item_type(list));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            if left[l] == right[r] {
                out.extend(take(r));
                done[r] = true;
                l += 1;
                r += 1;
                shared.next();
                continue;
            }
            if in_right.contains_key(left[l].as_str()) && shared.peek().is_some_and(|next| **next != left[l]) {
                // Shared, but not the one whose turn it is.
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            match in_right.get(left[l].as_str()) {
                None => {
                    out.push(live[l].clone());
                    l += 1;
                    continue;
                }
                Some(i) if done[*i] => l += 1,
                Some(_) => {}
            }
        }
        if r < right.len() {
            out.extend(take(r));
            done[r] = true;
            if shared.peek().is_some_and(|next| **next == right[r]) {
                shared.next();
            }
            r += 1;
        }
    }
    out
}

// === what is left without some fields ===

/// The object without the fields of a set; what that leaves empty is gone as well (`null` within lists and maps).
pub(super) fn remove(value: &Value, fields: &FieldSet, ty: Typed<'_>) -> Value {
    match ty.atom(value) {
        Atom::Leaf => value.clone(),
        Atom::Map(types) => {
            let Value::Object(map) = value else { return value.clone() };
            let mut out = Vec::with_capacity(map.len());
            for (name, value) in map.iter() {
                match fields.get(&field(name)) {
                    None => out.push((name.clone(), value.clone())),
                    Some(node) if node.member => {}
                    Some(node) => match remove(value, &node.below, types.get(name)) {
                        Value::Null => {}
                        left => out.push((name.clone(), left)),
                    },
                }
            }
            if out.is_empty() && !map.is_empty() { Value::Null } else { Value::Object(Map::from_entries(out).0) }
        }
        Atom::List(list) => {
            let Value::Array(values) = value else { return value.clone() };
            let left = values.iter().filter_map(|value| match fields.get(&element(list, value)) {
                None => Some(value.clone()),
                Some(node) if node.member => None,
                Some(node) => Some(remove(value, &node.below, item_type(list))),
            });
            let left: Vec<Value> = left.collect();
            if left.is_empty() && !values.is_empty() { Value::Null } else { Value::Array(left) }
        }
    }
}

/// The set with the declared fields that something below them is in.
pub(super) fn with_named(set: &FieldSet, ty: Typed<'_>) -> FieldSet {
    let mut out = FieldSet::default();
    for (element, node) in set.iter() {
        let name = field_name(element);
        let (declared, below) = match (&ty.ty.shape, name) {
            (Shape::Struct(shape), Some(name)) => {
                let fields = Fields::Struct(shape);
                (fields.is_declared(name), fields.get(name))
            }
            (Shape::Map(shape), Some(_)) => (false, Typed::new(&shape.value)),
            (Shape::List(list), None) => (false, item_type(list)),
            _ => (false, Typed::new(deduced())),
        };
        let member = node.member || (declared && !node.below.is_empty());
        out.put(element.clone(), Node { member, below: with_named(&node.below, below) });
    }
    out
}

/// Draws what lies below atomic lists and maps up to these, which may not have been atomic once.
pub(super) fn draw_to_atomics(set: &mut FieldSet, value: &Value, ty: Typed<'_>) {
    for (element, node) in set.iter_mut() {
        let (below, value) = match (ty.atom(value), field_name(element)) {
            (Atom::Map(fields), Some(name)) => (fields.get(name), &value[name]),
            (Atom::List(list), None) => (item_type(list), &Value::Null),
            _ => continue,
        };
        let whole = matches!(below.atom(value), Atom::Leaf) && !matches!(below.ty.shape, Shape::Deduced);
        if whole && !node.below.is_empty() {
            *node = Node { member: true, below: FieldSet::default() };
        } else {
            draw_to_atomics(&mut node.below, value, below);
        }
    }
}

// === is it an object of that type ===

/// What is wrong with an applied object, as upstream words it: `.spec.x: field not declared in schema`.
pub(super) fn faults(value: &Value, ty: Typed<'_>) -> Vec<String> {
    let mut checker = Checker { path: String::new(), faults: Vec::new() };
    checker.check(value, ty);
    checker.faults
}

struct Checker {
    path: String,
    faults: Vec<String>,
}

impl Checker {
    fn fault(&mut self, what: &str) {
        if self.faults.len() < 100 {
            let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
            self.faults.push(format!("{path}{what}"));
        }
    }

    fn within(&mut self, element: &CompactString, check: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        let mut one = FieldSet::default();
        one.insert(std::slice::from_ref(element));
        self.path.push_str(&one.paths().concat());
        check(self);
        self.path.truncate(length);
    }

    fn check(&mut self, value: &Value, ty: Typed<'_>) {
        match (&ty.ty.shape, value) {
            (_, Value::Null) | (Shape::Any | Shape::Deduced | Shape::SchemaOr(..), _) => {}
            (Shape::Struct(shape), Value::Object(map)) => {
                for (name, value) in map.iter() {
                    self.within(&field(name), |checker| match shape.field(name) {
                        Some(field) => checker.check(value, Typed { ty: &field.ty, atomic: field.atomic }),
                        None if shape.preserve_unknown => {}
                        None => checker.fault("field not declared in schema"),
                    });
                }
            }
            (Shape::Map(shape), Value::Object(map)) => {
                for (name, value) in map.iter() {
                    self.within(&field(name), |checker| checker.check(value, Typed::new(&shape.value)));
                }
            }
            (Shape::List(list), Value::Array(values)) => self.list(values, list),
            (Shape::Struct(_) | Shape::Map(_), other) => self.fault(&format!("expected map, got {}", got(other))),
            (Shape::List(_), other) => self.fault(&format!("expected list, got {}", got(other))),
            (Shape::String(_) | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration, other) => {
                if other.as_str().is_none() {
                    self.fault(&format!("expected string, got {}", got(other)));
                }
            }
            (Shape::Int32 | Shape::Int64 | Shape::Float, other) => {
                if other.as_f64().is_none() {
                    self.fault(&format!("expected numeric (int or float), got {}", go_type(other)));
                }
            }
            (Shape::Bool, other) => {
                if other.as_bool().is_none() {
                    self.fault(&format!("expected boolean, got {}", got(other)));
                }
            }
            (Shape::Quantity | Shape::IntOrString, other) => {
                if matches!(other, Value::Array(_) | Value::Object(_)) {
                    self.fault(&format!("expected any scalar, got {}", got(other)));
                }
            }
        }
    }

    fn list(&mut self, values: &[Value], list: &ListShape) {
        let mut seen = std::collections::HashSet::with_capacity(values.len());
        for (i, value) in values.iter().enumerate() {
            let key = match &list.kind {
                ListKind::Atomic => compact_str::format_compact!("i:{i}"),
                ListKind::Set if matches!(value, Value::Array(_) | Value::Object(_) | Value::Null) => {
                    self.fault(&format!("element {i}: associative list without keys has an element that's an explicit null or not a scalar"));
                    continue;
                }
                ListKind::Map(_) if !matches!(value, Value::Object(_)) => {
                    self.fault(&format!("element {i}: associative list with keys may not have non-map elements"));
                    continue;
                }
                ListKind::Set | ListKind::Map(_) => element(list, value),
            };
            if !seen.insert(key.clone()) {
                let mut one = FieldSet::default();
                one.insert(std::slice::from_ref(&key));
                self.fault(&format!("duplicate entries for key {}", one.paths().concat()));
            }
            self.within(&key, |checker| checker.check(value, item_type(list)));
        }
    }
}

fn got(value: &Value) -> String {
    let text = String::from_utf8_lossy(&crate::codec::json::encode(value)).into_owned();
    format!("&{{{}}}", text.chars().take(200).collect::<String>())
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int64",
        Value::Float(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
