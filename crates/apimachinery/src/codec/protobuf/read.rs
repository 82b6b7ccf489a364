//! From messages to trees.

use base64::Engine as _;
use compact_str::CompactString;
use jiff::Timestamp;

use super::super::normalize::fill;
use super::super::typed::BASE64;
use super::super::{DecodeError, json};
use super::wire::{Reader, Wire, syntax};
use super::{MAGIC, set_type, unknown};
use crate::schema::{ListShape, Schema, SchemaOr, Shape, Struct, TypeRef};
use crate::{Map, Value, quantity, time};

/// The deepest nesting of messages.
const MAX_DEPTH: usize = 128;

type Entries = Vec<(CompactString, Value)>;

pub(super) fn message(raw: &[u8], ty: &TypeRef) -> Result<Value, DecodeError> {
    read(raw, ty, 0)
}

fn read(raw: &[u8], ty: &TypeRef, depth: usize) -> Result<Value, DecodeError> {
    if depth > MAX_DEPTH {
        return Err(syntax("exceeded max depth"));
    }
    match &ty.shape {
        Shape::Struct(shape) => {
            let mut entries = Vec::with_capacity(8);
            fields(raw, shape, shape.by_number(), 0, &mut entries, depth)?;
            entries.retain(|(name, value)| shape.field(name).is_none_or(|field| !field.leaves_out(value)));
            fill(shape, &mut entries);
            Ok(Value::Object(Map::from_entries(entries).0))
        }
        Shape::Any | Shape::Deduced => any(raw),
        Shape::Quantity => {
            let mut text = "";
            each(raw, |number, field| {
                if number == 1 {
                    text = field.string()?;
                }
                Ok(())
            })?;
            quantity::canonical(text).map(Value::String).map_err(|e| syntax(&e.to_string()))
        }
        Shape::IntOrString => int_or_string(raw),
        Shape::Time => Ok(timestamp(raw)?.map_or(Value::Null, |t| Value::String(time::format(t)))),
        Shape::MicroTime => Ok(timestamp(raw)?.map_or(Value::Null, |t| Value::String(time::format_micro(t)))),
        Shape::SchemaOr(kind, props) => schema_or(raw, *kind, props, depth),
        Shape::List(list) => {
            let mut items = Vec::new();
            each(raw, |number, field| {
                if number == 1 {
                    items.push(single(field, &list.item, depth)?);
                }
                Ok(())
            })?;
            Ok(Value::Array(items))
        }
        _ => Err(syntax("proto: wrong wireType")),
    }
}

fn each<'a>(raw: &'a [u8], mut f: impl FnMut(u32, Wire<'a>) -> Result<(), DecodeError>) -> Result<(), DecodeError> {
    let mut reader = Reader::new(raw);
    while let Some((number, field)) = reader.next()? {
        f(number, field)?;
    }
    Ok(())
}

/// The fields of a message, of which `run` may be, whose numbers agree up to `level`.
fn fields(
    raw: &[u8],
    shape: &Struct,
    run: &[u16],
    level: usize,
    entries: &mut Entries,
    depth: usize,
) -> Result<(), DecodeError> {
    let mut reader = Reader::new(raw);
    while let Some((number, wire)) = reader.next()? {
        let start = run.partition_point(|i| shape.at(*i).numbers[level] < number);
        let same = run[start..].partition_point(|i| shape.at(*i).numbers[level] == number);
        let run = &run[start..start + same];
        let Some(first) = run.first().map(|i| shape.at(*i)) else { continue };
        if first.numbers.len() > level + 1 {
            fields(wire.bytes()?, shape, run, level + 1, entries, depth)?;
            continue;
        }
        let slot = match entries.iter().position(|(name, _)| *name == first.name) {
            Some(at) => &mut entries[at].1,
            None => {
                entries.push((first.name.clone(), Value::Null));
                let last = entries.len() - 1;
                &mut entries[last].1
            }
        };
        match &first.ty.shape {
            Shape::List(list) if !list.wrapped => item(slot, wire, list, depth)?,
            Shape::Map(map) => {
                let (key, value) = entry(wire.bytes()?, &map.value, depth)?;
                slot.make_object().insert(key, value);
            }
            _ => *slot = single(wire, &first.ty, depth)?,
        }
    }
    Ok(())
}

fn item(slot: &mut Value, wire: Wire<'_>, list: &ListShape, depth: usize) -> Result<(), DecodeError> {
    let items = slot.make_array();
    match (wire, &list.item.shape) {
        // Numbers may come packed, too.
        (Wire::Bytes(packed), Shape::Int32 | Shape::Int64 | Shape::Bool) => {
            let mut reader = Reader::new(packed);
            while let Some(n) = reader.packed()? {
                items.push(single(Wire::Varint(n), &list.item, depth)?);
            }
        }
        (wire, _) => items.push(single(wire, &list.item, depth)?),
    }
    Ok(())
}

