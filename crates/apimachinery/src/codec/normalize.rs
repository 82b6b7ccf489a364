//! Brings a tree that was changed in place back to the form that decoding gives.

use compact_str::CompactString;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::schema::{Shape, Struct, TypeRef};
use crate::{Map, Value};

/// Drops what Go would not write and fills in what it always writes: to be called behind defaulting and before encoding.
/// Does not check types.
pub fn normalize(value: &mut Value, ty: &TypeRef) {
    match (&ty.shape, value) {
        (Shape::Struct(shape), Value::Object(map)) => structure(map, shape),
        (Shape::Map(shape), Value::Object(map)) => {
            for (_, value) in map.iter_mut() {
                element(value, &shape.value);
            }
        }
        (Shape::List(shape), Value::Array(items)) => {
            for item in items {
                element(item, &shape.item);
            }
        }
        (Shape::SchemaOr(_, props), Value::Object(map)) => {
            if let Shape::Struct(shape) = &props.shape {
                structure(map, shape);
            }
        }
        (Shape::SchemaOr(_, props), Value::Array(items)) => {
            for item in items {
                normalize(item, props);
            }
        }
        _ => {}
    }
}

/// Inside lists and maps there is no absence, so `null` is the zero value.
fn element(value: &mut Value, ty: &TypeRef) {
    if value.is_null() {
        *value = ty.zero();
    } else {
        normalize(value, ty);
    }
}

fn structure(map: &mut Map, shape: &Struct) {
    map.retain(|name, value| {
        let Some(field) = shape.field(name) else { return true };
        if value.is_null() && !field.pointer {
            *value = field.ty.zero();
        }
        normalize(value, &field.ty);
        !field.leaves_out(value)
    });
    for field in shape.always() {
        if !map.contains_key(&field.name) {
            map.insert(field.name.clone(), field.zero());
        }
    }
}

/// Adds the fields that are always written to the entries of a struct.
pub(super) fn fill(shape: &Struct, entries: &mut Vec<(CompactString, Value)>) {
    for field in shape.always() {
        match entries.iter_mut().find(|(name, _)| *name == field.name) {
            None => entries.push((field.name.clone(), field.zero())),
            Some((_, value)) if value.is_null() => *value = field.zero(),
            Some(_) => {}
        }
    }
}

/// A tree as something to decode from.
pub(super) struct Tree(pub(super) Value);

type TreeError = serde::de::value::Error;

impl<'de> Deserializer<'de> for Tree {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(b),
            Value::Int(n) => visitor.visit_i64(n),
            Value::Float(n) => visitor.visit_f64(n),
            Value::String(s) => visitor.visit_str(&s),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Tree))),
            Value::Object(map) => {
                let entries = map.into_iter().map(|(k, v)| (Tree(Value::String(k)), Tree(v)));
                visitor.visit_map(MapDeserializer::new(entries))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl IntoDeserializer<'_, TreeError> for Tree {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
