//! A watch that outlives members: when its stream breaks it goes on at another, after the last revision that it delivered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Event, EventType, KeyValue, WatchOptions, WatchResponse};
use futures::{Stream, stream};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::failure::Failure;
use super::keys::KeyMap;
use super::members::Members;
use super::{revision_of, signed, unsigned};
use crate::{Entry, KeyRange, Revision, StorageError, WatchEvent};

/// How long a member may take to open a watch.
const OPEN_PATIENCE: Duration = Duration::from_secs(8);
/// How long the cluster may be away before the watch ends with an error; its reader then starts from a list.
const GIVE_UP: Duration = Duration::from_secs(30);

/// One watch of a range.
pub(super) struct Watcher {
    members: Arc<Members>,
    keys: KeyMap,
    range: KeyRange,
    /// Everything up to here has been taken from etcd.
    done: Revision,
    ready: VecDeque<WatchEvent>,
    /// Counts the requests for progress.
    asked: Receiver<u64>,
    /// The member that is asked.
    moves: Receiver<usize>,
    open: Open,
}

/// The stream from one member.
struct Open {
    member: usize,
    scope: Scope,
    stream: etcd_client::WatchStream,
}

/// What is watched at etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The range itself; etcd tells its progress when asked.
    Range,
    /// All keys there are: older versions of etcd may answer a request for progress before they have delivered what it
    /// speaks of. Seeing every change, this watch knows its progress without asking.
    Everything,
}

/// What to do after something that a stream said.
enum Next {
    GoOn,
    Reopen(Failure),
    End(StorageError),
}

impl Watcher {
    pub(super) async fn open(
        members: Arc<Members>,
        keys: KeyMap,
        range: KeyRange,
        after: Revision,
        asked: Receiver<u64>,
    ) -> Result<Self, StorageError> {
        let moves = members.moves();
        let open = open(&members, &keys, &range, after).await?;
        Ok(Watcher { members, keys, range, done: after, ready: VecDeque::new(), asked, moves, open })
    }

