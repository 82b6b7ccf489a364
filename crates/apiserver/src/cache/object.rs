//! One version of an object as the watch cache holds it: its bytes, once, and the few facts that selections look at.

use std::sync::{Arc, Weak};

use apimachinery::Value;
use apimachinery::codec::protobuf;
use bytes::{BufMut, Bytes, BytesMut};
use compact_str::CompactString;
use parking_lot::Mutex;
use storage::{Key, Revision};

use super::scan::{self, Facts};
use crate::encoding::{self, StoredForm};

/// What is the same for all objects of a resource: how their encodings begin, and what may be selected.
pub struct Shape {
    /// `/registry/pods/`
    pub prefix: String,
    pub namespaced: bool,
    /// How every canonical encoding begins: `{"kind":"Pod","apiVersion":"v1","metadata":{`.
    pub head: String,
    /// Items of a list of this resource carry kind and apiVersion (custom resources do, built-in kinds do not).
    pub typed_items: bool,
    /// The versions that objects may be stored in (`group/version`), where a webhook has to convert between them.
    pub stored_versions: Vec<CompactString>,
    /// Selectable fields, as the strategy states them.
    pub fields: &'static [(&'static str, &'static [&'static str])],
    pub strategy: &'static dyn api::Strategy,
}

pub struct Object {
    pub key: Key,
    /// Canonical JSON of the stored version, without `resourceVersion`; begins with [`Shape::head`]. Shared with the engine
    /// when that keeps its values in memory.
    pub body: Bytes,
    /// The revision that wrote it.
    pub revision: Revision,
    /// What the store holds, which `body` was made of.
    pub form: StoredForm,
    facts: Facts,
    /// The last decoded form, as long as somebody uses it.
    decoded: Mutex<Weak<Value>>,
    /// The protobuf message that it is in lists, from the first such list until the cache is trimmed.
    message: Mutex<Option<Bytes>>,
}

/// A stored value that is no object of its resource.
#[derive(Debug, thiserror::Error)]
#[error("the stored value of {key} cannot be decoded: {reason}")]
pub struct BadObject {
    pub key: String,
    pub reason: String,
}

impl Shape {
    /// A cache of this shape is as good as one of the other.
    #[must_use]
    pub fn serves_as(&self, other: &Shape) -> bool {
        self.head == other.head
            && self.namespaced == other.namespaced
            && self.stored_versions == other.stored_versions
            && self.fields == other.fields
            && std::ptr::addr_eq(self.strategy, other.strategy)
    }

    /// The version that an object is stored in.
    #[must_use]
    pub fn version_of(&self, form: StoredForm) -> &str {
        let other = match form {
            StoredForm::OtherVersion(index) => self.stored_versions.get(usize::from(index)),
            StoredForm::Json | StoredForm::Protobuf | StoredForm::Foreign => None,
        };
        other.map_or_else(|| self.head.split('"').nth(7).unwrap_or_default(), CompactString::as_str)
    }

    /// Namespace and name of a key of this resource.
    #[must_use]
    pub fn names<'a>(&self, key: &'a Key) -> (&'a str, &'a str) {
        let rest = key.0.get(self.prefix.len()..).unwrap_or_default();
        if self.namespaced { rest.split_once('/').unwrap_or(("", rest)) } else { ("", rest) }
    }

    #[must_use]
    pub fn key(&self, namespace: &str, name: &str) -> Key {
        let text = if self.namespaced {
            format!("{}{namespace}/{name}", self.prefix)
        } else {
            format!("{}{name}", self.prefix)
        };
        Key(text.into())
    }
}

impl Object {
    /// Reads a stored value. What is not canonical JSON of the stored version (another writer, another encoding) is made so.
    ///
    /// # Errors
    /// When the value is no object of this resource.
    pub fn read(shape: &Shape, key: Key, value: Bytes, revision: Revision) -> Result<Self, BadObject> {
        let bad = |reason: String| BadObject { key: key.0.to_string(), reason };
        let (body, form) = if value.starts_with(shape.head.as_bytes()) && !value.ends_with(FOREIGN_END) {
            (value, StoredForm::Json)
        } else {
            let (object, form) = read_foreign(shape, &value).map_err(bad)?;
            let body = encoding::canonical(&object);
            if !body.starts_with(shape.head.as_bytes()) {
                return Err(bad(format!("it is a {} of {}", object.kind(), object.api_version())));
            }
            (body, form)
        };
        let facts = scan::facts_of(shape, &body).map_err(|e| bad(e.to_string()))?;
        Ok(Object { key, body, revision, form, facts, decoded: Mutex::default(), message: Mutex::default() })
    }

    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.facts.labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    #[must_use]
    pub fn labels(&self) -> &[(CompactString, CompactString)] {
        &self.facts.labels
    }

