//! The one thread that writes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::oneshot;

use super::log::{Log, Record};
use super::state::{Data, State, Stored};
use crate::{Key, Revision, StorageError, Ttl, WatchEvent};

/// The most requests that share one fsync. More would only make the first of them wait longer.
const MAX_GROUP: usize = 512;

pub(super) enum Operation {
    Create { value: Bytes, ttl: Option<Ttl> },
    Update { value: Bytes, expect: Revision, ttl: Option<Ttl> },
    Delete { expect: Revision },
}

pub(super) struct Request {
    pub key: Key,
    pub operation: Operation,
    pub answer: oneshot::Sender<Result<Revision, StorageError>>,
}

pub(super) struct Writer {
    /// `None` after a failed write, until the directory could be opened again.
    log: Option<Log>,
    dir: PathBuf,
    state: Arc<RwLock<State>>,
    inbox: Receiver<Request>,
    /// When which key expires, soonest first.
    expiries: BTreeSet<(SystemTime, Key)>,
}

/// A change that passed its check and waits to become durable.
struct Accepted {
    key: Key,
    revision: Revision,
    event: WatchEvent,
    after: Data,
    stored: Option<Stored>,
    answer: Option<oneshot::Sender<Result<Revision, StorageError>>>,
}

impl Writer {
    pub(super) fn new(log: Log, state: Arc<RwLock<State>>, inbox: Receiver<Request>) -> Self {
        let data = state.read().data().clone();
        let expiries = data.iter().filter_map(|(key, s)| Some((s.expires?, key.clone()))).collect();
        let dir = log.dir().to_owned();
        Writer { log: Some(log), dir, state, inbox, expiries }
    }

