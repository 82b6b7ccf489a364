//! Objects of any type of the schema, made from a seed.

use apimachinery::codec::{Options, from_value};
use apimachinery::schema::{ListKind, ListShape, Schema, Shape, TypeRef};
use apimachinery::{Map, Value};
use proptest::prelude::*;
use testing::fuzz::Random;

/// How deep objects go: a JSON schema has no end of its own.
const DEPTH: u32 = 9;

/// The built-in kinds, each of which is an object of its own.
pub(crate) fn kinds() -> Vec<(&'static str, &'static TypeRef)> {
    let mut kinds: Vec<_> = Schema::builtin().kinds().map(|(_, ty)| (ty.name.as_str(), ty)).collect();
    kinds.sort_by_key(|(name, _)| *name);
    kinds.dedup_by_key(|(name, _)| *name);
    kinds
}

/// A kind and an object of it.
pub(crate) fn objects() -> impl Strategy<Value = (&'static TypeRef, Value)> {
    let kinds = kinds();
    (0..kinds.len(), any::<u64>()).prop_map(move |(i, seed)| {
        let ty = kinds[i].1;
        (ty, object(ty, seed))
    })
}

/// Two objects of a kind that have much in common.
pub(crate) fn neighbours() -> impl Strategy<Value = (&'static TypeRef, Value, Value)> {
    let kinds = kinds();
    (0..kinds.len(), any::<u64>(), any::<u64>()).prop_map(move |(i, seed, change)| {
        let ty = kinds[i].1;
        let old = object(ty, seed);
        let mut new = old.clone();
        mix(&mut new, &object(ty, change), &mut Random(change | 1));
        let new = from_value(new, ty, Options::default()).unwrap().value;
        (ty, old, new)
    })
}

/// An object as decoding would leave it.
pub(crate) fn object(ty: &TypeRef, seed: u64) -> Value {
    let value = Maker { random: Random(seed | 1) }.value(ty, DEPTH);
    from_value(value, ty, Options::default()).unwrap_or_else(|e| panic!("{}: {e}", ty.name)).value
}

/// Takes some fields from another object and loses some.
pub(crate) fn mix(value: &mut Value, other: &Value, random: &mut Random) {
    let (Value::Object(map), Value::Object(other)) = (value, other) else { return };
    let names: Vec<_> = map.keys().chain(other.keys()).cloned().collect();
    for name in names {
        match (random.below(4), other.get(&name)) {
            (0, Some(new)) => drop(map.insert(name, new.clone())),
            (1, None) => drop(map.remove(&name)),
            (2, Some(new)) => {
                if let Some(old) = map.get_mut(&name) {
                    mix(old, new, random);
                }
            }
            _ => {}
        }
    }
}

struct Maker {
    random: Random,
}

impl Maker {
    fn value(&mut self, ty: &TypeRef, depth: u32) -> Value {
        match &ty.shape {
            Shape::Struct(shape) => {
                let mut map = Map::new();
                for field in shape.fields() {
                    // Without numbers a field is in JSON only: kind and version.
                    if field.numbers.is_empty() || depth == 0 || self.random.below(3) == 0 {
                        continue;
                    }
                    let value = self.value(&field.ty, depth - 1);
                    map.insert(field.name.clone(), value);
                }
                Value::Object(map)
            }
            Shape::Map(shape) => {
                // Empty and absent are the same thing in protobuf.
                let keys = 1 + self.random.below(3);
                let entries =
                    (0..keys).map(|_| (self.text().into(), self.value(&shape.value, depth.saturating_sub(1))));
                Value::Object(entries.collect())
            }
            Shape::List(list) => {
                let length = 1 + self.random.below(3);
                let items = (0..length).map(|_| self.value(&list.item, depth.saturating_sub(1)));
                let mut items: Vec<Value> = items.collect();
                tell_apart(&mut items, list);
                Value::Array(items)
            }
            Shape::String(_) => self.text().into(),
            Shape::Bytes => ["AA==", "/v8=", "aGVsbG8="][self.random.below(3) as usize].into(),
            Shape::Int32 => (self.random.next() as i32 >> self.random.below(31)).into(),
            Shape::Int64 => (self.random.next().cast_signed() >> self.random.below(63)).into(),
            Shape::Bool => (self.random.below(2) == 0).into(),
            Shape::Float => Value::Float([0.0, -1.5, 0.1, 1e300][self.random.below(4) as usize]),
            Shape::Quantity => ["0", "1500m", "10Gi", "-3", "1e3"][self.random.below(5) as usize].into(),
            Shape::IntOrString => {
                if self.random.below(2) == 0 {
                    80.into()
                } else {
                    "25%".into()
                }
            }
            Shape::Time => ["2026-01-02T03:04:05Z", "1999-12-31T23:59:59Z"][self.random.below(2) as usize].into(),
            Shape::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
            Shape::Duration => ["0s", "1h5m0s", "1.5s"][self.random.below(3) as usize].into(),
            Shape::Any | Shape::Deduced => {
                Value::from([("kind", "Thing".into()), ("n", self.random.below(9).cast_signed().into())])
            }
            Shape::SchemaOr(..) => Value::from([("type", "string".into())]),
        }
    }

    fn text(&mut self) -> String {
        ["a", "b", "web", "x.example.com/y", "ünï", "7", "true"][self.random.below(7) as usize].to_owned()
    }
}

/// Items that a list tells apart must be so.
fn tell_apart(items: &mut [Value], list: &ListShape) {
    let distinct = |ty: &TypeRef, i: usize| match ty.shape {
        Shape::String(_) => Value::from(format!("key-{i}")),
        _ => Value::from(i64::try_from(i).unwrap_or_default() + 1),
    };
    for (i, item) in items.iter_mut().enumerate() {
        match &list.kind {
            ListKind::Atomic => {}
            ListKind::Set => *item = distinct(&list.item, i),
            ListKind::Map(keys) => {
                for key in keys {
                    if let Some(field) = list.item.field(key)
                        && !matches!(field.ty.shape, Shape::Struct(_))
                    {
                        item.set(&[key.as_str()], distinct(&field.ty, i));
                    }
                }
            }
        }
    }
}
