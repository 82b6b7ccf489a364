//! From trees to messages.

use base64::Engine as _;

use super::super::json;
use super::super::typed::BASE64;
use super::wire::{nested, put_bytes, put_double, put_int};
use crate::schema::{Field, ListShape, SchemaOr, Shape, Struct, TypeRef};
use crate::{Map, Value, time};

static NONE: Map = Map::EMPTY;

/// The fields of a message, without a length before them.
pub(super) fn message(out: &mut Vec<u8>, value: &Value, ty: &TypeRef) {
    match &ty.shape {
        Shape::Struct(shape) => {
            let map = value.as_object().unwrap_or(&NONE);
            run(out, shape, shape.by_number(), 0, map);
        }
        Shape::Any | Shape::Deduced if !value.is_null() => {
            put_bytes(out, 1, &json::encode(value));
        }
        Shape::Quantity => put_bytes(out, 1, value.as_str().unwrap_or("0").as_bytes()),
        Shape::IntOrString => {
            put_int(out, 1, i64::from(value.as_str().is_some()));
            put_int(out, 2, value.as_i64().unwrap_or(0));
            put_bytes(out, 3, value.as_str().unwrap_or_default().as_bytes());
        }
        Shape::Time => timestamp(out, value.as_str().and_then(|s| time::parse(s).ok())),
        Shape::MicroTime => timestamp(out, value.as_str().and_then(|s| time::parse_micro(s).ok())),
        Shape::SchemaOr(kind, props) => schema_or(out, value, *kind, props),
        // The list itself, within the message that `wrapped` stands for.
        Shape::List(list) => items(out, 1, value, list),
        _ => {}
    }
}

/// A run of fields that share the numbers of the messages around them, up to `depth`.
fn run(out: &mut Vec<u8>, shape: &Struct, mut fields: &[u16], depth: usize, map: &Map) {
    while let Some(first) = fields.first() {
        let first = shape.at(*first);
        let number = first.numbers[depth];
        if first.numbers.len() == depth + 1 {
            field(out, first, number, map.get(&first.name));
            fields = &fields[1..];
        } else {
            // Embedded in Go, so JSON does not show it; it is no pointer, so it is always there.
            let same = fields.partition_point(|i| shape.at(*i).numbers[depth] == number);
            let (inner, rest) = fields.split_at(same);
            nested(out, number, |out| run(out, shape, inner, depth + 1, map));
            fields = rest;
        }
    }
}

fn field(out: &mut Vec<u8>, field: &Field, number: u32, value: Option<&Value>) {
    let Some(value) = value.filter(|v| !v.is_null()) else {
        if !field.pointer {
            single(out, number, &field.ty.zero(), &field.ty);
        }
        return;
    };
    single(out, number, value, &field.ty);
}

/// A value with its tag; lists and maps are a tag for each item.
fn single(out: &mut Vec<u8>, number: u32, value: &Value, ty: &TypeRef) {
    match &ty.shape {
        Shape::String(_) | Shape::Duration => put_bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Shape::Bytes => {
            if let Some(text) = value.as_str() {
                put_bytes(out, number, &BASE64.decode(text).unwrap_or_default());
            }
        }
        Shape::Int32 | Shape::Int64 => put_int(out, number, value.as_i64().unwrap_or(0)),
        Shape::Bool => put_int(out, number, i64::from(value.as_bool().unwrap_or(false))),
        Shape::Float => put_double(out, number, value.as_f64().unwrap_or(0.0)),
        Shape::List(list) if list.wrapped => {
            if !value.is_null() {
                nested(out, number, |out| items(out, 1, value, list));
            }
        }
        Shape::List(list) => items(out, number, value, list),
        Shape::Map(map) => {
            for (key, value) in value.entries().iter() {
                nested(out, number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    single(out, 2, value, &map.value);
                });
            }
        }
        Shape::Struct(_)
        | Shape::Quantity
        | Shape::IntOrString
        | Shape::Time
        | Shape::MicroTime
        | Shape::Any
        | Shape::Deduced
        | Shape::SchemaOr(..) => nested(out, number, |out| message(out, value, ty)),
    }
}

fn items(out: &mut Vec<u8>, number: u32, value: &Value, list: &ListShape) {
    for item in value.items() {
        single(out, number, item, &list.item);
    }
}

fn timestamp(out: &mut Vec<u8>, time: Option<jiff::Timestamp>) {
    let Some(time) = time else { return };
    // Seconds count from before the moment, the fraction forward, also before 1970.
    let nanos = time.as_nanosecond();
    let second = 1_000_000_000;
    put_int(out, 1, i64::try_from(nanos.div_euclid(second)).unwrap_or(0));
    put_int(out, 2, i64::try_from(nanos.rem_euclid(second)).unwrap_or(0));
}

fn schema_or(out: &mut Vec<u8>, value: &Value, kind: SchemaOr, props: &TypeRef) {
    let is_schema = matches!(value, Value::Object(_));
    let schema = |out: &mut Vec<u8>, number| nested(out, number, |out| message(out, value, props));
    match kind {
        SchemaOr::Bool => {
            put_int(out, 1, i64::from(is_schema || value.as_bool() == Some(true)));
            if is_schema {
                schema(out, 2);
            }
        }
        SchemaOr::Array if is_schema => schema(out, 1),
        SchemaOr::Array => {
            for item in value.items() {
                nested(out, 2, |out| message(out, item, props));
            }
        }
        SchemaOr::StringArray if is_schema => schema(out, 1),
        SchemaOr::StringArray => {
            for item in value.items() {
                put_bytes(out, 2, item.as_str().unwrap_or_default().as_bytes());
            }
        }
    }
}
