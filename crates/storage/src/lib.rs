//! The state of the cluster: bytes under keys, with etcd's semantics.
//!
//! This crate knows nothing of kinds, `Status` or HTTP. Its entry points are [`Storage`], the two engines that implement it
//! (`embedded::Embedded`, `etcd::Etcd`) and `testing`, the contract suite that every engine passes.
//!
//! Invariants, for every engine:
//! - The store has one [`Revision`] counter. Every successful write takes the next revision; no two writes share one.
//! - A write is acknowledged only when it is durable (fsync, or etcd's quorum). An acknowledged write is never lost.
//! - A watch delivers every change of its range after its start revision once, in revision order, without gaps.

#![forbid(unsafe_code)]

pub mod embedded;
pub mod etcd;
#[cfg(feature = "testing")]
pub mod testing;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// A point in the history of the store. Revision 0 is "before everything"; the first write has revision 2 at the earliest,
/// as in etcd, whose empty store is at revision 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key, `/registry/<resource>/<namespace>/<name>` by convention. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub std::sync::Arc<str>);

/// The half-open range `start..end` of keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    pub start: Key,
    pub end: Key,
}

impl Key {
    #[must_use]
    pub fn new(key: &str) -> Self {
        Key(key.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl KeyRange {
    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &str) -> Self {
        let mut end = prefix.to_owned();
        // Keys are UTF-8; the last character is replaced by its successor. Beyond the last one of all there is none, and
        // no key begins with it.
        while let Some(last) = end.pop() {
            if let Some(next) = (last as u32 + 1..=char::MAX as u32).find_map(char::from_u32) {
                end.push(next);
                break;
            }
        }
        KeyRange { start: Key::new(prefix), end: Key::new(&end) }
    }

    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.start <= *key && *key < self.end
    }
}

/// A stored value and where it stands in history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
}

/// One page of a range read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// How many entries of the range lie after this page.
    pub remaining: u64,
}

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The entry was created (`previous` is `None`) or changed.
    Put { entry: Entry, previous: Option<Entry> },
    /// The key was deleted at `revision`; `previous` is what it held.
    Delete { previous: Entry, revision: Revision },
    /// Everything up to this revision has been delivered.
    Progress(Revision),
}

pub type WatchStream = BoxStream<'static, Result<WatchEvent, StorageError>>;

/// Seconds until the store deletes the key by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl(pub std::time::Duration);

/// Etcd's semantics over bytes. Object-safe: the apiserver picks its engine at start.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Writes a key that must not exist. [`StorageError::Exists`] otherwise.
    async fn create(&self, key: &Key, value: Bytes, ttl: Option<Ttl>) -> Result<Revision, StorageError>;

    /// Replaces the value of a key whose `mod_revision` is `expect`. [`StorageError::Conflict`] carries what is there now.
    /// The new `ttl` replaces the old one.
    async fn update(
        &self,
        key: &Key,
        value: Bytes,
        expect: Revision,
        ttl: Option<Ttl>,
    ) -> Result<Revision, StorageError>;

    /// Deletes a key whose `mod_revision` is `expect`.
    async fn delete(&self, key: &Key, expect: Revision) -> Result<Revision, StorageError>;

    /// The current entry, linearizable, with the store's revision at the read.
    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), StorageError>;

    /// Up to `limit` entries (0: all) in key order, as they were at `at` (`None`: now, linearizable).
    async fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<Page, StorageError>;

    /// All changes of the range after `after`, then `Progress` from time to time and whenever [`Storage::request_progress`]
    /// was called. Ends with [`StorageError::Compacted`] if `after` is older than the history that is kept.
    async fn watch(&self, range: &KeyRange, after: Revision) -> Result<WatchStream, StorageError>;

    /// The store's current revision, linearizable.
    async fn revision(&self) -> Result<Revision, StorageError>;

    /// Asks that every open watch delivers a `Progress` of the current revision soon.
    async fn request_progress(&self) -> Result<(), StorageError>;

    /// Forgets history before `at`.
    async fn compact(&self, at: Revision) -> Result<(), StorageError>;

    /// Bytes on disk, for metrics.
    async fn size(&self) -> Result<u64, StorageError>;
}

/// The cases that a caller can tell apart.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("key {} already exists", key.0)]
    Exists { key: Key },
    #[error("key {} not found", key.0)]
    NotFound { key: Key },
    #[error("key {} has changed", key.0)]
    Conflict { key: Key, current: Box<Entry> },
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("revision {asked} is in the future, the store is at {current}")]
    Future { asked: Revision, current: Revision },
    #[error("value of {size} bytes is larger than the {limit} that the store takes")]
    TooLarge { size: usize, limit: usize },
    #[error("the store has no space left")]
    Full,
    #[error("the store did not answer in time")]
    Timeout,
    #[error("the store is unavailable: {reason}")]
    Unavailable { reason: String },
    #[error("the store is corrupt: {reason}")]
    Corrupt { reason: String },
    #[error("unable to transform key {:?}: {reason}", key.0)]
    Transform { key: Key, reason: String },
    #[error("I/O in the store failed")]
    Io(#[from] std::io::Error),
}
