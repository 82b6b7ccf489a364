//! Kubernetes' protobuf: the messages that `go-to-protobuf` makes of the types, in the `k8s\0` envelope.
//!
//! Nothing is generated: the schema's numbers drive a writer and a reader over [`Value`]. What is written is byte for
//! byte what upstream writes: fields in the order of their numbers, values that are no pointers always present, maps
//! sorted by key.

mod read;
mod wire;
mod write;

use bytes::{BufMut, BytesMut};

use super::{DecodeError, json::TypeMeta};
use crate::Value;
use crate::schema::TypeRef;
use wire::{Reader, put_tag, put_varint};
pub use wire::{nested, put_bytes, put_double, put_int};

/// What every document begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// A document without its contents decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub meta: TypeMeta,
    pub raw: &'a [u8],
    pub content_encoding: String,
    pub content_type: String,
}

/// Opens the envelope.
///
/// # Errors
/// [`DecodeError::Syntax`] in upstream's words.
pub fn unknown(body: &[u8]) -> Result<Unknown<'_>, DecodeError> {
    let Some(message) = body.strip_prefix(MAGIC) else {
        return Err(DecodeError::Syntax(format!(
            "provided data does not appear to be a protobuf message, expected prefix {}",
            "[107 56 115 0]"
        )));
    };
    let mut unknown = Unknown::default();
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader::new(field.bytes()?);
                while let Some((number, field)) = meta.next()? {
                    match number {
                        1 => unknown.meta.api_version = field.string()?.to_owned(),
                        2 => unknown.meta.kind = field.string()?.to_owned(),
                        _ => {}
                    }
                }
            }
            2 => unknown.raw = field.bytes()?,
            3 => unknown.content_encoding = field.string()?.to_owned(),
            4 => unknown.content_type = field.string()?.to_owned(),
            _ => {}
        }
    }
    Ok(unknown)
}

/// Decodes the contents of an envelope (or a message that has none, such as a watch event) through a type. The kind and
/// version are not in it: they are [`Unknown::meta`].
///
/// # Errors
/// [`DecodeError`] for what is no such message.
pub fn decode_message(raw: &[u8], ty: &TypeRef) -> Result<Value, DecodeError> {
    read::message(raw, ty)
}

/// Decodes a document of a known type, with its kind and version as the envelope has them.
///
/// # Errors
/// [`DecodeError`] for what is no such document.
pub fn decode(body: &[u8], ty: &TypeRef) -> Result<Value, DecodeError> {
    let unknown = unknown(body)?;
    let mut value = decode_message(unknown.raw, ty)?;
    set_type(&mut value, &unknown.meta);
    Ok(value)
}

fn set_type(value: &mut Value, meta: &TypeMeta) {
    for (field, text) in [("kind", &meta.kind), ("apiVersion", &meta.api_version)] {
        if !text.is_empty() {
            value.set(&[field], text.as_str());
        }
    }
}

/// Encodes an object, whose kind and version go into the envelope.
#[must_use]
pub fn encode(object: &Value, ty: &TypeRef) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.reserve(2048);
    write_unknown(&mut out, object.api_version(), object.kind(), |out| write::message(out, object, ty));
    out
}

/// Encodes the bare message, without an envelope.
#[must_use]
pub fn encode_message(value: &Value, ty: &TypeRef) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    write::message(&mut out, value, ty);
    out
}

fn write_unknown(out: &mut Vec<u8>, api_version: &str, kind: &str, raw: impl FnOnce(&mut Vec<u8>)) {
    write_type(out, api_version, kind);
    wire::nested(out, 2, raw);
    write_end(out);
}

fn write_type(out: &mut Vec<u8>, api_version: &str, kind: &str) {
    wire::nested(out, 1, |out| {
        put_bytes(out, 1, api_version.as_bytes());
        put_bytes(out, 2, kind.as_bytes());
    });
}

/// The encoding and the type of the contents, which say nothing.
fn write_end(out: &mut Vec<u8>) {
    put_bytes(out, 3, b"");
    put_bytes(out, 4, b"");
}

/// What stands before and behind the items of a list, so that it can be written while it is sent. The items are messages
/// (not documents: without envelope) of these lengths, each written by [`put_item`].
#[must_use]
pub fn list_frame(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    list: &TypeRef,
    lengths: impl Iterator<Item = usize>,
) -> (Vec<u8>, Vec<u8>) {
    let mut message = Vec::new();
    write::message(&mut message, &Value::from([("metadata", metadata.clone())]), list);
    let items: usize = lengths.map(|length| item_head(length).len() + length).sum();
    let (mut before, mut behind) = (MAGIC.to_vec(), Vec::new());
    write_type(&mut before, api_version, kind);
    wire::put_tag(&mut before, 2, wire::LENGTH_DELIMITED);
    wire::put_varint(&mut before, (message.len() + items) as u64);
    before.append(&mut message);
    write_end(&mut behind);
    (before, behind)
}

/// Appends an item of a list.
pub fn put_item(out: &mut BytesMut, item: &[u8]) {
    out.put_slice(&item_head(item.len()));
    out.put_slice(item);
}

/// In every list, the items are its second field.
fn item_head(length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(6);
    wire::put_tag(&mut head, 2, wire::LENGTH_DELIMITED);
    wire::put_varint(&mut head, length as u64);
    head
}

/// One event of a watch: a frame with its length before it. The object is a document of its own, with envelope.
#[must_use]
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.reserve(object.len() + 32);
    put_bytes(&mut out, 1, event.as_bytes());
    wire::nested(&mut out, 2, |out| put_bytes(out, 1, object));
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Takes the first frame off a stream of watch events: the event's type, the object's document, and how many bytes they
/// took. `None` while the frame is not whole.
///
/// # Errors
/// [`DecodeError::Syntax`] for what is no such event.
pub fn read_watch_frame(stream: &[u8]) -> Result<Option<(String, Vec<u8>, usize)>, DecodeError> {
    let Some((length, rest)) = stream.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    let Some(frame) = rest.get(..length) else { return Ok(None) };
    let (mut event, mut object) = (String::new(), Vec::new());
    let mut reader = Reader::new(frame);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => event = field.string()?.to_owned(),
            2 => {
                let mut raw = Reader::new(field.bytes()?);
                while let Some((number, field)) = raw.next()? {
                    if number == 1 {
                        object = field.bytes()?.to_vec();
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some((event, object, 4 + length)))
}

/// The tag and length that come before an item of a list, for those who stream lists.
pub fn put_item_head(out: &mut Vec<u8>, number: u32, length: usize) {
    put_tag(out, number, wire::LENGTH_DELIMITED);
    put_varint(out, length as u64);
}
