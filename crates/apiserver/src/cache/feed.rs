//! Keeps the caches up with the store: one list of everything, then one watch of the whole registry.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::RwLock;
use storage::{Key, KeyRange, Revision, Storage, StorageError, WatchEvent};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{BadObject, Cache, Object};

/// Where everything of Kubernetes lies in the store.
pub(crate) const REGISTRY: &str = "/registry/";

/// How long a read waits for the caches to reach a revision before it is told to try again.
const WAIT: Duration = Duration::from_secs(3);
/// After this long without news the store is asked how far it is: something outside the registry was written.
const ASK_FOR_PROGRESS: Duration = Duration::from_millis(50);
/// How many changes are taken in before their revision is announced.
const BATCH: usize = 128;
/// Between two attempts to follow a store that is away.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const TRIM_EVERY: Duration = Duration::from_secs(60);
/// Lists are continued as of a moment until this and up to twice this has passed: as long as upstream's etcd keeps the past.
const COMPACT_EVERY: Duration = Duration::from_secs(300);

/// The caches' common source.
pub struct Feed {
    storage: Arc<dyn Storage>,
    /// By the prefix of their keys.
    caches: RwLock<HashMap<String, Arc<Cache>>>,
    revision: watch::Sender<Revision>,
    joining: mpsc::Sender<Join>,
    joiners: parking_lot::Mutex<Option<mpsc::Receiver<Join>>>,
    /// Something came that cannot be read.
    lost: Notify,
    past: parking_lot::Mutex<Past>,
}

/// How far back lists may reach.
struct Past {
    oldest: Revision,
    /// What becomes the oldest next, and since when it is meant to.
    next: Revision,
    since: Instant,
}

impl Past {
    fn pass(&mut self, now: Instant, revision: Revision) {
        if self.next == Revision(0) || now.duration_since(self.since) >= COMPACT_EVERY {
            *self = Past { oldest: self.next, next: revision, since: now };
        }
    }
}

/// A cache that is to be fed from now on.
struct Join {
    cache: Arc<Cache>,
    joined: oneshot::Sender<()>,
}

/// The caches did not reach a revision in time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Too large resource version: {asked}, current: {current}")]
pub struct TooLarge {
    pub asked: Revision,
    pub current: Revision,
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the watch of the store ended")]
    Ended,
}

