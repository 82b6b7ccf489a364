//! How the events of a watch are framed.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::codec::{cbor, protobuf};
use apimachinery::schema::TypeRef;
use apimachinery::status::Status;
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use storage::Revision;

use super::negotiation::{Accepted, Encoding, Form};
use super::{respond, table};
use crate::cache::{Delivery, EventType, FrameKey, Item, Object, Watcher, event_of};
use crate::encoding;
use crate::registry::{self, Stored};
use crate::resources::Resource;

/// What to tell a client next.
pub(super) enum Event {
    /// An object of the beginning.
    Object {
        kind: EventType,
        object: Arc<Object>,
        revision: Revision,
    },
    /// A change; its frame may be there already, made for another watcher.
    Shared {
        kind: EventType,
        delivery: Arc<Delivery>,
    },
    InitialEnd(Revision),
    /// A change that the selection does not see.
    Nothing,
}

impl Event {
    pub(super) fn of(watcher: &Watcher, item: Item) -> Self {
        match item {
            Item::Initial(object) => Event::Object { kind: EventType::Added, revision: object.revision, object },
            Item::InitialEnd(revision) => Event::InitialEnd(revision),
            Item::Change(delivery) => match event_of(&watcher.cache().shape, &watcher.selection, &delivery.change) {
                Some(kind) => Event::Shared { kind, delivery },
                None => Event::Nothing,
            },
        }
    }
}

/// The object that an event shows: what leaves the selection as it was while it was selected.
pub(super) fn shown(kind: EventType, delivery: &Delivery) -> &Arc<Object> {
    let change = &delivery.change;
    match kind {
        EventType::Deleted => change.previous.as_ref().unwrap_or_else(|| change.object()),
        EventType::Added | EventType::Modified => change.object(),
    }
}

/// Writes frames in one encoding and form.
pub(super) struct Framer {
    resource: Resource,
    accepted: Accepted,
    table: table::Options,
    /// The columns of a Table come with the first event only.
    columns_told: Mutex<bool>,
}

impl Framer {
    pub(super) fn new(resource: &Resource, accepted: Accepted, table: table::Options) -> Self {
        Framer { resource: resource.clone(), accepted, table, columns_told: Mutex::new(false) }
    }

