//! How objects are written: the canonical JSON that is stored and served, and what a stored value may be instead.

use std::io::Write;

use apimachinery::Value;
use bytes::Bytes;

/// An object's canonical JSON: `kind`, `apiVersion` and `metadata` first, so that all objects of a resource begin with the
/// same bytes; everything else sorted.
#[must_use]
pub(crate) fn canonical(object: &Value) -> Bytes {
    const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];
    let mut out = Vec::with_capacity(1024);
    let first = FIRST.iter().filter_map(|key| object.get(key).map(|value| (*key, value)));
    let rest = object.entries().iter().map(|(k, v)| (k.as_str(), v)).filter(|(k, _)| !FIRST.contains(k));
    out.push(b'{');
    for (i, (key, value)) in first.chain(rest).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_json(&mut out, &key);
        out.push(b':');
        write_json(&mut out, value);
    }
    out.push(b'}');
    // An exact copy: what is stored stays in memory for long, and spare capacity with it.
    Bytes::copy_from_slice(&out)
}

/// Appends the JSON of a value.
pub(crate) fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing to a vector cannot fail, and values have no keys that are not strings.
    if let Err(error) = serde_json::to_writer(out.by_ref(), value) {
        tracing::error!(%error, "a value has no JSON");
    }
}

/// Decodes a stored value, whoever wrote it.
///
/// # Errors
/// Why it is no object.
pub(crate) fn decode_stored(value: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(value).map_err(|e| e.to_string())
}

/// Appends the JSON of a value for people.
pub(crate) fn write_pretty(out: &mut Vec<u8>, value: &Value) {
    if let Err(error) = serde_json::to_writer_pretty(out, value) {
        tracing::error!(%error, "a value has no JSON");
    }
}

#[must_use]
pub(crate) fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_else(|error| {
        tracing::error!(%error, "a value has no YAML");
        String::new()
    })
}

/// # Errors
/// What is wrong with the text.
pub(crate) fn from_yaml(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    serde_saphyr::from_str(text).map_err(|e| format!("error converting YAML to JSON: yaml: {e}"))
}

/// Protobuf is served as soon as the codec is there.
pub(crate) fn protobuf(value: &Value) -> Bytes {
    let mut out = Vec::new();
    write_json(&mut out, value);
    out.into()
}

/// A frame of a protobuf watch.
pub(crate) fn protobuf_watch_frame(_kind: &str, object: &Value) -> Bytes {
    protobuf(object)
}