    /// The events, and an error at the end.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<WatchEvent, StorageError>> + Send {
        stream::unfold(Some(self), |watcher| async {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(event) => Some((Ok(event), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<WatchEvent, StorageError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let next = tokio::select! {
                message = self.open.stream.message() => match message {
                    Ok(Some(response)) => self.take(&response),
                    Ok(None) => Next::Reopen(closed()),
                    Err(error) => Next::Reopen(Failure::of(&error)),
                },
                Ok(()) = self.asked.changed() => self.ask().await,
                Ok(()) = self.moves.changed() => {
                    if *self.moves.borrow_and_update() == self.open.member { Next::GoOn } else { Next::Reopen(closed()) }
                }
            };
            match next {
                Next::GoOn => {}
                Next::Reopen(failure) => {
                    self.members.leave(self.open.member, &failure);
                    self.open = open(&self.members, &self.keys, &self.range, self.done).await?;
                }
                Next::End(error) => return Err(error),
            }
        }
    }

    async fn ask(&mut self) -> Next {
        match self.open.scope {
            Scope::Everything => {
                self.ready.push_back(WatchEvent::Progress(self.done));
                Next::GoOn
            }
            Scope::Range => match self.open.stream.request_progress().await {
                Ok(()) => Next::GoOn,
                Err(error) => Next::Reopen(Failure::of(&error)),
            },
        }
    }

    fn take(&mut self, response: &WatchResponse) -> Next {
        if response.canceled() {
            return canceled(response, self.done);
        }
        if response.created() {
            return Next::GoOn;
        }
        let mut outside = false;
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = unsigned(kv.mod_revision());
            match self.event_of(event, kv, revision) {
                Some(Ok(event)) => self.ready.push_back(event),
                Some(Err(error)) => return Next::End(error),
                None => outside = true,
            }
            self.done = self.done.max(revision);
        }
        let at = revision_of(response.header());
        if response.events().is_empty() && at >= self.done {
            self.done = at;
            self.ready.push_back(WatchEvent::Progress(at));
        } else if outside {
            // Etcd never divides a revision between two messages, so all of it is here.
            self.ready.push_back(WatchEvent::Progress(self.done));
        }
        Next::GoOn
    }

    /// `None`: not of this range.
    fn event_of(&self, event: &Event, kv: &KeyValue, revision: Revision) -> Option<Result<WatchEvent, StorageError>> {
        let key = self.keys.inward(kv.key()).filter(|key| self.range.contains(key))?;
        let entry = |kv: &KeyValue| Entry {
            key: key.clone(),
            value: Bytes::copy_from_slice(kv.value()),
            create_revision: unsigned(kv.create_revision()),
            mod_revision: unsigned(kv.mod_revision()),
        };
        let previous = event.prev_kv().map(entry);
        let event = match (event.event_type(), previous) {
            (EventType::Put, None) if kv.create_revision() == kv.mod_revision() => {
                WatchEvent::Put { entry: entry(kv), previous: None }
            }
            (EventType::Put, Some(previous)) => WatchEvent::Put { entry: entry(kv), previous: Some(previous) },
            (EventType::Delete, Some(previous)) => WatchEvent::Delete { previous, revision },
            // What the key held before is compacted: history has a gap here.
            (EventType::Put | EventType::Delete, None) => {
                return Some(Err(StorageError::Compacted { asked: self.done, oldest: revision }));
            }
        };
        Some(Ok(event))
    }
}

/// Opens a stream at some member.
async fn open(members: &Arc<Members>, keys: &KeyMap, range: &KeyRange, after: Revision) -> Result<Open, StorageError> {
    let give_up = Instant::now() + GIVE_UP;
    let mut backoff = members.backoff();
    loop {
        let (index, member) = members.current();
        let opening = async {
            let scope = scope_for(member.maintenance.clone().status().await?.version());
            let start = Revision(after.0 + 1);
            let options = WatchOptions::new().with_start_revision(signed(start)).with_prev_key().with_progress_notify();
            let (key, options) = match scope {
                Scope::Range => {
                    (keys.outward(range.start.as_str()), options.with_range(keys.outward(range.end.as_str())))
                }
                Scope::Everything => (Vec::new(), options.with_all_keys()),
            };
            let stream = member.watch.clone().watch(key, Some(options)).await?;
            Ok::<_, etcd_client::Error>(Open { member: index, scope, stream })
        };
        let failure = match tokio::time::timeout(OPEN_PATIENCE, opening).await {
            Ok(Ok(open)) => return Ok(open),
            Ok(Err(error)) => Failure::of(&error),
            Err(_) => Failure::no_answer(OPEN_PATIENCE),
        };
        let failure = failure.at(&member.endpoint);
        if !matches!(failure, Failure::Unsent { .. } | Failure::Lost { .. }) {
            return Err(failure.into_error());
        }
        members.leave(index, &failure);
        let pause = backoff.next();
        if Instant::now() + pause >= give_up {
            return Err(failure.into_error());
        }
        tokio::time::sleep(pause).await;
    }
}

/// Which versions answer a request for progress in order with the events: 3.4.31, 3.5.13, and all from 3.6 on.
fn scope_for(version: &str) -> Scope {
    let mut numbers = version.split('.').map(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u32>().unwrap_or(0)
    });
    let mut number = || numbers.next().unwrap_or(0);
    let reliable = match (number(), number(), number()) {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        (3, minor, _) => minor >= 6,
        (major, ..) => major > 3,
    };
    if reliable { Scope::Range } else { Scope::Everything }
}

fn canceled(response: &WatchResponse, done: Revision) -> Next {
    let oldest = unsigned(response.compact_revision());
    if oldest > Revision(0) {
        return Next::End(StorageError::Compacted { asked: done, oldest });
    }
    let reason = response.cancel_reason().to_owned();
    if reason.contains("permission denied") {
        return Next::End(StorageError::Unavailable { reason });
    }
    Next::Reopen(Failure::Lost { reason, timed_out: false })
}

fn closed() -> Failure {
    Failure::Lost { reason: "the watch was closed".to_owned(), timed_out: false }
}

/// The oldest revision that is kept, which only a watch from before it is told.
pub(super) async fn oldest_kept(members: &Members, asked: Revision) -> Option<Revision> {
    let (_, member) = members.current();
    let options = WatchOptions::new().with_start_revision(signed(asked).max(1));
    let asking = async {
        let mut stream = member.watch.clone().watch("\0", Some(options)).await.ok()?;
        while let Some(response) = stream.message().await.ok()? {
            if response.canceled() {
                return Some(unsigned(response.compact_revision()));
            }
        }
        None
    };
    tokio::time::timeout(OPEN_PATIENCE, asking).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_asked_of_versions_that_keep_order() {
        for (version, want) in [
            ("3.4.23", Scope::Everything),
            ("3.4.31", Scope::Range),
            ("3.5.12", Scope::Everything),
            ("3.5.16", Scope::Range),
            ("3.6.0-rc.3", Scope::Range),
            ("4.0.0", Scope::Range),
            ("3.3.27", Scope::Everything),
            ("", Scope::Everything),
        ] {
            assert_eq!(scope_for(version), want, "{version:?}");
        }
    }
}
