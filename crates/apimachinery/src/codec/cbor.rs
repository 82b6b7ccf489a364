//! CBOR as upstream writes it: self-described, deterministic, text and keys as byte strings, and binary data as byte
//! strings that are marked as base64 in JSON. Both kinds of strings are read.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use ciborium::Value as Item;
use compact_str::CompactString;

use super::json::TypeMeta;
use super::{DecodeError, Decoded, Options, from_value};
use crate::schema::{Shape, TypeRef};
use crate::{Map, Value};

/// What every document begins with: the tag of CBOR itself.
pub const MAGIC: &[u8; 3] = b"\xd9\xd9\xf7";

const SELF_DESCRIBED: u64 = 55799;
const AS_BASE64_URL: u64 = 21;
const AS_BASE64: u64 = 22;
const AS_HEX: u64 = 23;
const TIME_TEXT: u64 = 0;
/// As deep as upstream goes.
const MAX_DEPTH: usize = 64;

/// Encodes an object of a type, which says what of it is binary.
#[must_use]
pub fn encode(object: &Value, ty: &TypeRef) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    // Writing to a vector cannot fail.
    let _ = ciborium::into_writer(&item(object, ty), &mut out);
    out
}

/// One event of a watch: a document of its own, of which a sequence is a stream.
#[must_use]
pub fn watch_event(event: &str, object: &Value, ty: &TypeRef) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let event = Item::Map(sorted(vec![(text("type"), text(event)), (text("object"), item(object, ty))]));
    let _ = ciborium::into_writer(&event, &mut out);
    out
}

/// Reads a document as a tree, without a type.
///
/// # Errors
/// [`DecodeError::Syntax`] for what is no CBOR, or none that JSON could say.
pub fn parse(body: &[u8]) -> Result<Value, DecodeError> {
    let mut rest = body;
    let item: Item = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
        .map_err(|e| DecodeError::Syntax(format!("cbor: {e}")))?;
    if !rest.is_empty() {
        let message =
            format!("cbor: {} bytes of extraneous data starting at index {}", rest.len(), body.len() - rest.len());
        return Err(DecodeError::Syntax(message));
    }
    value(item)
}

/// Reads a document through a type.
///
/// # Errors
/// [`DecodeError`] as for JSON.
pub fn decode(body: &[u8], ty: &TypeRef, options: Options) -> Result<Decoded, DecodeError> {
    from_value(parse(body)?, ty, options)
}

/// What a tree says that it is.
#[must_use]
pub fn type_meta(value: &Value) -> TypeMeta {
    TypeMeta { api_version: value.api_version().into(), kind: value.kind().into() }
}

// === writing ===

fn text(text: &str) -> Item {
    Item::Bytes(text.as_bytes().to_vec())
}

/// Upstream's order of keys: that of their encodings, so that shorter ones come first.
fn sorted(mut entries: Vec<(Item, Item)>) -> Vec<(Item, Item)> {
    entries.sort_by(|(a, _), (b, _)| {
        let key = |item: &Item| item.as_bytes().map(|bytes| (bytes.len(), bytes.clone()));
        key(a).cmp(&key(b))
    });
    entries
}

fn item(value: &Value, ty: &TypeRef) -> Item {
    match value {
        Value::Null => Item::Null,
        Value::Bool(b) => Item::Bool(*b),
        Value::Int(n) => Item::Integer((*n).into()),
        Value::Float(n) => Item::Float(*n),
        Value::String(s) => match (&ty.shape, STANDARD.decode(s.as_bytes())) {
            (Shape::Bytes, Ok(bytes)) => Item::Tag(AS_BASE64, Box::new(Item::Bytes(bytes))),
            _ => text(s),
        },
        Value::Array(items) => {
            let any = TypeRef::any();
            let of = match &ty.shape {
                Shape::List(list) => &list.item,
                Shape::SchemaOr(_, props) => props,
                _ => &any,
            };
            Item::Array(items.iter().map(|value| item(value, of)).collect())
        }
        Value::Object(map) => {
            let any = TypeRef::any();
            let of = |name: &str| match &ty.shape {
                Shape::Map(shape) => &shape.value,
                Shape::SchemaOr(_, props) => props.field(name).map_or(&any, |field| &field.ty),
                _ => ty.field(name).map_or(&any, |field| &field.ty),
            };
            Item::Map(sorted(map.iter().map(|(name, value)| (text(name), item(value, of(name)))).collect()))
        }
    }
}

