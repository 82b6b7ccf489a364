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
use futures::{FutureExt, StreamExt, TryStreamExt};
use storage::{Entry, Key, KeyRange, Page, Revision, Storage, StorageError, Ttl, WatchEvent, WatchStream};
use tokio::sync::watch;

use crate::cache::feed::REGISTRY;
pub(crate) use config::Rules;

/// How every encrypted value begins.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// Why a value cannot be decrypted.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// Who keeps the keys gives no answer now.
    Unreachable(String),
    /// It will not be read later either.
    Unreadable(String),
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        let (Failure::Unreachable(why) | Failure::Unreadable(why)) = failure;
        why
    }
}

/// One way of encrypting.
#[async_trait]
trait Provider: Send + Sync {
    /// How values begin that it reads: `k8s:enc:aescbc:v1:`.
    fn prefix(&self) -> &[u8];

    /// A whole value of these bytes. `place` is where it is kept: it can be read nowhere else.
    async fn encrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, String>;

    /// What is behind the prefix, as it was.
    async fn decrypt(&self, data: &[u8], place: &[u8]) -> Result<Vec<u8>, Failure>;

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
    rules: watch::Sender<Arc<Rules>>,
    /// Group-resources by where their keys lie.
    resources: HashMap<String, String>,
}

impl Encrypted {
    pub(crate) fn new(inner: Arc<dyn Storage>, rules: Rules) -> Self {
        let resources = api::resources().iter().map(|def| (def.storage_prefix.clone(), def.gvr.group_resource()));
        let transforms = Transforms { rules: watch::Sender::new(Arc::new(rules)), resources: resources.collect() };
        Encrypted { inner, transforms: Arc::new(transforms) }
    }

    /// From now on by these rules. Watches end: values may be readable now that were not, and the other way round.
    pub(crate) fn set(&self, rules: Rules) {
        self.transforms.rules.send_replace(Arc::new(rules));
    }

    /// Would the value of a key be written differently now? Then it is worth writing though nothing else has changed.
    pub(crate) async fn holds_stale(&self, key: &Key) -> bool {
        if self.transforms.ways(key).is_empty() {
            return false;
        }
        match self.inner.get(key).await {
            Ok((Some(entry), _)) => self.transforms.is_stale(key, &entry.value).await,
            _ => false,
        }
    }

    /// Whether all providers work.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let rules = Arc::clone(&self.transforms.rules.borrow());
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
        let rules = Arc::clone(&self.rules.borrow());
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

