//! The engine for one machine: all live data in memory, a durable log below it.
//!
//! One thread writes. It takes all requests that wait, checks them one after the other against the state as the earlier
//! ones of the group leave it, makes the group durable with one fsync, publishes it to readers and watchers, and only then
//! answers. Readers take a snapshot of a persistent map and never wait for the disk.

mod log;
mod state;
mod witness;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::{Entry, Key, KeyRange, Page, Revision, Storage, StorageError, Ttl, WatchEvent, WatchStream};
use state::State;
use writer::{Operation, Request};

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The largest value that is taken, in bytes. Etcd's limit for a request is 1.5 MiB.
    pub max_value_bytes: usize,
    /// How many changes are kept for watches and for reads at a past revision.
    pub history_events: usize,
    /// How many bytes of values the kept changes may hold.
    pub history_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions { max_value_bytes: 3 << 19, history_events: 10_000, history_bytes: 32 << 20 }
    }
}

/// The embedded engine. Dropping it waits for the writes that were accepted.
pub struct Embedded {
    state: Arc<RwLock<State>>,
    /// `None` only while dropping.
    requests: Option<Mutex<Sender<Request>>>,
    writer: Option<std::thread::JoinHandle<()>>,
    options: EmbeddedOptions,
    dir: std::path::PathBuf,
}

impl Embedded {
    /// Opens the directory, making it if needed, and reads everything that was acknowledged.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] when another process has it open; [`StorageError::Corrupt`] when what is there cannot
    /// be trusted.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<Self, StorageError> {
        let tail = witness::tail_of(dir);
        let log = log::Log::open(dir)?;
        witness::report_cut(tail);
        let loaded = log.load()?;
        witness::check(dir, loaded.revision)?;
        witness::note(dir, loaded.revision)?;
        let state = Arc::new(RwLock::new(State::new(loaded, &options)));
        let (requests, inbox) = std::sync::mpsc::channel();
        let writer = writer::Writer::new(log, Arc::clone(&state), inbox);
        let writer = std::thread::Builder::new().name("storage-writer".into()).spawn(move || writer.run())?;
        let requests = Some(Mutex::new(requests));
        Ok(Embedded { state, requests, writer: Some(writer), options, dir: dir.to_owned() })
    }

    async fn write(&self, key: &Key, operation: Operation) -> Result<Revision, StorageError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { key: key.clone(), operation, answer };
        // The channel has no bound of its own: each request belongs to a caller that waits for the answer.
        let sent = self.requests.as_ref().is_some_and(|r| r.lock().send(request).is_ok());
        if !sent {
            return Err(stopped());
        }
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn check_size(&self, value: &Bytes) -> Result<(), StorageError> {
        let limit = self.options.max_value_bytes;
        if value.len() > limit { Err(StorageError::TooLarge { size: value.len(), limit }) } else { Ok(()) }
    }
}

fn stopped() -> StorageError {
    StorageError::Unavailable { reason: "the store has stopped".into() }
}

#[async_trait]
impl Storage for Embedded {
    async fn create(&self, key: &Key, value: Bytes, ttl: Option<Ttl>) -> Result<Revision, StorageError> {
        self.check_size(&value)?;
        self.write(key, Operation::Create { value, ttl }).await
    }

    async fn update(
        &self,
        key: &Key,
        value: Bytes,
        expect: Revision,
        ttl: Option<Ttl>,
    ) -> Result<Revision, StorageError> {
        self.check_size(&value)?;
        self.write(key, Operation::Update { value, expect, ttl }).await
    }

    async fn delete(&self, key: &Key, expect: Revision) -> Result<Revision, StorageError> {
        self.write(key, Operation::Delete { expect }).await
    }

    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), StorageError> {
        let state = self.state.read();
        Ok((state.entry(key), state.revision()))
    }

    async fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<Page, StorageError> {
        let (data, revision) = self.state.read().snapshot(at)?;
        let mut found = data.range(range.start.clone()..range.end.clone()).map(|(key, stored)| stored.entry(key));
        let entries: Vec<Entry> =
            if limit == 0 { found.by_ref().collect() } else { found.by_ref().take(limit).collect() };
        Ok(Page { entries, revision, remaining: found.count() as u64 })
    }

    async fn watch(&self, range: &KeyRange, after: Revision) -> Result<WatchStream, StorageError> {
        let (past, live) = self.state.write().watch(range.clone(), after)?;
        let live = ReceiverStream::new(live).flat_map(futures::stream::iter);
        // The channel closes when this watcher was too slow or the store stopped; both must not look like an end.
        let end = futures::stream::once(async {
            Err(StorageError::Unavailable { reason: "the watch fell behind or the store has stopped".into() })
        });
        Ok(futures::stream::iter(past).chain(live).map(Ok).chain(end).boxed())
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        Ok(self.state.read().revision())
    }

    async fn request_progress(&self) -> Result<(), StorageError> {
        self.state.write().send_progress();
        Ok(())
    }

    async fn compact(&self, at: Revision) -> Result<(), StorageError> {
        self.state.write().compact(at)
    }

    async fn size(&self) -> Result<u64, StorageError> {
        Ok(directory_size(&self.dir))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has already failed every request; there is nobody left to tell.
            let _ = writer.join();
        }
        let reached = self.state.read().revision();
        if let Err(error) = witness::note(&self.dir, reached) {
            tracing::warn!(%error, "damage to the end of the log would not be noticed");
        }
    }
}

fn directory_size(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.filter_map(Result::ok).map(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => directory_size(&entry.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// How many batches a watcher may lie behind before it is closed.
const WATCH_BUFFER: usize = 4096;

type Batch = Vec<WatchEvent>;

fn watch_channel() -> (mpsc::Sender<Batch>, mpsc::Receiver<Batch>) {
    mpsc::channel(WATCH_BUFFER)
}