impl Feed {
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, caches: impl IntoIterator<Item = Arc<Cache>>) -> Self {
        let caches = caches.into_iter().map(|cache| (cache.shape.prefix.clone(), cache)).collect();
        let (joining, joiners) = mpsc::channel(16);
        Feed {
            storage,
            caches: RwLock::new(caches),
            revision: watch::Sender::new(Revision(0)),
            joining,
            joiners: parking_lot::Mutex::new(Some(joiners)),
            lost: Notify::new(),
            past: parking_lot::Mutex::new(Past { oldest: Revision(0), next: Revision(0), since: Instant::now() }),
        }
    }

    /// Everything up to this revision is in the caches. 0: they are not filled yet.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Lists as of an earlier revision are refused: a client that walks in pages must not count on the past for ever.
    #[must_use]
    pub fn oldest(&self) -> Revision {
        self.past.lock().oldest
    }

    #[must_use]
    pub fn synced(&self) -> bool {
        self.revision() > Revision(0)
    }

    /// Waits until the caches have everything up to a revision.
    ///
    /// # Errors
    /// [`TooLarge`] when that takes too long: most likely the revision is none of this store.
    pub async fn reach(&self, asked: Revision) -> Result<Revision, TooLarge> {
        let mut seen = self.revision.subscribe();
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let wait = tokio::time::timeout(ASK_FOR_PROGRESS, seen.wait_for(|now| *now >= asked));
            if let Ok(Ok(now)) = wait.await {
                return Ok(*now);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(TooLarge { asked, current: self.revision() });
            }
            if let Err(error) = self.storage.request_progress().await {
                tracing::debug!(%error, "the store could not be asked for progress");
            }
        }
    }

    /// Waits until the caches have been filled for the first time.
    pub async fn reach_sync(&self) {
        // The sender is part of this.
        let _ = self.revision.subscribe().wait_for(|now| *now > Revision(0)).await;
    }

    /// Waits until the caches have everything that the store had when this was called.
    ///
    /// # Errors
    /// What the store answers, or [`StorageError::Timeout`] when the caches do not catch up.
    pub async fn catch_up(&self) -> Result<Revision, StorageError> {
        let now = self.storage.revision().await?;
        if self.revision() >= now {
            return Ok(self.revision());
        }
        self.reach(now).await.map_err(|_| StorageError::Timeout)
    }

    /// Feeds one more cache from now on; returns when it is filled.
    pub async fn join(&self, cache: Arc<Cache>) {
        let (joined, done) = oneshot::channel();
        if self.joining.send(Join { cache, joined }).await.is_ok() {
            // An error means that the feed has stopped, and with it the server.
            let _ = done.await;
        }
    }

    /// Feeds a cache no longer.
    pub fn leave(&self, prefix: &str) {
        if let Some(cache) = self.caches.write().remove(prefix) {
            cache.reset(Vec::new(), BTreeMap::new(), self.revision());
        }
    }

    /// Ends every watch. One that begins from now on must be ended by whoever begins it.
    pub fn close_watches(&self) {
        self.caches.read().values().for_each(|cache| cache.close_watches());
    }

    /// Follows the store until `stop`. When the store is away, the caches keep what they have until it is back.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = self.keep_following(stop) => {}
            () = self.recover() => {}
        }
    }

    async fn keep_following(&self, stop: CancellationToken) {
        let Some(mut joiners) = self.joiners.lock().take() else { return };
        let mut joining = Vec::new();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let before = self.revision();
            let following = self.follow(&mut joiners, &mut joining);
            let Some(Err(error)) = stop.run_until_cancelled(following).await else { return };
            tracing::warn!(%error, "the store cannot be followed, trying again");
            if self.revision() > before {
                pause = SHORTEST_PAUSE;
            }
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// `joining`: who waits for a cache that could not be filled before.
    async fn follow(
        &self,
        joiners: &mut mpsc::Receiver<Join>,
        joining: &mut Vec<oneshot::Sender<()>>,
    ) -> Result<(), FeedError> {
        let joined = |all: &mut Vec<oneshot::Sender<()>>| {
            for one in all.drain(..) {
                // Whoever asked may have gone away.
                let _ = one.send(());
            }
        };
        let start = self.storage.revision().await?;
        let caches: Vec<Arc<Cache>> = self.caches.read().values().cloned().collect();
        for cache in caches {
            self.fill(&cache, start).await?;
        }
        self.announce(start);
        joined(joining);
        let changes = self.storage.watch(&registry(), start).await?;
        let mut changes = changes.ready_chunks(BATCH);
        let mut trim = tokio::time::interval(TRIM_EVERY);
        loop {
            tokio::select! {
                batch = changes.next() => {
                    for change in batch.ok_or(FeedError::Ended)? {
                        self.take(change?);
                    }
                }
                Some(join) = joiners.recv() => {
                    joining.push(join.joined);
                    let before =
                        self.caches.write().insert(join.cache.shape.prefix.clone(), Arc::clone(&join.cache));
                    if let Some(before) = before {
                        // Nothing more comes there.
                        before.close_watches();
                    }
                    self.fill(&join.cache, self.revision()).await?;
                    joined(joining);
                }
                _ = trim.tick() => {
                    let now = Instant::now();
                    self.past.lock().pass(now, self.revision());
                    self.caches.read().values().for_each(|cache| cache.trim(now));
                }
            }
        }
    }

    async fn fill(&self, cache: &Cache, at: Revision) -> Result<(), StorageError> {
        let page = self.storage.range(&below(&cache.shape.prefix), 0, Some(at)).await?;
        let (mut objects, mut unreadable) = (Vec::with_capacity(page.entries.len()), BTreeMap::new());
        for entry in page.entries {
            let (key, revision) = (entry.key.clone(), entry.mod_revision);
            match or_log(Object::read(&cache.shape, entry.key, entry.value, revision)) {
                Some(object) => objects.push(object),
                None => {
                    unreadable.insert(key, revision);
                }
            }
        }
        let whole = unreadable.is_empty();
        cache.reset(objects, unreadable, at);
        if !whole {
            self.lost.notify_one();
        }
        Ok(())
    }

    /// Looks again at what could not be read: who keeps the keys may be back. Holds up nobody: what it waits for, the rest
    /// of the feed does not.
    async fn recover(&self) {
        loop {
            self.lost.notified().await;
            let mut pause = SHORTEST_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                let caches: Vec<Arc<Cache>> = self.caches.read().values().cloned().collect();
                let mut left = false;
                for cache in caches {
                    for (key, lost) in cache.unreadable(&cache.shape.prefix) {
                        match self.storage.get(&key).await {
                            Ok((None, _)) => cache.recover(&key, lost, None),
                            Ok((Some(entry), _)) => {
                                let read = Object::read(&cache.shape, entry.key, entry.value, entry.mod_revision);
                                match read {
                                    Ok(object) => cache.recover(&key, lost, Some(Arc::new(object))),
                                    Err(_) => left = true,
                                }
                            }
                            Err(_) => left = true,
                        }
                    }
                }
                if !left {
                    break;
                }
            }
        }
    }

    fn take(&self, change: WatchEvent) {
        let revision = match change {
            WatchEvent::Progress(revision) => revision,
            WatchEvent::Put { entry, .. } => {
                if let Some(cache) = self.cache_of(&entry.key) {
                    let (key, revision) = (entry.key.clone(), entry.mod_revision);
                    match or_log(Object::read(&cache.shape, entry.key, entry.value, revision)) {
                        Some(object) => cache.apply(&key, Some(object), revision),
                        None => {
                            cache.lose(&key, revision);
                            self.lost.notify_one();
                        }
                    }
                }
                entry.mod_revision
            }
            WatchEvent::Delete { previous, revision } => {
                if let Some(cache) = self.cache_of(&previous.key) {
                    cache.apply(&previous.key, None, revision);
                }
                revision
            }
        };
        self.announce(revision);
    }

    fn announce(&self, revision: Revision) {
        self.revision.send_if_modified(|now| {
            let later = revision > *now;
            *now = revision.max(*now);
            later
        });
    }

    /// Prefixes have one segment, or two (`services/specs`, and the group before what extensions add).
    fn cache_of(&self, key: &Key) -> Option<Arc<Cache>> {
        let rest = key.0.strip_prefix(REGISTRY)?;
        let first = rest.find('/')?;
        let caches = self.caches.read();
        let upto = |end: usize| caches.get(&key.0[..=REGISTRY.len() + end]).cloned();
        upto(first).or_else(|| upto(first + 1 + rest[first + 1..].find('/')?))
    }
}

fn or_log(read: Result<Object, BadObject>) -> Option<Arc<Object>> {
    match read {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            tracing::error!(%error, "an object cannot be read: lists of its resource fail");
            None
        }
    }
}

/// All keys below a prefix that ends with a slash.
#[must_use]
pub(crate) fn below(prefix: &str) -> KeyRange {
    let end = format!("{}0", prefix.trim_end_matches('/')); // '0' follows '/' in ASCII
    KeyRange { start: Key(prefix.into()), end: Key(end.into()) }
}

fn registry() -> KeyRange {
    below(REGISTRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_kept_for_one_to_two_intervals() {
        let start = Instant::now();
        let mut past = Past { oldest: Revision(0), next: Revision(0), since: start };
        let mut at = |seconds: u64, revision| {
            past.pass(start + Duration::from_secs(seconds), Revision(revision));
            past.oldest
        };
        assert_eq!(at(0, 5), Revision(0));
        assert_eq!(at(299, 7), Revision(0));
        assert_eq!(at(300, 8), Revision(5));
        assert_eq!(at(599, 9), Revision(5));
        assert_eq!(at(600, 9), Revision(8));
    }
}
