//! The generic registry: every verb on every stored resource, once. What differs between kinds is in their strategies.

mod admit;
mod cel;
mod create;
mod delete;
mod delete_collection;
mod finalizers;
mod list;
mod meta;
mod options;
mod ownership;
mod page;
pub(crate) mod status;
mod update;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use bytes::Bytes;
use compact_str::CompactString;
use storage::{Entry, Key, Revision, Storage};

use crate::attributes::UserInfo;
use crate::cache::feed::Feed;
use crate::cache::{Cache, Object};
use crate::config::StorageEncoding;
use crate::custom::conversion;
use crate::encoding::{self, StoredForm};
use crate::encryption::Encrypted;
use crate::resources::Resource;

pub(crate) use admit::Admission;
pub(crate) use delete::{Deleted, check_delete_preconditions};
pub(crate) use list::ListResult;
pub(crate) use list::parse_version;
pub(crate) use meta::timestamp;
pub(crate) use options::{DeleteOptions, FieldValidation, ListOptions, Preconditions, WriteKind, WriteOptions};
pub(crate) use ownership::FieldManager;
pub(crate) use update::{Part, Rules, Updated, View};

/// Reads and writes objects.
pub struct Registry {
    pub storage: Arc<dyn Storage>,
    /// The same, where some values are encrypted.
    pub(crate) encryption: Option<Arc<Encrypted>>,
    pub feed: Arc<Feed>,
    pub admission: Admission,
    /// What built-in kinds are written as.
    pub encoding: StorageEncoding,
    /// The store is in another process: its answers are worth waiting for only where the caches will not do.
    pub remote_store: bool,
    /// Seconds that an Event lives.
    pub event_ttl: std::time::Duration,
}

/// One write: on what, by whom, how.
pub struct Write {
    pub resource: Resource,
    pub namespace: CompactString,
    /// Empty for a create until the object's name is known.
    pub name: CompactString,
    pub subresource: String,
    pub user: Arc<UserInfo>,
    pub options: WriteOptions,
    /// The change is an apply: it says itself who owns what.
    pub applies: bool,
    /// For the client, in order.
    pub warnings: Vec<String>,
}

/// How many bytes of objects a webhook is asked to convert at once: its answer must not be too long.
const CONVERTED_TOGETHER: usize = 1 << 20;

/// An object as it was stored, in the stored version.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Canonical JSON without `resourceVersion`.
    pub body: Bytes,
    /// `None` for the result of a dry-run create: there is none.
    pub revision: Option<Revision>,
    /// As the store has it, which tells the version that the body is of.
    pub form: StoredForm,
}

impl Write {
    #[must_use]
    pub fn key(&self) -> Key {
        self.resource.stored().shape.key(&self.namespace, &self.name)
    }
}

impl Registry {
    /// The object under a key as the store has it now.
    async fn read(&self, resource: &Resource, key: &Key) -> Result<Option<Arc<Object>>, Status> {
        let (entry, _) = self.storage.get(key).await.map_err(|e| status::of(&e, &resource.def.gvr, key))?;
        entry.map(|entry| object_of(resource.stored(), entry)).transpose()
    }
}

/// The cached object of an entry when the cache has that version already, else one made of it.
fn object_of(cache: &Cache, entry: Entry) -> Result<Arc<Object>, Status> {
    if let Some(cached) = cache.get(&entry.key)
        && cached.revision == entry.mod_revision
    {
        return Ok(cached);
    }
    Object::read(&cache.shape, entry.key, entry.value, entry.mod_revision)
        .map(Arc::new)
        .map_err(|e| Status::internal(e.to_string()))
}

/// An object in the version that the resource serves, with `resourceVersion`.
async fn served(resource: &Resource, object: &Object) -> Result<Value, Status> {
    value_in_version(resource, &Stored::of(object)).await
}

/// A stored object in the version that the resource serves, with `resourceVersion` if it has one.
///
/// # Errors
/// When a webhook has to convert it and does not.
pub(crate) async fn value_in_version(resource: &Resource, stored: &Stored) -> Result<Value, Status> {
    if !resource.must_ask(stored.form) {
        return Ok(value_of(resource, stored));
    }
    Ok(values_in_version(resource, std::slice::from_ref(stored)).await?.pop().unwrap_or_default())
}