    /// Until every sender is gone.
    pub(super) fn run(mut self) {
        loop {
            let wait = self.until_next_expiry();
            let mut group = Vec::new();
            match self.inbox.recv_timeout(wait) {
                Ok(request) => group.push(request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while group.len() < MAX_GROUP
                && let Ok(request) = self.inbox.try_recv()
            {
                group.push(request);
            }
            self.commit(group);
        }
    }

    fn until_next_expiry(&self) -> Duration {
        const LONG: Duration = Duration::from_secs(3600);
        let soonest = self.expiries.first().map(|(at, _)| at.duration_since(SystemTime::now()).unwrap_or_default());
        soonest.unwrap_or(LONG).min(LONG)
    }

    fn commit(&mut self, group: Vec<Request>) {
        let now = SystemTime::now();
        let (mut data, mut revision) = {
            let state = self.state.read();
            (state.data().clone(), state.revision())
        };
        let mut accepted = Vec::with_capacity(group.len());
        for key in self.expired(&data, now) {
            let Some(previous) = data.remove(&key) else { continue };
            revision.0 += 1;
            let event = WatchEvent::Delete { previous: previous.entry(&key), revision };
            accepted.push(Accepted { key, revision, event, after: data.clone(), stored: None, answer: None });
        }
        for Request { key, operation, answer } in group {
            let next = Revision(revision.0 + 1);
            match apply(&mut data, &key, operation, next, now) {
                Ok((event, stored)) => {
                    revision = next;
                    accepted.push(Accepted { key, revision, event, after: data.clone(), stored, answer: Some(answer) });
                }
                // The caller may have gone away; then nobody needs the answer.
                Err(error) => drop(answer.send(Err(error))),
            }
        }
        if accepted.is_empty() {
            return;
        }
        match self.append(&accepted, revision) {
            Ok(()) => self.publish(accepted),
            Err(error) => {
                tracing::error!(%error, "a write could not be made durable");
                for change in accepted {
                    if let Some(answer) = change.answer {
                        drop(answer.send(Err(same(&error))));
                    }
                }
            }
        }
    }

    /// Keys whose time has come; entries that were replaced or deleted since are forgotten.
    fn expired(&mut self, data: &Data, now: SystemTime) -> Vec<Key> {
        let mut due = Vec::new();
        while self.expiries.first().is_some_and(|(at, _)| *at <= now)
            && let Some((at, key)) = self.expiries.pop_first()
        {
            if data.get(&key).is_some_and(|stored| stored.expires == Some(at)) {
                due.push(key);
            }
        }
        due
    }

    /// Makes a group durable.
    fn append(&mut self, accepted: &[Accepted], revision: Revision) -> Result<(), StorageError> {
        match self.append_once(accepted, revision) {
            // What failed was not this group but something that the log did beside it, such as making a table.
            Err(StorageError::Unavailable { .. }) => self.append_once(accepted, revision),
            done => done,
        }
    }

    fn append_once(&mut self, accepted: &[Accepted], revision: Revision) -> Result<(), StorageError> {
        let log = match self.log.take() {
            Some(log) => log,
            None => self.recovered()?,
        };
        let records: Vec<Record<'_>> = accepted
            .iter()
            .map(|change| match &change.stored {
                Some(stored) => Record::Put(&change.key, stored),
                None => Record::Remove(&change.key),
            })
            .collect();
        log.append(&records, revision)?;
        self.log = Some(log);
        Ok(())
    }

    /// Opens the log again after a failure. What was refused may have reached the disk all the same; it is taken back
    /// there, because its writers were told that it failed and nobody has seen it.
    fn recovered(&self) -> Result<Log, StorageError> {
        let log = Log::open(&self.dir)?;
        let on_disk = log.load()?;
        let (data, revision) = {
            let state = self.state.read();
            (state.data().clone(), state.revision())
        };
        let mut records: Vec<Record<'_>> =
            on_disk.data.keys().filter(|key| !data.contains_key(*key)).map(Record::Remove).collect();
        records.extend(
            data.iter().filter(|(key, stored)| on_disk.data.get(*key) != Some(*stored)).map(|(k, s)| Record::Put(k, s)),
        );
        if !records.is_empty() || on_disk.revision != revision {
            log.append(&records, revision)?;
        }
        tracing::info!("the log is open again");
        Ok(log)
    }

    fn publish(&mut self, accepted: Vec<Accepted>) {
        let mut answers = Vec::with_capacity(accepted.len());
        let mut changes = Vec::with_capacity(accepted.len());
        for change in accepted {
            if let Some(expires) = change.stored.and_then(|s| s.expires) {
                self.expiries.insert((expires, change.key));
            }
            answers.push((change.answer, change.revision));
            changes.push((change.revision, change.event, change.after));
        }
        self.state.write().publish(changes);
        for (answer, revision) in answers {
            if let Some(answer) = answer {
                drop(answer.send(Ok(revision)));
            }
        }
    }
}

/// Checks one operation against the data and applies it there.
fn apply(
    data: &mut Data,
    key: &Key,
    operation: Operation,
    revision: Revision,
    now: SystemTime,
) -> Result<(WatchEvent, Option<Stored>), StorageError> {
    let current = data.get(key).cloned();
    let expected = |expect: Revision| match &current {
        None => Err(StorageError::NotFound { key: key.clone() }),
        Some(stored) if stored.mod_revision != expect => {
            Err(StorageError::Conflict { key: key.clone(), current: Box::new(stored.entry(key)) })
        }
        Some(stored) => Ok(stored.clone()),
    };
    let expires = |ttl: Option<Ttl>| ttl.map(|Ttl(after)| now + after);
    match operation {
        Operation::Create { value, ttl } => {
            if current.is_some() {
                return Err(StorageError::Exists { key: key.clone() });
            }
            let stored = Stored { value, create_revision: revision, mod_revision: revision, expires: expires(ttl) };
            data.insert(key.clone(), stored.clone());
            Ok((WatchEvent::Put { entry: stored.entry(key), previous: None }, Some(stored)))
        }
        Operation::Update { value, expect, ttl } => {
            let old = expected(expect)?;
            let create_revision = old.create_revision;
            let stored = Stored { value, create_revision, mod_revision: revision, expires: expires(ttl) };
            data.insert(key.clone(), stored.clone());
            Ok((WatchEvent::Put { entry: stored.entry(key), previous: Some(old.entry(key)) }, Some(stored)))
        }
        Operation::Delete { expect } => {
            let old = expected(expect)?;
            data.remove(key);
            Ok((WatchEvent::Delete { previous: old.entry(key), revision }, None))
        }
    }
}

/// One failure, told to each request of the group.
fn same(error: &StorageError) -> StorageError {
    match error {
        StorageError::Full => StorageError::Full,
        StorageError::Io(e) => StorageError::Io(std::io::Error::new(e.kind(), e.to_string())),
        StorageError::Unavailable { reason } => StorageError::Unavailable { reason: reason.clone() },
        other => StorageError::Unavailable { reason: other.to_string() },
    }
}
