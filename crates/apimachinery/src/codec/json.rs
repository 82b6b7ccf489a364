//! JSON, and the form in which objects are stored and cached.
//!
//! The stored form begins `{"kind":…,"apiVersion":…,"metadata":{` and has no `resourceVersion`: that is known only when
//! the object has been stored, and is spliced in on the way out ([`write_with_version`]), without decoding anything. An
//! item of a typed list has no kind and version of its own: it is the stored form from [`item_offset`] on.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::{DecodeError, Decoded, Options, go_syntax, typed};
use crate::schema::TypeRef;
use crate::{Map, Value};

/// `apiVersion` and `kind` of a document, found without decoding the rest. Absent ones are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TypeMeta {
    pub api_version: String,
    pub kind: String,
}

/// Finds out what a document is.
///
/// # Errors
/// [`DecodeError::Syntax`] in Go's words, for what is no JSON object.
pub fn type_meta(body: &[u8]) -> Result<TypeMeta, DecodeError> {
    serde_json::from_slice(body).or_else(|_| {
        go_syntax::check(body)?;
        // Well-formed, so one of the two is no string, or comes twice.
        let value = value(body)?;
        let wrong = |found: &str| {
            let message = format!("json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}");
            DecodeError::Syntax(message)
        };
        match &value {
            Value::Object(map) => {
                let text = |key: &str| match map.get(key) {
                    None | Some(Value::Null) => Ok(String::new()),
                    Some(Value::String(s)) => Ok(s.to_string()),
                    Some(other) => {
                        let found = go_word(other);
                        let message = format!("json: cannot unmarshal {found} into Go struct field .{key} of type string");
                        Err(DecodeError::Syntax(message))
                    }
                };
                Ok(TypeMeta { api_version: text("apiVersion")?, kind: text("kind")? })
            }
            other => Err(wrong(go_word(other))),
        }
    })
}

fn go_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::Float(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Decodes a document through a type.
///
/// # Errors
/// [`DecodeError`] in Go's words.
pub fn decode(body: &[u8], ty: &TypeRef, options: Options) -> Result<Decoded, DecodeError> {
    let text = utf8(body);
    let mut json = serde_json::Deserializer::from_str(&text);
    let decoded = typed::decode(&mut json, ty, options).and_then(|done| json.end().map(|()| done));
    decoded.unwrap_or_else(|e| Err(syntax_error(text.as_bytes(), &e)))
}

/// A document without a schema.
///
/// # Errors
/// [`DecodeError::Syntax`] in Go's words.
pub fn value(body: &[u8]) -> Result<Value, DecodeError> {
    let text = utf8(body);
    serde_json::from_str(&text).map_err(|e| syntax_error(text.as_bytes(), &e))
}

/// Is this well-formed JSON?
///
/// # Errors
/// [`DecodeError::Syntax`] in Go's words.
pub fn check(body: &[u8]) -> Result<(), DecodeError> {
    let text = utf8(body);
    serde_json::from_str::<IgnoredAny>(&text).map(|_| ()).map_err(|e| syntax_error(text.as_bytes(), &e))
}

/// Go takes bytes that are not UTF-8 for U+FFFD.
fn utf8(body: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(body)
}

fn syntax_error(body: &[u8], error: &serde_json::Error) -> DecodeError {
    match go_syntax::check(body) {
        Err(e) => e,
        Ok(()) => DecodeError::Syntax(if error.to_string().starts_with("recursion limit") {
            "exceeded max depth".to_owned()
        } else {
            error.to_string()
        }),
    }
}

/// Compact JSON with keys in order.
#[must_use]
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write(&mut out, value);
    out
}

/// The form that is stored and cached: kind, version and metadata first, no `resourceVersion`.
#[must_use]
pub fn encode_storage(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(4096);
    write_object(&mut out, object, false);
    out.shrink_to_fit();
    out.into()
}

/// An object as a client gets it: kind, version and metadata first, all of it.
#[must_use]
pub fn encode_object(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    write_object(&mut out, object, true);
    out
}