// === reading ===

fn wrong(why: impl Into<String>) -> DecodeError {
    DecodeError::Syntax(format!("cbor: {}", why.into()))
}

fn string(bytes: Vec<u8>) -> Result<CompactString, DecodeError> {
    CompactString::from_utf8(bytes).map_err(|_| wrong("invalid UTF-8 string"))
}

fn value(item: Item) -> Result<Value, DecodeError> {
    Ok(match item {
        Item::Null => Value::Null,
        Item::Bool(b) => Value::Bool(b),
        Item::Integer(n) => i64::try_from(n)
            .map(Value::Int)
            .map_err(|_| wrong(format!("cannot unmarshal {} into Go value of type int64", i128::from(n))))?,
        Item::Float(n) if n.is_finite() => Value::Float(n),
        Item::Float(_) => return Err(wrong("floating-point NaN or infinity")),
        Item::Text(s) => Value::String(s.into()),
        Item::Bytes(bytes) => Value::String(string(bytes)?),
        Item::Tag(SELF_DESCRIBED | TIME_TEXT, item) => value(*item)?,
        Item::Tag(tag @ (AS_BASE64_URL | AS_BASE64 | AS_HEX), item) => match *item {
            Item::Bytes(bytes) => match tag {
                AS_BASE64_URL => URL_SAFE.encode(bytes).into(),
                AS_BASE64 => STANDARD.encode(bytes).into(),
                _ => bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into(),
            },
            other => value(other)?,
        },
        Item::Tag(tag, _) => return Err(wrong(format!("unrecognized tag number {tag}"))),
        Item::Array(items) => Value::Array(items.into_iter().map(value).collect::<Result<_, _>>()?),
        Item::Map(entries) => {
            let mut out = Vec::with_capacity(entries.len());
            for (key, item) in entries {
                let key = match key {
                    Item::Text(s) => s.into(),
                    Item::Bytes(bytes) => string(bytes)?,
                    _ => return Err(wrong("a key of a map is no string")),
                };
                out.push((key, value(item)?));
            }
            let (map, twice) = Map::from_entries(out);
            if let Some(key) = twice.first() {
                return Err(wrong(format!("found duplicate map key {key:?}")));
            }
            Value::Object(map)
        }
        _ => return Err(wrong("a value that has no JSON")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Gvk;
    use crate::schema::Schema;

    #[track_caller]
    fn check(bytes: &[u8], want: &str) {
        let got = match parse(bytes) {
            Ok(value) => serde_json::to_string(&value).unwrap(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn documents_are_read_with_either_kind_of_string() {
        check(b"\xd9\xd9\xf7\xa1\x41a\x01", r#"{"a":1}"#);
        check(b"\xa1\x61a\x83\xf6\xf5\x20", r#"{"a":[null,true,-1]}"#);
        check(b"\xd6\x42\x01\xff", r#""Af8=""#);
        check(b"\xc0\x74\x32026-01-02T03:04:05Z", r#""2026-01-02T03:04:05Z""#);
    }

    #[test]
    fn what_json_could_not_say_is_refused() {
        check(b"\xa2\x41a\x01\x41a\x02", r#"cbor: found duplicate map key "a""#);
        check(b"\xa1\x01\x01", "cbor: a key of a map is no string");
        check(b"\x41\xff", "cbor: invalid UTF-8 string");
        check(b"\x01\x02", "cbor: 1 bytes of extraneous data starting at index 1");
        check(b"\xf9\x7e\x00", "cbor: floating-point NaN or infinity");
        assert!(parse(&[0x81; 200]).is_err(), "too deep");
        assert!(parse(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff").is_err(), "too long");
    }

    #[test]
    fn binary_data_is_binary_and_keys_are_in_upstreams_order() {
        let ty = Schema::builtin().kind(&Gvk::new("", "v1", "Secret")).unwrap();
        let secret: Value = serde_json::from_str(r#"{"kind":"S","data":{"bb":"Af8=","c":"AA=="}}"#).unwrap();
        let bytes = encode(&secret, ty);
        assert_eq!(
            bytes.escape_ascii().to_string(),
            b"\xd9\xd9\xf7\xa2\x44data\xa2\x41c\xd6\x41\x00\x42bb\xd6\x42\x01\xff\x44kind\x41S"
                .escape_ascii()
                .to_string()
        );
        assert_eq!(parse(&bytes).unwrap(), secret);
    }
}
