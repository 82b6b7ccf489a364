//! Encryption at rest: a store over the store, which holds the values of some resources encrypted.
//!
//! Values look as upstream's do (`k8s:enc:<provider>:v1:<key>:…`), so that either may read what the other wrote. The first
//! provider of a resource writes; all of them read.

mod config;
mod kms;
mod local;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::RwLock;
use storage::{Entry, Key, KeyRange, Page, Revision, Storage, StorageError, Ttl, WatchEvent, WatchStream};

use crate::cache::feed::REGISTRY;
pub(crate) use config::Rules;

/// How every encrypted value begins.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// One way of encrypting.
#[async_trait]
trait Provider: Send + Sync {
    /// How values begin that it reads: `k8s:enc:aescbc:v1:`.
    fn prefix(&self) -> &[u8];

    /// A whole value of these bytes. `place` is where it is kept: it can be read nowhere else.
    async fn encrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, String>;

    /// What is behind the prefix, as it was.
    async fn decrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, String>;

    /// It would write a value differently now than it was written (another key).
    async fn is_stale(&self, data: &[u8]) -> bool;

    /// Whether it works.
    async fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// How a resource is kept.
#[derive(Clone)]
enum Way {
    /// As it is.
    Plain,
    Provided(Arc<dyn Provider>),
}

/// The store as the rest of the server sees it.
pub(crate) struct Encrypted {
    inner: Arc<dyn Storage>,
    transforms: Arc<Transforms>,
}

/// From what the store holds to what it means, and back.
struct Transforms {
    rules: RwLock<Arc<Rules>>,
    /// Group-resources by where their keys lie.
    resources: HashMap<String, String>,
}

impl Encrypted {
    pub(crate) fn new(inner: Arc<dyn Storage>, rules: Rules) -> Self {
        let resources = api::resources().iter().map(|def| (def.storage_prefix.clone(), def.gvr.group_resource()));
        let transforms = Transforms { rules: RwLock::new(Arc::new(rules)), resources: resources.collect() };
        Encrypted { inner, transforms: Arc::new(transforms) }
    }

    /// From now on by these rules.
    pub(crate) fn set(&self, rules: Rules) {
        *self.transforms.rules.write() = Arc::new(rules);
    }

    /// Would the value of a key be written differently now? Then it is worth writing though nothing else has changed.
    pub(crate) async fn holds_stale(&self, key: &Key) -> bool {
        match self.inner.get(key).await {
            Ok((Some(entry), _)) => self.transforms.is_stale(key, &entry.value).await,
            _ => false,
        }
    }

    /// Whether all providers work.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let rules = Arc::clone(&self.transforms.rules.read());
        for provider in rules.providers() {
            provider.check().await?;
        }
        Ok(())
    }
}

impl Transforms {
    /// The resource of a key: `secrets`, `deployments.apps`.
    fn resource_of(&self, key: &Key) -> Option<String> {
        let rest = key.as_str().strip_prefix(REGISTRY)?;
        let mut parts = rest.splitn(3, '/');
        let (first, second) = (parts.next()?, parts.next()?);
        if let Some(resource) = self.resources.get(first) {
            return Some(resource.clone());
        }
        let known = self.resources.get(&format!("{first}/{second}"));
        // What a definition adds lies in a directory of its group.
        Some(known.cloned().unwrap_or_else(|| format!("{second}.{first}")))
    }

    /// How values of a key are kept, best way first; nothing for those that no rule is for.
    fn ways(&self, key: &Key) -> Vec<Way> {
        let rules = Arc::clone(&self.rules.read());
        self.resource_of(key).and_then(|resource| rules.of(&resource)).unwrap_or_default()
    }

    async fn encrypt(&self, key: &Key, value: Bytes) -> Result<Bytes, StorageError> {
        match self.ways(key).first() {
            None | Some(Way::Plain) => Ok(value),
            Some(Way::Provided(provider)) => {
                let encrypted = provider.encrypt(&value, key.as_str().as_bytes()).await;
                encrypted.map(Bytes::from).map_err(|reason| transform(key, reason))
            }
        }
    }

    async fn decrypt(&self, key: &Key, value: Bytes) -> Result<Bytes, StorageError> {
        let ways = self.ways(key);
        if ways.is_empty() {
            return Ok(value);
        }
        let encrypted = value.starts_with(ENCRYPTED);
        for way in &ways {
            match way {
                Way::Plain if !encrypted => return Ok(value),
                Way::Plain => {}
                Way::Provided(provider) => {
                    if let Some(data) = value.strip_prefix(provider.prefix()) {
                        let decrypted = provider.decrypt(data, key.as_str().as_bytes()).await;
                        return decrypted.map(Bytes::from).map_err(|reason| transform(key, reason));
                    }
                }
            }
        }
        Err(transform(key, "no matching prefix found".to_owned()))
    }

