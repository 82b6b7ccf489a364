//! What is in memory: the live data, the recent past, and who watches.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use imbl::OrdMap;
use tokio::sync::mpsc;

use super::{Batch, EmbeddedOptions, watch_channel};
use crate::{Entry, Key, KeyRange, Revision, StorageError, WatchEvent};

/// A value as the map holds it; the key stands beside it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// When the store deletes it by itself.
    pub expires: Option<SystemTime>,
}

impl Stored {
    pub(super) fn entry(&self, key: &Key) -> Entry {
        Entry {
            key: key.clone(),
            value: self.value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
        }
    }
}

pub(super) type Data = OrdMap<Key, Stored>;

/// What the log holds: the live data and the last revision that was given out.
pub(super) struct Loaded {
    pub data: Data,
    pub revision: Revision,
}

/// One change, and the whole data as it left it (a persistent map: the copies share what is equal).
struct Change {
    revision: Revision,
    event: WatchEvent,
    after: Data,
    bytes: usize,
}

struct Watcher {
    range: KeyRange,
    live: mpsc::Sender<Batch>,
}

pub(super) struct State {
    data: Data,
    revision: Revision,
    /// Reads and watches reach back to here.
    oldest: Revision,
    /// The data at `oldest`.
    oldest_data: Data,
    history: VecDeque<Change>,
    history_bytes: usize,
    max_events: usize,
    max_bytes: usize,
    watchers: Vec<Watcher>,
}

impl State {
    /// History does not survive a restart: it begins at the revision that was loaded.
    pub(super) fn new(loaded: Loaded, options: &EmbeddedOptions) -> Self {
        State {
            oldest_data: loaded.data.clone(),
            data: loaded.data,
            revision: loaded.revision,
            oldest: loaded.revision,
            history: VecDeque::new(),
            history_bytes: 0,
            max_events: options.history_events,
            max_bytes: options.history_bytes,
            watchers: Vec::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    pub(super) fn entry(&self, key: &Key) -> Option<Entry> {
        self.data.get(key).map(|stored| stored.entry(key))
    }

    /// The data as it was at a revision, `None` for now.
    pub(super) fn snapshot(&self, at: Option<Revision>) -> Result<(Data, Revision), StorageError> {
        let Some(at) = at.filter(|at| *at != self.revision) else { return Ok((self.data.clone(), self.revision)) };
        self.check_kept(at)?;
        let upto = self.history.partition_point(|change| change.revision <= at);
        let data = if upto == 0 { &self.oldest_data } else { &self.history[upto - 1].after };
        Ok((data.clone(), at))
    }

    fn check_kept(&self, at: Revision) -> Result<(), StorageError> {
        if at > self.revision {
            return Err(StorageError::Future { asked: at, current: self.revision });
        }
        if at < self.oldest {
            return Err(StorageError::Compacted { asked: at, oldest: self.oldest });
        }
        Ok(())
    }

    /// The changes of the range since `after`, and where those to come arrive.
    pub(super) fn watch(
        &mut self,
        range: KeyRange,
        after: Revision,
    ) -> Result<(Batch, mpsc::Receiver<Batch>), StorageError> {
        self.check_kept(after)?;
        let from = self.history.partition_point(|change| change.revision <= after);
        let past = self.history.range(from..).map(|change| &change.event);
        let past = past.filter(|event| range.contains(key_of(event))).cloned().collect();
        let (live, receiver) = watch_channel();
        self.watchers.push(Watcher { range, live });
        Ok((past, receiver))
    }

    /// Makes a durable group of changes visible. `after` of each change is the data as that change left it.
    pub(super) fn publish(&mut self, changes: Vec<(Revision, WatchEvent, Data)>) {
        let events: Vec<WatchEvent> = changes.iter().map(|(_, event, _)| event.clone()).collect();
        for (revision, event, after) in changes {
            self.revision = revision;
            self.data = after.clone();
            let bytes = bytes_of(&event);
            self.history_bytes += bytes;
            self.history.push_back(Change { revision, event, after, bytes });
        }
        while self.history.len() > self.max_events || (self.history_bytes > self.max_bytes && self.history.len() > 1) {
            self.forget_oldest();
        }
        self.watchers.retain(|watcher| {
            let batch: Batch = events.iter().filter(|e| watcher.range.contains(key_of(e))).cloned().collect();
            // A watcher that is full is closed: it must list again, and never holds up a write.
            if batch.is_empty() { !watcher.live.is_closed() } else { watcher.live.try_send(batch).is_ok() }
        });
    }

    pub(super) fn send_progress(&mut self) {
        let now = self.revision;
        self.watchers.retain(|watcher| watcher.live.try_send(vec![WatchEvent::Progress(now)]).is_ok());
    }

    pub(super) fn compact(&mut self, at: Revision) -> Result<(), StorageError> {
        self.check_kept(at)?;
        while self.history.front().is_some_and(|change| change.revision <= at) {
            self.forget_oldest();
        }
        Ok(())
    }

    fn forget_oldest(&mut self) {
        if let Some(change) = self.history.pop_front() {
            self.history_bytes -= change.bytes;
            self.oldest = change.revision;
            self.oldest_data = change.after;
        }
    }
}

fn key_of(event: &WatchEvent) -> &Key {
    match event {
        WatchEvent::Put { entry, .. } => &entry.key,
        WatchEvent::Delete { previous, .. } => &previous.key,
        WatchEvent::Progress(_) => unreachable!("progress is no change and never stands in history"),
    }
}

fn bytes_of(event: &WatchEvent) -> usize {
    match event {
        WatchEvent::Put { entry, previous } => entry.value.len() + previous.as_ref().map_or(0, |p| p.value.len()),
        WatchEvent::Delete { previous, .. } => previous.value.len(),
        WatchEvent::Progress(_) => 0,
    }
}
