//! The tree that an API object is while somebody changes it.
//!
//! Objects at rest are bytes; they become a [`Value`] only on the write path. Short strings and keys (up to 24 bytes, which
//! all common field names are) are stored inline, so that a tree costs few allocations.

use std::cmp::Ordering;
use std::ops::Index;

use compact_str::CompactString;

/// A JSON-like value. Integers and floats are kept apart as Kubernetes' own decoder does.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(CompactString),
    Array(Vec<Value>),
    Object(Map),
}

/// Keys and values, sorted by key, no key twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map(Vec<(CompactString, Value)>);

static NULL: Value = Value::Null;
static EMPTY: Map = Map::EMPTY;

// === impl Value ===

impl Value {
    #[must_use]
    pub fn object() -> Self {
        Value::Object(Map::new())
    }

    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(i) => Some(*i),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(f) => Some(*f),
            #[expect(clippy::cast_precision_loss, reason = "that is what asking for a float means")]
            Value::Int(i) => Some(*i as f64),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_array(&self) -> Option<&Vec<Value>> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }

    pub fn as_array_mut(&mut self) -> Option<&mut Vec<Value>> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Value::Object(m) => Some(m),
            _ => None,
        }
    }

    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        match self {
            Value::Object(m) => Some(m),
            _ => None,
        }
    }

    /// The value under `key` of an object. `None` for what is absent; a present `null` is `Some(Null)`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_object()?.get(key)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.as_object_mut()?.get_mut(key)
    }

    /// The value at the end of a path of keys; [`Value::Null`] when any of them is absent.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> &Value {
        path.iter().try_fold(self, |v, key| v.get(key)).unwrap_or(&NULL)
    }

    /// The string at a path; empty when absent or not a string.
    #[must_use]
    pub fn str_at(&self, path: &[&str]) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    /// The elements, none for anything but an array.
    #[must_use]
    pub fn items(&self) -> &[Value] {
        self.as_array().map_or(&[], Vec::as_slice)
    }

    pub fn items_mut(&mut self) -> &mut [Value] {
        self.as_array_mut().map_or(&mut [], Vec::as_mut_slice)
    }

    /// The entries, none for anything but an object.
    #[must_use]
    pub fn entries(&self) -> &Map {
        self.as_object().unwrap_or(&EMPTY)
    }

    /// The object in this value, which becomes an empty one if it was anything else.
    pub fn make_object(&mut self) -> &mut Map {
        if !matches!(self, Value::Object(_)) {
            *self = Value::object();
        }
        match self {
            Value::Object(m) => m,
            _ => unreachable!("made an object above"),
        }
    }

    /// The array in this value, which becomes an empty one if it was anything else.
    pub fn make_array(&mut self) -> &mut Vec<Value> {
        if !matches!(self, Value::Array(_)) {
            *self = Value::Array(Vec::new());
        }
        match self {
            Value::Array(a) => a,
            _ => unreachable!("made an array above"),
        }
    }

    /// The value at a path, with objects made on the way where there are none.
    pub fn entry(&mut self, path: &[&str]) -> &mut Value {
        path.iter().fold(self, |v, key| v.make_object().entry(key))
    }

    /// Sets the value at a path, making the objects on the way.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        *self.entry(path) = value.into();
    }

    /// Sets the value at a path if nothing (or `null`) is there.
    pub fn set_default(&mut self, path: &[&str], value: impl Into<Value>) {
        let at = self.entry(path);
        if at.is_null() {
            *at = value.into();
        }
    }

    /// Removes and returns what is at a path.
    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let mut at = self;
        for key in parents {
            at = at.get_mut(key)?;
        }
        at.as_object_mut()?.remove(last)
    }

    /// What Go's zero value test (`omitempty`) sees as empty.
    #[must_use]
    pub fn is_empty_value(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Int(i) => *i == 0,
            Value::Float(f) => *f == 0.0,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(m) => m.is_empty(),
        }
    }
}

impl Index<&str> for Value {
    type Output = Value;

    /// [`Value::Null`] when the key is absent.
    fn index(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&NULL)
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Value::String(s.into())
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Value::String(s.into())
    }
}

impl From<CompactString> for Value {
    fn from(s: CompactString) -> Self {
        Value::String(s)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Value::Bool(b)
    }
}

impl From<i64> for Value {
    fn from(i: i64) -> Self {
        Value::Int(i)
    }
}

impl From<i32> for Value {
    fn from(i: i32) -> Self {
        Value::Int(i.into())
    }
}

impl From<f64> for Value {
    fn from(f: f64) -> Self {
        Value::Float(f)
    }
}

impl From<Vec<Value>> for Value {
    fn from(a: Vec<Value>) -> Self {
        Value::Array(a)
    }
}

impl From<Map> for Value {
    fn from(m: Map) -> Self {
        Value::Object(m)
    }
}

impl<const N: usize> From<[(&str, Value); N]> for Value {
    fn from(entries: [(&str, Value); N]) -> Self {
        Value::Object(entries.into_iter().map(|(k, v)| (CompactString::from(k), v)).collect())
    }
}

impl From<serde_json::Value> for Value {
    fn from(v: serde_json::Value) -> Self {
        match v {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(b),
            serde_json::Value::Number(n) => {
                n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::INFINITY)), Value::Int)
            }
            serde_json::Value::String(s) => Value::String(s.into()),
            serde_json::Value::Array(a) => Value::Array(a.into_iter().map(Value::from).collect()),
            serde_json::Value::Object(m) => {
                Value::Object(m.into_iter().map(|(k, v)| (CompactString::from(k), Value::from(v))).collect())
            }
        }
    }
}

// === impl Map ===

impl Map {
    pub const EMPTY: Map = Map(Vec::new());