fn write_object(out: &mut Vec<u8>, object: &Value, with_version: bool) {
    let Value::Object(fields) = object else { return write(out, object) };
    const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];
    out.push(b'{');
    let first = FIRST.iter().filter_map(|key| fields.get(key).map(|value| (*key, value)));
    let rest = fields.iter().map(|(k, v)| (k.as_str(), v)).filter(|(k, _)| !FIRST.contains(k));
    for (i, (key, value)) in first.chain(rest).enumerate() {
        write_key(out, i == 0, key);
        match value {
            Value::Object(meta) if key == "metadata" && !with_version => write_metadata(out, meta),
            value => write(out, value),
        }
    }
    out.push(b'}');
}

fn write_metadata(out: &mut Vec<u8>, meta: &Map) {
    out.push(b'{');
    for (i, (key, value)) in meta.iter().filter(|(k, _)| *k != "resourceVersion").enumerate() {
        write_key(out, i == 0, key);
        write(out, value);
    }
    out.push(b'}');
}

fn write_key(out: &mut Vec<u8>, first: bool, key: &str) {
    if !first {
        out.push(b',');
    }
    write_string(out, key);
    out.push(b':');
}

fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(b) => out.extend_from_slice(if *b { b"true" } else { b"false" }),
        Value::Int(n) => write_serialized(out, n),
        Value::Float(n) => write_serialized(out, n),
        Value::String(s) => write_string(out, s),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(out, item);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            out.push(b'{');
            for (i, (key, value)) in map.iter().enumerate() {
                write_key(out, i == 0, key);
                write(out, value);
            }
            out.push(b'}');
        }
    }
}

fn write_string(out: &mut Vec<u8>, s: &str) {
    if s.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.reserve(s.len() + 2);
        out.push(b'"');
        out.extend_from_slice(s.as_bytes());
        out.push(b'"');
    } else {
        write_serialized(out, s);
    }
}

/// Numbers and strings with escapes: writing them to memory cannot fail.
fn write_serialized<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok());
}

const METADATA: &[u8] = b"\"metadata\":{";

/// Where the `resourceVersion` goes into the stored form: right behind `"metadata":{`. `None` if there is no metadata.
///
/// Nothing but the kind and the version stands before it, and within their strings quotes are escaped, so the first match
/// is the right one.
#[must_use]
pub fn splice_offset(stored: &[u8]) -> Option<usize> {
    memchr::memmem::find(stored, METADATA).map(|at| at + METADATA.len())
}

/// Where an item of a typed list begins in the stored form; what goes out is `{` and the rest from here.
#[must_use]
pub fn item_offset(stored: &[u8]) -> Option<usize> {
    memchr::memmem::find(stored, METADATA)
}

/// The two parts of a stored object between which `"resourceVersion":"…"` goes, and whether a comma follows it.
#[must_use]
pub fn split(stored: &[u8]) -> Option<(&[u8], &[u8], bool)> {
    let (head, tail) = stored.split_at(splice_offset(stored)?);
    Some((head, tail, !tail.starts_with(b"}")))
}

/// Writes a stored object as clients get it, with its `resourceVersion`.
pub fn write_with_version(out: &mut Vec<u8>, stored: &[u8], version: &str) {
    let Some((head, tail, comma)) = split(stored) else { return out.extend_from_slice(stored) };
    out.reserve(stored.len() + version.len() + 24);
    out.extend_from_slice(head);
    write_version(out, version, comma);
    out.extend_from_slice(tail);
}

/// Writes a stored object as an item of a typed list, with its `resourceVersion` but without kind and version.
pub fn write_item(out: &mut Vec<u8>, stored: &[u8], version: &str) {
    let (Some(start), Some((head, tail, comma))) = (item_offset(stored), split(stored)) else {
        return out.extend_from_slice(stored);
    };
    out.reserve(stored.len() + version.len() + 24);
    out.push(b'{');
    out.extend_from_slice(&head[start..]);
    write_version(out, version, comma);
    out.extend_from_slice(tail);
}

fn write_version(out: &mut Vec<u8>, version: &str, comma: bool) {
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(version.as_bytes());
    out.push(b'"');
    if comma {
        out.push(b',');
    }
}