    /// What cannot be read stays as it is: readers will find that it is no object.
    async fn decrypt_or_keep(&self, mut entry: Entry) -> Entry {
        match self.decrypt(&entry.key, entry.value.clone()).await {
            Ok(value) => entry.value = value,
            Err(error) => tracing::error!(%error, "a value cannot be decrypted"),
        }
        entry
    }

    async fn is_stale(&self, key: &Key, value: &[u8]) -> bool {
        match self.ways(key).first() {
            None => false,
            Some(Way::Plain) => value.starts_with(ENCRYPTED),
            Some(Way::Provided(provider)) => match value.strip_prefix(provider.prefix()) {
                Some(data) => provider.is_stale(data).await,
                None => true,
            },
        }
    }

    async fn decrypt_change(&self, change: WatchEvent) -> WatchEvent {
        match change {
            WatchEvent::Progress(revision) => WatchEvent::Progress(revision),
            WatchEvent::Put { entry, previous } => {
                let entry = self.decrypt_or_keep(entry).await;
                let previous = match previous {
                    Some(previous) => Some(self.decrypt_or_keep(previous).await),
                    None => None,
                };
                WatchEvent::Put { entry, previous }
            }
            WatchEvent::Delete { previous, revision } => {
                WatchEvent::Delete { previous: self.decrypt_or_keep(previous).await, revision }
            }
        }
    }
}

fn transform(key: &Key, reason: String) -> StorageError {
    StorageError::Transform { key: key.clone(), reason }
}

#[async_trait]
impl Storage for Encrypted {
    async fn create(&self, key: &Key, value: Bytes, ttl: Option<Ttl>) -> Result<Revision, StorageError> {
        let value = self.transforms.encrypt(key, value).await?;
        self.inner.create(key, value, ttl).await
    }

    async fn update(
        &self,
        key: &Key,
        value: Bytes,
        expect: Revision,
        ttl: Option<Ttl>,
    ) -> Result<Revision, StorageError> {
        let value = self.transforms.encrypt(key, value).await?;
        match self.inner.update(key, value, expect, ttl).await {
            Err(StorageError::Conflict { key, current }) => {
                let current = Box::new(self.transforms.decrypt_or_keep(*current).await);
                Err(StorageError::Conflict { key, current })
            }
            done => done,
        }
    }

    async fn delete(&self, key: &Key, expect: Revision) -> Result<Revision, StorageError> {
        match self.inner.delete(key, expect).await {
            Err(StorageError::Conflict { key, current }) => {
                let current = Box::new(self.transforms.decrypt_or_keep(*current).await);
                Err(StorageError::Conflict { key, current })
            }
            done => done,
        }
    }

    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), StorageError> {
        let (entry, revision) = self.inner.get(key).await?;
        let Some(mut entry) = entry else { return Ok((None, revision)) };
        entry.value = self.transforms.decrypt(key, entry.value).await?;
        Ok((Some(entry), revision))
    }

    async fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<Page, StorageError> {
        let mut page = self.inner.range(range, limit, at).await?;
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            entries.push(self.transforms.decrypt_or_keep(entry).await);
        }
        page.entries = entries;
        Ok(page)
    }

    async fn watch(&self, range: &KeyRange, after: Revision) -> Result<WatchStream, StorageError> {
        let changes = self.inner.watch(range, after).await?;
        let transforms = Arc::clone(&self.transforms);
        let decrypted = changes.then(move |change| {
            let transforms = Arc::clone(&transforms);
            async move {
                match change {
                    Ok(change) => Ok(transforms.decrypt_change(change).await),
                    Err(error) => Err(error),
                }
            }
        });
        Ok(decrypted.boxed())
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        self.inner.revision().await
    }

    async fn request_progress(&self) -> Result<(), StorageError> {
        self.inner.request_progress().await
    }

    async fn compact(&self, at: Revision) -> Result<(), StorageError> {
        self.inner.compact(at).await
    }

    async fn size(&self) -> Result<u64, StorageError> {
        self.inner.size().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_of_resources() {
        let resources = api::resources().iter().map(|def| (def.storage_prefix.clone(), def.gvr.group_resource()));
        let transforms = Transforms { rules: RwLock::default(), resources: resources.collect() };
        let of = |key: &str| transforms.resource_of(&Key::new(key));
        assert_eq!(of("/registry/secrets/ns/a").as_deref(), Some("secrets"));
        assert_eq!(of("/registry/deployments/ns/a").as_deref(), Some("deployments.apps"));
        assert_eq!(of("/registry/services/specs/ns/a").as_deref(), Some("services"));
        assert_eq!(of("/registry/shop.example.com/carts/ns/a").as_deref(), Some("carts.shop.example.com"));
        assert_eq!(of("/other"), None);
    }
}
