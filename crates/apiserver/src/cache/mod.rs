//! The watch cache: every object of every resource in memory, once, as bytes; its recent past; and who watches it.
//!
//! Reads never reach the store, except a get that must be linearizable and lists at a past that the cache has forgotten.
//! One watch of the whole registry feeds all caches ([`feed::Feed`]), so that one revision is true of all of them and a
//! consistent list only waits until that has reached the store's.
//!
//! Invariants:
//! - When [`feed::Feed::revision`] shows a revision, every cache holds, and every watcher has been sent, everything up to it.
//! - Watchers get each change once, in order; one that does not keep up is closed, and never holds up anybody.

mod dispatch;
pub(crate) mod feed;
#[cfg(test)]
mod fixture;
pub(crate) mod lister;
mod object;
mod ring;
mod scan;
pub(crate) mod selection;
mod state;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use storage::{Key, Revision};

use dispatch::Dispatcher;
use selection::Selection;
use state::State;

pub(crate) use dispatch::{Delivery, EventType, FrameKey, event_of};
pub(crate) use object::write_revision;
pub(crate) use object::{BadObject, Object, Shape};
pub(crate) use watch::{Item, Start, WatchError, Watcher};

/// The cache of one resource.
pub struct Cache {
    pub shape: Shape,
    state: RwLock<State>,
    /// Taken before `state` wherever both are needed.
    dispatcher: Mutex<Dispatcher>,
    generation: AtomicU64,
    /// What the store holds and nobody can read, with the revision that wrote it. As long as there is any, lists would be
    /// lies.
    unreadable: Mutex<BTreeMap<Key, Revision>>,
}

/// The objects of a list and the revision that they are true of.
pub struct Listed {
    pub objects: Vec<Arc<Object>>,
    pub revision: Revision,
    /// The key after which the next page begins, if there is more.
    pub next: Option<Key>,
    /// How many objects follow; known only without a label or field selector.
    pub remaining: Option<usize>,
}

impl Cache {
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let state = RwLock::new(State::new([], Revision(0), &shape));
        Cache {
            shape,
            state,
            dispatcher: Mutex::default(),
            generation: AtomicU64::new(0),
            unreadable: Mutex::default(),
        }
    }

    /// Begins anew with what the store holds at a revision. Watches end: what happened in between is not known.
    fn reset(&self, objects: Vec<Arc<Object>>, unreadable: BTreeMap<Key, Revision>, revision: Revision) {
        let mut dispatcher = self.dispatcher.lock();
        *self.unreadable.lock() = unreadable;
        *self.state.write() = State::new(objects, revision, &self.shape);
        self.generation.fetch_add(1, Ordering::Release);
        dispatcher.close_all();
    }

    fn apply(&self, key: &Key, current: Option<Arc<Object>>, revision: Revision) {
        let mut dispatcher = self.dispatcher.lock();
        self.unreadable.lock().remove(key);
        let change = self.state.write().apply(&self.shape, key, current, revision);
        if let Some(change) = change {
            self.generation.fetch_add(1, Ordering::Release);
            dispatcher.send(&self.shape, &change);
        }
    }

    /// A version of an object came that cannot be read: the one before is not true any more. That is no deletion, so nobody
    /// is told one: watches end.
    fn lose(&self, key: &Key, revision: Revision) {
        let mut dispatcher = self.dispatcher.lock();
        self.unreadable.lock().insert(key.clone(), revision);
        self.state.write().replace(&self.shape, key, None, revision);
        self.generation.fetch_add(1, Ordering::Release);
        dispatcher.close_all();
    }

    /// What was unreadable can be read now, or is gone. Nothing happens if another change of it has come meanwhile.
    fn recover(&self, key: &Key, lost: Revision, found: Option<Arc<Object>>) {
        let mut dispatcher = self.dispatcher.lock();
        let mut unreadable = self.unreadable.lock();
        let as_lost = found.as_ref().is_none_or(|object| object.revision == lost);
        if unreadable.get(key) != Some(&lost) || !as_lost {
            return;
        }
        unreadable.remove(key);
        let mut state = self.state.write();
        let now = state.revision();
        state.replace(&self.shape, key, found, now);
        self.generation.fetch_add(1, Ordering::Release);
        dispatcher.close_all();
    }

    /// What below a prefix cannot be read.
    #[must_use]
    pub fn unreadable(&self, prefix: &str) -> Vec<(Key, Revision)> {
        let unreadable = self.unreadable.lock();
        unreadable.iter().filter(|(key, _)| key.0.starts_with(prefix)).map(|(k, r)| (k.clone(), *r)).collect()
    }

    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.state.read().get(key).cloned()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.state.read().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn watchers(&self) -> usize {
        self.dispatcher.lock().len()
    }

    /// Rises with every change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Ends every watch of it.
    pub(crate) fn close_watches(&self) {
        self.dispatcher.lock().close_all();
    }

    fn trim(&self, now: std::time::Instant) {
        self.state.write().trim(now);
    }

    /// What the selection means now. `fed` is the feed's revision as it was before this call: the list is true of it or of
    /// a later change of this resource.
    #[must_use]
    pub fn list(&self, selection: &Selection, fed: Revision) -> Listed {
        let state = self.state.read();
        let objects = state.select(&self.shape, selection);
        Listed { objects, revision: fed.max(state.revision()), next: None, remaining: None }
    }

    /// Up to `limit` objects (0: all) after a key, as they were at a revision. `None` when that is too long ago for the cache.
    #[must_use]
    pub fn list_at(&self, selection: &Selection, at: Revision, after: Option<&Key>, limit: usize) -> Option<Listed> {
        let objects = self.state.read().snapshot(at)?;
        let mut found = state::select_from(&objects, &self.shape, selection, after);
        let page: Vec<Arc<Object>> =
            if limit == 0 { found.by_ref().cloned().collect() } else { found.by_ref().take(limit).cloned().collect() };
        let rest = if selection.has_predicate() { found.next().map(|_| None) } else { counted(found) };
        let next = if rest.is_some() { page.last().map(|o| o.key.clone()) } else { None };
        Some(Listed { revision: at, next, remaining: rest.flatten(), objects: page })
    }
}

/// How many are left: `None` for none at all.
#[expect(clippy::option_option, reason = "nothing left, something left, and that many left are three answers")]
fn counted<'a>(rest: impl Iterator<Item = &'a Arc<Object>>) -> Option<Option<usize>> {
    let count = rest.count();
    (count > 0).then_some(Some(count))
}