/// As [`value_in_version`], of many at once.
///
/// # Errors
/// When a webhook has to convert them and does not.
pub(crate) async fn values_in_version(resource: &Resource, stored: &[Stored]) -> Result<Vec<Value>, Status> {
    let Some(webhook) = resource.webhook() else {
        return Ok(stored.iter().map(|stored| value_of(resource, stored)).collect());
    };
    let shape = &resource.stored().shape;
    let mut values = Vec::with_capacity(stored.len());
    for together in portions(stored, CONVERTED_TOGETHER) {
        let as_stored = together.iter().map(|stored| {
            let mut value = stored.decode();
            value.set(&["apiVersion"], shape.version_of(stored.form));
            value
        });
        let mut converted: Vec<Value> = as_stored.collect();
        conversion::to_served(resource, webhook, &mut converted).await?;
        values.append(&mut converted);
    }
    Ok(values)
}

/// Cuts objects into portions of about a size; what is larger is a portion of its own.
fn portions(stored: &[Stored], size: usize) -> impl Iterator<Item = &[Stored]> {
    let mut taken = 0;
    stored.chunk_by(move |this, next| {
        taken += this.body.len();
        let fits = taken + next.body.len() <= size;
        if !fits {
            taken = 0;
        }
        fits
    })
}

/// A stored object in the version that the resource serves, where no webhook converts.
pub(crate) fn value_of(resource: &Resource, stored: &Stored) -> Value {
    let mut value = stored.decode();
    if resource.converts() {
        resource.def.strategy.to_served(&mut value);
        value.set(&["apiVersion"], resource.def.gvr.group_version().to_string());
    }
    value
}

impl Stored {
    /// An object of the cache.
    #[must_use]
    pub(crate) fn of(object: &Object) -> Self {
        Stored { body: object.body.clone(), revision: Some(object.revision), form: object.form }
    }

    /// As it is stored, with `resourceVersion` if it has one.
    fn decode(&self) -> Value {
        // Stored bytes are JSON of our own making.
        let mut value: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        if let Some(revision) = self.revision {
            value.set(&["metadata", "resourceVersion"], revision.to_string());
        }
        value
    }
}

/// An object in the stored version.
struct Encoded {
    /// Canonical JSON without `resourceVersion`: what caches and clients get.
    body: Bytes,
    /// What the store gets.
    value: Bytes,
    form: StoredForm,
}

impl Encoded {
    /// The store holds it already, just so.
    fn is_held_as(&self, current: &Object) -> bool {
        self.body == current.body && self.form == current.form
    }
}

impl Registry {
    /// Encodes an object that is in the served version.
    ///
    /// # Errors
    /// When a webhook has to convert it and does not.
    async fn encode(&self, resource: &Resource, mut object: Value) -> Result<Encoded, Status> {
        object.remove(&["metadata", "resourceVersion"]);
        encoding::normalize(&mut object, resource.ty());
        if let Some(webhook) = resource.webhook() {
            conversion::to_storage(resource, webhook, &mut object).await?;
        } else if resource.converts() {
            resource.def.strategy.to_storage(&mut object);
            object.set(&["apiVersion"], resource.def.storage.group_version().to_string());
        }
        let body = encoding::canonical(&object);
        match encoding::form_of(&resource.def.storage, self.encoding) {
            StoredForm::Protobuf if let Some(value) = encoding::to_protobuf(&object) => {
                Ok(Encoded { body, value: value.into(), form: StoredForm::Protobuf })
            }
            _ => Ok(Encoded { value: body.clone(), body, form: StoredForm::Json }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sizes: &[usize], want: &[&[usize]]) {
        let stored = |size: &usize| Stored { body: vec![0; *size].into(), revision: None, form: StoredForm::Json };
        let stored: Vec<Stored> = sizes.iter().map(stored).collect();
        let told: Vec<Vec<usize>> = portions(&stored, 10).map(|p| p.iter().map(|s| s.body.len()).collect()).collect();
        assert_eq!(told, want);
    }

    #[test]
    fn objects_are_cut_into_portions() {
        check(&[], &[]);
        check(&[3], &[&[3]]);
        check(&[3, 3, 4, 1, 9], &[&[3, 3, 4], &[1, 9]]);
        check(&[11, 1, 20, 20], &[&[11], &[1], &[20], &[20]]);
    }
}