    async fn decrypt(&self, key: &Key, value: Bytes) -> Result<Bytes, Failure> {
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
                        return provider.decrypt(data, key.as_str().as_bytes()).await.map(Bytes::from);
                    }
                }
            }
        }
        Err(Failure::Unreadable("no matching prefix found".to_owned()))
    }

    /// What cannot be read stays as it is: readers will find that it is no object. Tells whether it may be readable later.
    async fn decrypt_or_keep(&self, entry: &mut Entry) -> Result<(), Failure> {
        let read = self.decrypt(&entry.key, entry.value.clone()).await;
        read.map(|value| entry.value = value)
            .inspect_err(|why| tracing::error!(key = %entry.key.0, ?why, "a value cannot be decrypted"))
    }

    /// As [`Self::decrypt_or_keep`], without waiting for anybody: one who keeps keys and gives no answer holds up nothing.
    fn decrypt_now_or_keep(&self, entry: &mut Entry) {
        self.decrypt_or_keep(entry).now_or_never();
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

    fn decrypt_change(&self, mut change: WatchEvent) -> WatchEvent {
        match &mut change {
            WatchEvent::Progress(_) => {}
            WatchEvent::Put { entry, previous } => {
                self.decrypt_now_or_keep(entry);
                previous.iter_mut().for_each(|previous| self.decrypt_now_or_keep(previous));
            }
            WatchEvent::Delete { previous, .. } => self.decrypt_now_or_keep(previous),
        }
        change
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
                let mut current = current;
                let read = self.transforms.decrypt_or_keep(&mut current).await;
                read.map_err(|why| transform(&key, why.into()))?;
                Err(StorageError::Conflict { key, current })
            }
            done => done,
        }
    }

    async fn delete(&self, key: &Key, expect: Revision) -> Result<Revision, StorageError> {
        match self.inner.delete(key, expect).await {
            Err(StorageError::Conflict { key, current }) => {
                let mut current = current;
                let read = self.transforms.decrypt_or_keep(&mut current).await;
                read.map_err(|why| transform(&key, why.into()))?;
                Err(StorageError::Conflict { key, current })
            }
            done => done,
        }
    }

    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), StorageError> {
        let (entry, revision) = self.inner.get(key).await?;
        let Some(mut entry) = entry else { return Ok((None, revision)) };
        entry.value = self.transforms.decrypt(key, entry.value).await.map_err(|why| transform(key, why.into()))?;
        Ok((Some(entry), revision))
    }

    async fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<Page, StorageError> {
        let mut page = self.inner.range(range, limit, at).await?;
        let mut away = false;
        for entry in &mut page.entries {
            // Who gave no answer for one value is not waited for again.
            if away {
                self.transforms.decrypt_now_or_keep(entry);
            } else {
                let read = self.transforms.decrypt_or_keep(entry).await;
                away = matches!(read, Err(Failure::Unreachable(_)));
            }
        }
        Ok(page)
    }

    async fn watch(&self, range: &KeyRange, after: Revision) -> Result<WatchStream, StorageError> {
        let mut rules = self.transforms.rules.subscribe();
        let changes = self.inner.watch(range, after).await?;
        let transforms = Arc::clone(&self.transforms);
        let decrypted = changes.map_ok(move |change| transforms.decrypt_change(change));
        let decrypted = decrypted.take_until(async move {
            // An error means that the sender is gone, and with it the store.
            let _ = rules.changed().await;
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use storage::embedded::{Embedded, EmbeddedOptions};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::cache::feed::Feed;
    use crate::resources::Resources;
    use crate::runtime_config::RuntimeConfig;

    /// Gives no answer the next so many times that it is to decrypt.
    #[derive(Default)]
    struct Away(AtomicUsize);

    #[async_trait]
    impl Provider for Away {
        fn prefix(&self) -> &[u8] {
            b"k8s:enc:away:"
        }

        async fn encrypt(&self, data: &[u8], _: &[u8]) -> Result<Vec<u8>, String> {
            Ok([self.prefix(), data].concat())
        }

        async fn decrypt(&self, data: &[u8], _: &[u8]) -> Result<Vec<u8>, Failure> {
            let away = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1));
            if away.is_ok() { Err(Failure::Unreachable("away".to_owned())) } else { Ok(data.to_vec()) }
        }

        async fn is_stale(&self, _: &[u8]) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_now_is_looked_for_again_and_holds_up_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Embedded::open(dir.path(), EmbeddedOptions::default()).unwrap());
        let provider = Arc::new(Away::default());
        let way = Way::Provided(Arc::clone(&provider) as Arc<dyn Provider>);
        let store = Arc::new(Encrypted::new(inner, Rules::all(way)));
        let caches = Resources::new(&RuntimeConfig::default()).caches();
        let cache_of = |prefix: &str| Arc::clone(caches.iter().find(|cache| cache.shape.prefix == prefix).unwrap());
        let (secrets, maps) = (cache_of("/registry/secrets/"), cache_of("/registry/configmaps/"));
        let key = secrets.shape.key("ns", "a");
        let value = |data: &str| {
            let head = &secrets.shape.head;
            Bytes::from(format!(r#"{head}"name":"a","namespace":"ns"}},"data":{{"a":"{data}"}}}}"#))
        };
        let created = store.create(&key, value("MQ=="), None).await.unwrap();
        let other = maps.shape.key("ns", "plain");
        let plain = format!(r#"{}"name":"plain","namespace":"ns"}}}}"#, maps.shape.head);
        let feed = Arc::new(Feed::new(Arc::clone(&store) as Arc<dyn Storage>, [Arc::clone(&secrets)]));
        let is_at = async |revision| {
            while secrets.get(&key).map(|object| object.revision) != Some(revision) {
                tokio::task::yield_now().await;
            }
        };
        provider.0.store(usize::MAX, Ordering::SeqCst);
        let stop = CancellationToken::new();
        let (running, stopped) = (Arc::clone(&feed), stop.clone());
        let running = tokio::spawn(async move { running.run(stopped).await });
        // The rest goes on without it.
        feed.reach_sync().await;
        assert_eq!(secrets.unreadable(&secrets.shape.prefix), [(key.clone(), created)]);
        provider.0.store(0, Ordering::SeqCst);
        is_at(created).await;
        assert_eq!(secrets.unreadable(&secrets.shape.prefix), []);

        provider.0.store(usize::MAX, Ordering::SeqCst);
        let updated = store.update(&key, value("Mg=="), created, None).await.unwrap();
        while feed.reach(updated).await.is_err() {}
        assert!(secrets.get(&key).is_none());
        assert_eq!(secrets.unreadable(&secrets.shape.prefix), [(key.clone(), updated)]);
        provider.0.store(0, Ordering::SeqCst);
        is_at(updated).await;

        // A cache that joins is not held up either.
        let created = store.create(&other, plain.into(), None).await.unwrap();
        while feed.reach(created).await.is_err() {}
        provider.0.store(usize::MAX, Ordering::SeqCst);
        feed.join(Arc::clone(&maps)).await;
        assert_eq!(maps.unreadable(&maps.shape.prefix), [(other.clone(), created)]);
        provider.0.store(0, Ordering::SeqCst);
        while maps.get(&other).is_none() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn keys_are_of_resources() {
        let resources = api::resources().iter().map(|def| (def.storage_prefix.clone(), def.gvr.group_resource()));
        let transforms = Transforms { rules: watch::Sender::default(), resources: resources.collect() };
        let of = |key: &str| transforms.resource_of(&Key::new(key));
        assert_eq!(of("/registry/secrets/ns/a").as_deref(), Some("secrets"));
        assert_eq!(of("/registry/deployments/ns/a").as_deref(), Some("deployments.apps"));
        assert_eq!(of("/registry/services/specs/ns/a").as_deref(), Some("services"));
        assert_eq!(of("/registry/shop.example.com/carts/ns/a").as_deref(), Some("carts.shop.example.com"));
        assert_eq!(of("/other"), None);
    }
}
