//! The durable side: every live entry in one fjall keyspace, the revision counter in another, written together.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::state::{Data, Loaded, Stored};
use crate::{Key, Revision, StorageError};

/// The memory that fjall may use for what it has not written to a table yet. All reads are served from our own map, so
/// that neither this nor the block cache needs to be large.
const MEMTABLE_BYTES: u64 = 4 << 20;
const CACHE_BYTES: u64 = 1 << 20;

const REVISION: &str = "revision";

/// An etcd-like store starts at revision 1.
const FIRST: Revision = Revision(1);

pub(super) struct Log {
    dir: PathBuf,
    database: Database,
    entries: Keyspace,
    counters: Keyspace,
}

/// One change of a group.
pub(super) enum Record<'a> {
    Put(&'a Key, &'a Stored),
    Remove(&'a Key),
}

impl Log {
    pub(super) fn open(dir: &Path) -> Result<Self, StorageError> {
        std::fs::create_dir_all(dir)?;
        let database = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .worker_threads(1)
            .max_cached_files(Some(32))
            .max_journaling_size(64 << 20)
            .manual_journal_persist(true)
            .open()
            .map_err(|e| open_error(e, dir))?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let entries = database.keyspace("entries", options).map_err(|e| open_error(e, dir))?;
        let counters = database.keyspace("counters", options).map_err(|e| open_error(e, dir))?;
        Ok(Log { dir: dir.to_owned(), database, entries, counters })
    }

    /// Where it is, for opening it again: after a failed write fjall refuses all others, and only a new start from what is
    /// on disk can be trusted.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn load(&self) -> Result<Loaded, StorageError> {
        let revision = match self.counters.get(REVISION).map_err(read_error)? {
            None => FIRST,
            Some(bytes) => Revision(u64::from_be_bytes(exactly(&bytes, "the revision counter")?)),
        };
        let mut data = Data::new();
        for guard in self.entries.iter() {
            let (key, value) = guard.into_inner().map_err(read_error)?;
            let key = std::str::from_utf8(&key).map_err(|_| corrupt("a key is not UTF-8"))?;
            let stored = decode(&value)?;
            if stored.mod_revision > revision {
                return Err(corrupt(&format!("{key} is newer than the store")));
            }
            data.insert(Key(key.into()), stored);
        }
        Ok(Loaded { data, revision })
    }

    /// Makes a group durable, together with the revision that it ends at.
    pub(super) fn append(&self, records: &[Record<'_>], revision: Revision) -> Result<(), StorageError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for record in records {
            match record {
                Record::Put(key, stored) => batch.insert(&self.entries, key.0.as_bytes(), encode(stored)),
                Record::Remove(key) => batch.remove(&self.entries, key.0.as_bytes()),
            }
        }
        batch.insert(&self.counters, REVISION, revision.0.to_be_bytes());
        batch.commit().map_err(write_error)
    }
}

/// create revision, mod revision, expiry in milliseconds since 1970 (0: never), value.
const HEADER: usize = 24;

fn encode(stored: &Stored) -> Vec<u8> {
    let since_1970 = stored.expires.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
    let expires = since_1970.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    let mut out = Vec::with_capacity(HEADER + stored.value.len());
    for number in [stored.create_revision.0, stored.mod_revision.0, expires] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&stored.value);
    out
}

fn decode(bytes: &[u8]) -> Result<Stored, StorageError> {
    let Some((header, value)) = bytes.split_at_checked(HEADER) else { return Err(corrupt("an entry is too short")) };
    let number = |i: usize| exactly(&header[i * 8..i * 8 + 8], "an entry's header").map(u64::from_be_bytes);
    let expires = match number(2)? {
        0 => None,
        ms => SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)),
    };
    Ok(Stored {
        // A copy: the slice would keep the whole block of the table alive.
        value: Bytes::copy_from_slice(value),
        create_revision: Revision(number(0)?),
        mod_revision: Revision(number(1)?),
        expires,
    })
}

fn exactly(bytes: &[u8], what: &str) -> Result<[u8; 8], StorageError> {
    bytes.try_into().map_err(|_| corrupt(&format!("{what} has a wrong length")))
}

fn corrupt(reason: &str) -> StorageError {
    StorageError::Corrupt { reason: reason.to_owned() }
}

fn open_error(error: fjall::Error, dir: &Path) -> StorageError {
    match error {
        fjall::Error::Locked => {
            StorageError::Unavailable { reason: format!("{} is in use by another process", dir.display()) }
        }
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => io_error(e),
        other => StorageError::Corrupt { reason: format!("{}: {other}", dir.display()) },
    }
}

fn read_error(error: fjall::Error) -> StorageError {
    match error {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => io_error(e),
        other => StorageError::Corrupt { reason: other.to_string() },
    }
}

fn write_error(error: fjall::Error) -> StorageError {
    match error {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => io_error(e),
        other => StorageError::Unavailable { reason: other.to_string() },
    }
}

fn io_error(error: std::io::Error) -> StorageError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StorageError::Full,
        _ => StorageError::Io(error),
    }
}
