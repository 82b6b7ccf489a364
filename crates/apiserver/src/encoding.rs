//! How objects are written and read: through the codecs, by the schema of their kind.

use apimachinery::Value;
use apimachinery::codec::{self, DecodeError, cbor, json, protobuf};
use apimachinery::meta::{GroupVersion, Gvk};
use apimachinery::schema::{Schema, TypeRef};
use bytes::Bytes;

use crate::config::StorageEncoding;

/// The canonical JSON of an object: what is stored and cached.
#[must_use]
pub(crate) fn canonical(object: &Value) -> Bytes {
    json::encode_storage(object)
}

/// Appends the JSON of a value.
pub(crate) fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing to a vector cannot fail, and values have no keys that are not strings.
    if let Err(error) = serde_json::to_writer(out, value) {
        tracing::error!(%error, "a value has no JSON");
    }
}

/// Appends the JSON of a value for people.
pub(crate) fn write_pretty(out: &mut Vec<u8>, value: &Value) {
    if let Err(error) = serde_json::to_writer_pretty(out, value) {
        tracing::error!(%error, "a value has no JSON");
    }
}

/// The kind that an object says it is.
#[must_use]
pub(crate) fn gvk_of(api_version: &str, kind: &str) -> Gvk {
    let gv = GroupVersion::parse(api_version).unwrap_or_default();
    Gvk { group: gv.group, version: gv.version, kind: kind.into() }
}

/// The schema of a kind: of an API group, or of the machinery's own (`Status`, `APIGroupList`), whatever group they say.
#[must_use]
pub(crate) fn type_of(gvk: &Gvk) -> Option<TypeRef> {
    let schema = Schema::builtin();
    let machinery = || schema.named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", gvk.kind));
    schema.kind(gvk).or_else(machinery).cloned()
}

/// An object in protobuf; `None` for a kind that has none (a Table, a custom resource).
#[must_use]
pub(crate) fn to_protobuf(object: &Value) -> Option<Vec<u8>> {
    let ty = type_of(&gvk_of(object.api_version(), object.kind()))?;
    Some(protobuf::encode(object, &ty))
}

/// An object in CBOR, which every kind has.
#[must_use]
pub(crate) fn to_cbor(object: &Value) -> Vec<u8> {
    cbor::encode(object, &type_of(&gvk_of(object.api_version(), object.kind())).unwrap_or_else(TypeRef::any))
}

/// How the store holds an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredForm {
    /// Canonical JSON of the stored version.
    Json,
    /// Protobuf of the stored version.
    Protobuf,
    /// What other writers may leave: another version, or JSON that is laid out differently.
    Foreign,
    /// A version that only a webhook can convert: which of [`crate::cache::Shape::stored_versions`].
    OtherVersion(u8),
}

/// What a kind is written as. The kinds that extend the API are JSON in upstream's etcd too, whatever the others are.
#[must_use]
pub(crate) fn form_of(gvk: &Gvk, wanted: StorageEncoding) -> StoredForm {
    let extends = matches!(gvk.group.as_str(), "apiextensions.k8s.io" | "apiregistration.k8s.io");
    if wanted == StorageEncoding::Protobuf && !extends && Schema::builtin().kind(gvk).is_some() {
        StoredForm::Protobuf
    } else {
        StoredForm::Json
    }
}

/// Decodes a stored value, whoever wrote it and in whichever encoding.
///
/// # Errors
/// Why it is no object.
pub(crate) fn decode_stored(value: &[u8]) -> Result<Value, String> {
    let text = |e: DecodeError| e.to_string();
    if value.starts_with(cbor::MAGIC) {
        return cbor::parse(value).map_err(text);
    }
    if !value.starts_with(protobuf::MAGIC) {
        return json::value(value).map_err(text);
    }
    let envelope = protobuf::unknown(value).map_err(text)?;
    let gvk = gvk_of(&envelope.meta.api_version, &envelope.meta.kind);
    let ty = type_of(&gvk).ok_or_else(|| format!("{} of {} is not known", gvk.kind, gvk.group_version()))?;
    protobuf::decode(value, &ty).map_err(text)
}

/// Drops what is empty and fills in what is always written, as upstream's types would.
pub(crate) fn normalize(object: &mut Value, ty: &TypeRef) {
    if ty.is_made() {
        // A custom resource keeps what it was given, except in its metadata.
        if let (Some(field), Some(metadata)) = (ty.field("metadata"), object.get_mut("metadata")) {
            codec::normalize(metadata, &field.ty);
        }
        return;
    }
    codec::normalize(object, ty);
}