    pub(super) fn media_type(&self) -> &'static str {
        match self.accepted.encoding {
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Encoding::Cbor => "application/cbor-seq",
            Encoding::Json | Encoding::Yaml => "application/json",
        }
    }

    /// The frame of a change, shared with the watchers that want the same.
    pub(super) fn shared(&self, kind: EventType, delivery: &Delivery) -> Bytes {
        let (change, object) = (&delivery.change, shown(kind, delivery));
        let form = match self.accepted.form {
            Form::Object => 0,
            Form::Metadata("v1") => 1,
            Form::Metadata(_) | Form::MetadataList(_) => 2,
            Form::Table(_) => return self.event(kind, object, change.revision),
        };
        if self.resource.converts() {
            return self.event(kind, object, change.revision);
        }
        let form = form * 3
            + match self.accepted.encoding {
                Encoding::Json | Encoding::Yaml => 0,
                Encoding::Protobuf => 1,
                Encoding::Cbor => 2,
            };
        delivery.frame(FrameKey { event: kind, form }, || self.event(kind, object, change.revision))
    }

    /// The frame of an event.
    pub(super) fn event(&self, kind: EventType, object: &Object, revision: Revision) -> Bytes {
        let shape = &self.resource.stored().shape;
        if self.accepted.encoding == Encoding::Json && !self.resource.converts() {
            let mut out = BytesMut::with_capacity(object.body.len() + 96);
            out.put_slice(br#"{"type":""#);
            out.put_slice(kind.name().as_bytes());
            out.put_slice(br#"","object":"#);
            match self.accepted.form {
                Form::Object => object.write(shape, revision, &mut out),
                Form::Metadata(version) | Form::MetadataList(version) => {
                    object.write_metadata(shape, revision, version, &mut out);
                }
                Form::Table(version) => {
                    let mut json = Vec::new();
                    let value = self.value_of(object, revision);
                    encoding::write_json(&mut json, &self.table_of(&value, revision, version));
                    out.put_slice(&json);
                }
            }
            out.put_slice(b"}\n");
            return out.freeze();
        }
        self.frame_of(kind, self.value_of(object, revision), revision)
    }

    /// A webhook has to be asked before an object can be shown.
    pub(super) fn must_ask(&self, object: &Object) -> bool {
        self.resource.must_ask(object.form)
    }

    /// The frame of an event whose object a webhook has to convert; of an error, if it does not.
    pub(super) async fn asked(&self, kind: EventType, object: Arc<Object>, revision: Revision) -> Bytes {
        let stored = Stored { revision: Some(revision), ..Stored::of(&object) };
        match registry::value_in_version(&self.resource, &stored).await {
            Ok(value) => self.frame_of(kind, value, revision),
            Err(status) => self.error(&status),
        }
    }

    fn value_of(&self, object: &Object, revision: Revision) -> Value {
        registry::value_of(&self.resource, &Stored { revision: Some(revision), ..Stored::of(object) })
    }

    /// The frame of an event with an object in the version that is served.
    fn frame_of(&self, kind: EventType, value: Value, revision: Revision) -> Bytes {
        let shown = match self.accepted.form {
            Form::Object => value,
            Form::Metadata(version) | Form::MetadataList(version) => respond::metadata_of(&value, version),
            Form::Table(version) => self.table_of(&value, revision, version),
        };
        self.frame(kind.name(), &shown)
    }

    fn table_of(&self, value: &Value, revision: Revision, version: &'static str) -> Value {
        let def = self.resource.def;
        let mut table = table::empty(def, version);
        table.set(&["metadata", "resourceVersion"], revision.to_string());
        if std::mem::replace(&mut *self.columns_told.lock(), true) {
            table.set(&["columnDefinitions"], Value::Null);
        }
        table.set(&["rows"], vec![table::row(def, value, self.table, version)]);
        table
    }

    /// Tells a client up to where it knows everything; `initial_end`: that this was the beginning.
    pub(super) fn bookmark(&self, revision: Revision, initial_end: bool) -> Bytes {
        let def = self.resource.def;
        let (kind, version) = match self.accepted.form {
            Form::Object => (def.kind.as_str(), def.gvr.group_version().to_string()),
            Form::Table(version) => ("Table", format!("meta.k8s.io/{version}")),
            Form::Metadata(version) | Form::MetadataList(version) => {
                ("PartialObjectMetadata", format!("meta.k8s.io/{version}"))
            }
        };
        let mut object = Value::from([("kind", kind.into()), ("apiVersion", version.into())]);
        object.set(&["metadata", "resourceVersion"], revision.to_string());
        if initial_end {
            object.set(&["metadata", "annotations", "k8s.io/initial-events-end"], "true");
        }
        self.frame("BOOKMARK", &object)
    }

    pub(super) fn error(&self, status: &Status) -> Bytes {
        self.frame("ERROR", &status.to_value())
    }

    fn frame(&self, kind: &str, object: &Value) -> Bytes {
        match self.accepted.encoding {
            Encoding::Json | Encoding::Yaml => {
                let mut out = Vec::with_capacity(256);
                encoding::write_json(&mut out, &Value::from([("type", kind.into()), ("object", object.clone())]));
                out.push(b'\n');
                out.into()
            }
            Encoding::Cbor => {
                let gvk = encoding::gvk_of(object.api_version(), object.kind());
                let ty = encoding::type_of(&gvk).unwrap_or_else(TypeRef::any);
                cbor::watch_event(kind, object, &ty).into()
            }
            Encoding::Protobuf => {
                let document = encoding::to_protobuf(object).unwrap_or_default();
                protobuf::watch_frame(kind, &document).into()
            }
        }
    }
}