    #[must_use]
    pub fn new() -> Self {
        Map(Vec::new())
    }

    #[must_use]
    pub fn with_capacity(n: usize) -> Self {
        Map(Vec::with_capacity(n))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(k, _)| k.as_str().cmp(key))
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.find(key).ok().map(|i| &self.0[i].1)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.find(key).ok().map(|i| &mut self.0[i].1)
    }

    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.find(key).is_ok()
    }

    /// Inserts or replaces; returns what was there.
    pub fn insert(&mut self, key: impl Into<CompactString>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        match self.find(&key) {
            Ok(i) => Some(std::mem::replace(&mut self.0[i].1, value)),
            Err(i) => {
                self.0.insert(i, (key, value));
                None
            }
        }
    }

    /// The value under `key`, `null` inserted first if there is none.
    pub fn entry(&mut self, key: &str) -> &mut Value {
        let i = match self.find(key) {
            Ok(i) => i,
            Err(i) => {
                self.0.insert(i, (key.into(), Value::Null));
                i
            }
        };
        &mut self.0[i].1
    }

    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.find(key).ok().map(|i| self.0.remove(i).1)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value) -> bool) {
        self.0.retain_mut(|(k, v)| keep(k, v));
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&CompactString, &Value)> + ExactSizeIterator {
        self.0.iter().map(|(k, v)| (k, v))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&CompactString, &mut Value)> {
        self.0.iter_mut().map(|(k, v)| (&*k, v))
    }

    pub fn keys(&self) -> impl ExactSizeIterator<Item = &CompactString> {
        self.0.iter().map(|(k, _)| k)
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = &Value> {
        self.0.iter().map(|(_, v)| v)
    }

    /// The keys of both maps in their order, with what either has for them.
    pub(crate) fn beside<'m>(
        &'m self,
        other: &'m Map,
    ) -> impl Iterator<Item = (&'m str, Option<&'m Value>, Option<&'m Value>)> {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        std::iter::from_fn(move || {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((l, _)), Some((r, _))) => l.cmp(r),
            };
            let l = if order.is_gt() { None } else { left.next() };
            let r = if order.is_lt() { None } else { right.next() };
            let (name, _) = l.or(r)?;
            Some((name.as_str(), l.map(|(_, v)| v), r.map(|(_, v)| v)))
        })
    }

    /// Takes entries in any order; of equal keys the last one stays. Returns the keys that came more than once.
    pub fn from_entries(mut entries: Vec<(CompactString, Value)>) -> (Self, Vec<CompactString>) {
        let mut duplicates = Vec::new();
        if !entries.is_sorted_by(|a, b| a.0 < b.0) {
            entries.sort_by(|a, b| a.0.cmp(&b.0)); // stable: equal keys keep their order
            entries.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    std::mem::swap(&mut later.1, &mut kept.1);
                    if duplicates.last() != Some(&kept.0) {
                        duplicates.push(kept.0.clone());
                    }
                }
                same
            });
        }
        (Map(entries), duplicates)
    }
}

impl FromIterator<(CompactString, Value)> for Map {
    fn from_iter<I: IntoIterator<Item = (CompactString, Value)>>(iter: I) -> Self {
        Map::from_entries(iter.into_iter().collect()).0
    }
}

impl IntoIterator for Map {
    type Item = (CompactString, Value);
    type IntoIter = std::vec::IntoIter<(CompactString, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = &'a (CompactString, Value);
    type IntoIter = std::slice::Iter<'a, (CompactString, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

// === serde ===

impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => s.serialize_unit(),
            Value::Bool(b) => s.serialize_bool(*b),
            Value::Int(i) => s.serialize_i64(*i),
            Value::Float(f) => s.serialize_f64(*f),
            Value::String(v) => s.serialize_str(v),
            Value::Array(a) => s.collect_seq(a),
            Value::Object(m) => m.serialize(s),
        }
    }
}

impl serde::Serialize for Map {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(k, v)| (k, v)))
    }
}

/// Without a schema: duplicate keys are accepted, the last one stays. The codecs report them.
impl<'de> serde::Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> serde::de::Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        #[expect(clippy::cast_precision_loss, reason = "beyond i64, JSON numbers are floats to Kubernetes")]
        Ok(i64::try_from(v).map_or(Value::Float(v as f64), Value::Int))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.into()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v.into()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(1024));
        while let Some(v) = seq.next_element()? {
            items.push(v);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::with_capacity(map.size_hint().unwrap_or(8).min(1024));
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Object(Map::from_entries(entries).0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_out_sorted_and_the_last_duplicate_stays() {
        let v: Value = serde_json::from_str(r#"{"b":1,"a":{"y":[1.5,null]},"b":2}"#).unwrap();
        assert_eq!(serde_json::to_string(&v).unwrap(), r#"{"a":{"y":[1.5,null]},"b":2}"#);
        let (map, twice) =
            Map::from_entries(vec![("b".into(), 1.into()), ("a".into(), 0.into()), ("b".into(), 2.into())]);
        assert_eq!(map.get("b"), Some(&Value::Int(2)));
        assert_eq!(twice, ["b"]);
    }

    #[test]
    fn paths_read_write_and_remove() {
        let mut v = Value::Null;
        v.set(&["metadata", "labels", "app"], "web");
        v.set_default(&["metadata", "labels", "app"], "other");
        v.set_default(&["spec", "replicas"], 1);
        assert_eq!(v.str_at(&["metadata", "labels", "app"]), "web");
        assert_eq!(v["spec"]["replicas"].as_i64(), Some(1));
        assert!(v.at(&["spec", "none", "deeper"]).is_null());
        assert_eq!(v.remove(&["metadata", "labels", "app"]), Some("web".into()));
        assert!(v["metadata"]["labels"].entries().is_empty());
    }
}