fn entry(raw: &[u8], ty: &TypeRef, depth: usize) -> Result<(CompactString, Value), DecodeError> {
    let (mut key, mut value) = (CompactString::default(), None);
    each(raw, |number, field| {
        match number {
            1 => key = field.string()?.into(),
            2 => value = Some(single(field, ty, depth)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((key, value.unwrap_or_else(|| ty.zero())))
}

fn single(wire: Wire<'_>, ty: &TypeRef, depth: usize) -> Result<Value, DecodeError> {
    Ok(match &ty.shape {
        Shape::String(_) | Shape::Duration => wire.string()?.into(),
        Shape::Bytes => Value::String(BASE64.encode(wire.bytes()?).into()),
        #[expect(clippy::cast_possible_truncation, reason = "upstream's decoder truncates")]
        Shape::Int32 => Value::Int(i64::from(wire.int()? as i32)),
        Shape::Int64 => Value::Int(wire.int()?),
        Shape::Bool => Value::Bool(wire.int()? != 0),
        Shape::Float => {
            let n = wire.double()?;
            #[expect(clippy::cast_possible_truncation, reason = "has no fraction and is small")]
            if n.fract() == 0.0 && n.abs() < 1e15 { Value::Int(n as i64) } else { Value::Float(n) }
        }
        _ => read(wire.bytes()?, ty, depth + 1)?,
    })
}

/// Raw JSON, or a document in its envelope.
fn any(raw: &[u8]) -> Result<Value, DecodeError> {
    let mut text: &[u8] = b"";
    each(raw, |number, field| {
        if number == 1 {
            text = field.bytes()?;
        }
        Ok(())
    })?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    if !text.starts_with(MAGIC) {
        return json::value(text);
    }
    let document = unknown(text)?;
    let gv = crate::meta::GroupVersion::parse(&document.meta.api_version).unwrap_or_default();
    let gvk = crate::meta::Gvk { group: gv.group, version: gv.version, kind: document.meta.kind.as_str().into() };
    let Some(ty) = Schema::builtin().kind(&gvk) else {
        return Err(syntax(&format!("no kind \"{}\" is registered for version \"{}\"", gvk.kind, gvk.group_version())));
    };
    // An envelope within an envelope needs bytes around it, so nesting is bounded by the size of the body and shallow.
    let mut value = read(document.raw, ty, MAX_DEPTH / 2)?;
    set_type(&mut value, &document.meta);
    Ok(value)
}

fn int_or_string(raw: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_string, mut int, mut string) = (false, 0, "");
    each(raw, |number, field| {
        match number {
            1 => is_string = field.int()? != 0,
            2 => int = field.int()?,
            3 => string = field.string()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(if is_string { string.into() } else { Value::Int(int) })
}

/// `None` for an empty message: that is the zero time.
fn timestamp(raw: &[u8]) -> Result<Option<Timestamp>, DecodeError> {
    let (mut seconds, mut nanos) = (0, 0);
    each(raw, |number, field| {
        match number {
            1 => seconds = field.int()?,
            2 => nanos = field.int()?,
            _ => {}
        }
        Ok(())
    })?;
    if raw.is_empty() {
        return Ok(None);
    }
    let out_of_range = || syntax("proto: time is out of range");
    let nanos = i32::try_from(nanos).map_err(|_| out_of_range())?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| out_of_range())?;
    Ok(Some(time))
}

fn schema_or(raw: &[u8], kind: SchemaOr, props: &TypeRef, depth: usize) -> Result<Value, DecodeError> {
    let (mut schema, mut allows, mut items) = (None, false, Vec::new());
    each(raw, |number, field| {
        match (kind, number) {
            (SchemaOr::Bool, 1) => allows = field.int()? != 0,
            (SchemaOr::Bool, 2) | (SchemaOr::Array | SchemaOr::StringArray, 1) => {
                schema = Some(read(field.bytes()?, props, depth + 1)?);
            }
            (SchemaOr::Array, 2) => items.push(read(field.bytes()?, props, depth + 1)?),
            (SchemaOr::StringArray, 2) => items.push(field.string()?.into()),
            _ => {}
        }
        Ok(())
    })?;
    Ok(match (schema, kind) {
        (Some(schema), _) => schema,
        (None, SchemaOr::Bool) => Value::Bool(allows),
        (None, SchemaOr::Array | SchemaOr::StringArray) => Value::Array(items),
    })
}
