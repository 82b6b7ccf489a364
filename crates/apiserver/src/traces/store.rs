//! A store over the store that tells what requests ask of it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use storage::{Entry, Key, KeyRange, Page, Revision, Storage, StorageError, Ttl, WatchStream};

use super::part;

pub(crate) struct Traced(pub Arc<dyn Storage>);

fn key_of(key: &Key) -> Vec<(&'static str, String)> {
    vec![("key", key.0.to_string())]
}

#[async_trait]
impl Storage for Traced {
    async fn create(&self, key: &Key, value: Bytes, ttl: Option<Ttl>) -> Result<Revision, StorageError> {
        part("Create etcd3", || key_of(key), self.0.create(key, value, ttl)).await
    }

    async fn update(
        &self,
        key: &Key,
        value: Bytes,
        expect: Revision,
        ttl: Option<Ttl>,
    ) -> Result<Revision, StorageError> {
        part("GuaranteedUpdate etcd3", || key_of(key), self.0.update(key, value, expect, ttl)).await
    }

    async fn delete(&self, key: &Key, expect: Revision) -> Result<Revision, StorageError> {
        part("Delete etcd3", || key_of(key), self.0.delete(key, expect)).await
    }

    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), StorageError> {
        part("Get etcd3", || key_of(key), self.0.get(key)).await
    }

    async fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<Page, StorageError> {
        part("List(recursive=true) etcd3", || key_of(&range.start), self.0.range(range, limit, at)).await
    }

    async fn watch(&self, range: &KeyRange, after: Revision) -> Result<WatchStream, StorageError> {
        self.0.watch(range, after).await
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        self.0.revision().await
    }

    async fn request_progress(&self) -> Result<(), StorageError> {
        self.0.request_progress().await
    }

    async fn compact(&self, at: Revision) -> Result<(), StorageError> {
        self.0.compact(at).await
    }

    async fn size(&self) -> Result<u64, StorageError> {
        self.0.size().await
    }
}