    /// The value of the selectable field of that index.
    #[must_use]
    pub fn field(&self, index: usize) -> &str {
        self.facts.fields.get(index).map_or("", CompactString::as_str)
    }

    /// The decoded object, with `resourceVersion`. Shared between those who use it at the same time.
    pub fn decoded(&self) -> Arc<Value> {
        let mut slot = self.decoded.lock();
        if let Some(value) = slot.upgrade() {
            return value;
        }
        let value = Arc::new(self.decode());
        *slot = Arc::downgrade(&value);
        value
    }

    /// The protobuf message that it is in lists, made by `make` if it is not at hand.
    pub fn message(&self, make: impl FnOnce(&Self) -> Vec<u8>) -> Bytes {
        self.message.lock().get_or_insert_with(|| make(self).into()).clone()
    }

    pub(super) fn forget_message(&self) {
        self.message.lock().take();
    }

    /// A decoded copy to change, with `resourceVersion`.
    #[must_use]
    pub fn decode(&self) -> Value {
        // The bytes were scanned whole when they came in; they are JSON.
        let mut value: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        value.set(&["metadata", "resourceVersion"], self.revision.to_string());
        value
    }

    /// The whole object as JSON, with `resourceVersion` in its place.
    pub fn write(&self, shape: &Shape, revision: Revision, out: &mut BytesMut) {
        out.put_slice(shape.head.as_bytes());
        self.write_from_metadata(shape, revision, out);
    }

    /// As an item of a list.
    pub fn write_item(&self, shape: &Shape, out: &mut BytesMut) {
        out.put_slice(if shape.typed_items { shape.head.as_bytes() } else { ITEM_HEAD });
        self.write_from_metadata(shape, self.revision, out);
    }

    fn write_from_metadata(&self, shape: &Shape, revision: Revision, out: &mut BytesMut) {
        write_revision(revision, out);
        out.put_slice(&self.body[shape.head.len()..]);
    }

    /// A PartialObjectMetadata of it, in `meta.k8s.io/v1` or `v1beta1`.
    pub fn write_metadata(&self, shape: &Shape, revision: Revision, version: &str, out: &mut BytesMut) {
        out.put_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/"#);
        out.put_slice(version.as_bytes());
        out.put_slice(br#"","metadata":{"#);
        write_revision(revision, out);
        out.put_slice(&self.body[shape.head.len()..self.facts.metadata_end]);
        out.put_u8(b'}');
    }

    /// How many bytes [`Object::write_item`] writes.
    #[must_use]
    pub fn item_len(&self, shape: &Shape) -> usize {
        let head = if shape.typed_items { shape.head.len() } else { ITEM_HEAD.len() };
        head + br#""resourceVersion":"","#.len() + digits(self.revision.0) + self.body.len() - shape.head.len()
    }
}

/// Upstream's JSON ends with a newline, ours never does: it is told by that, since its layout may differ.
const FOREIGN_END: &[u8] = b"\n";

/// Decodes what is not our canonical JSON, into the stored version.
fn read_foreign(shape: &Shape, value: &[u8]) -> Result<(Value, StoredForm), String> {
    let mut object = encoding::decode_stored(value)?;
    object.remove(&["metadata", "resourceVersion"]);
    let mut form = if value.starts_with(protobuf::MAGIC) { StoredForm::Protobuf } else { StoredForm::Foreign };
    let written = encoding::gvk_of(object.api_version(), object.kind());
    // Another writer may prefer another version of the kind.
    if let Some(def) = api::resource_of_kind(&written).filter(|def| def.storage != written) {
        def.strategy.to_storage(&mut object);
        object.set(&["apiVersion"], def.storage.group_version().to_string());
        form = StoredForm::Foreign;
    }
    // A custom resource may have been stored in another version; without a converter, versions differ in name only.
    let version = shape.version_of(StoredForm::Json);
    if shape.typed_items && object.api_version() != version {
        let known = shape.stored_versions.iter().position(|v| v == object.api_version());
        object.set(&["apiVersion"], version);
        if let Some(index) = known.and_then(|index| u8::try_from(index).ok()) {
            // What it has is of the other version still.
            return Ok((object, StoredForm::OtherVersion(index)));
        }
        form = StoredForm::Foreign;
    }
    // It may be older than some fields of its kind.
    shape.strategy.default(&mut object);
    Ok((object, form))
}

const ITEM_HEAD: &[u8] = br#"{"metadata":{"#;

pub(crate) fn write_revision(revision: Revision, out: &mut BytesMut) {
    out.put_slice(br#""resourceVersion":""#);
    out.put_slice(itoa::Buffer::new().format(revision.0).as_bytes());
    out.put_slice(br#"","#);
}

fn digits(n: u64) -> usize {
    n.checked_ilog10().map_or(1, |d| d as usize + 1)
}
