//! One watch: what there was when it began, then what changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use storage::Revision;
use tokio::sync::mpsc;

use super::dispatch::{Delivery, WatcherId};
use super::selection::Selection;
use super::{Cache, Object};

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With everything that is there. `fed` is the feed's revision before the watch was asked for.
    WithInitial { fed: Revision },
    /// With the first change after a revision.
    After(Revision),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("too old resource version: {asked} ({oldest})")]
    TooOld { asked: Revision, oldest: Revision },
}

/// What a watcher is to be told next.
pub enum Item {
    /// An object that was there from the start.
    Initial(Arc<Object>),
    /// All objects that were there from the start have been given; they are true of this revision.
    InitialEnd(Revision),
    Change(Arc<Delivery>),
}

pub struct Watcher {
    cache: Arc<Cache>,
    id: WatcherId,
    pub selection: Arc<Selection>,
    initial: VecDeque<Arc<Object>>,
    initial_end: Option<Revision>,
    past: VecDeque<Arc<Delivery>>,
    live: mpsc::Receiver<Arc<Delivery>>,
    /// Changes up to here are not told.
    after: Revision,
}

impl Cache {
    /// Begins a watch.
    ///
    /// # Errors
    /// When changes since the start have been forgotten.
    pub fn watch(self: &Arc<Self>, selection: Arc<Selection>, start: Start) -> Result<Watcher, WatchError> {
        // With the dispatcher held no change can come between the past that is read here and what arrives in the queue.
        let mut dispatcher = self.dispatcher.lock();
        let state = self.state.read();
        let (mut initial, mut past) = (VecDeque::new(), VecDeque::new());
        let after = match start {
            Start::WithInitial { fed } => {
                initial = state.select(&self.shape, &selection).into();
                fed.max(state.revision())
            }
            Start::After(revision) => {
                let changes = state
                    .ring()
                    .since(revision)
                    .ok_or_else(|| WatchError::TooOld { asked: revision, oldest: state.ring().floor() })?;
                let selected = changes.filter(|c| super::dispatch::event_of(&self.shape, &selection, c).is_some());
                past = selected.map(|change| Arc::new(Delivery::new(Arc::clone(change)))).collect();
                revision
            }
        };
        drop(state);
        let (id, live) = dispatcher.add(&self.shape, Arc::clone(&selection));
        let initial_end = matches!(start, Start::WithInitial { .. }).then_some(after);
        Ok(Watcher { cache: Arc::clone(self), id, selection, initial, initial_end, past, live, after })
    }
}

impl Watcher {
    #[must_use]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Nothing waits to be told. Only then is it true that the client knows everything up to the feed's revision, provided
    /// that was read before.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.initial.is_empty() && self.initial_end.is_none() && self.past.is_empty() && self.live.is_empty()
    }

    /// `None` when the server closed the watch.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        if let Some(object) = self.initial.pop_front() {
            return Poll::Ready(Some(Item::Initial(object)));
        }
        if let Some(revision) = self.initial_end.take() {
            self.initial = VecDeque::new();
            return Poll::Ready(Some(Item::InitialEnd(revision)));
        }
        if let Some(delivery) = self.past.pop_front() {
            return Poll::Ready(Some(Item::Change(delivery)));
        }
        loop {
            match std::task::ready!(self.live.poll_recv(cx)) {
                Some(delivery) if delivery.change.revision <= self.after => {}
                Some(delivery) => return Poll::Ready(Some(Item::Change(delivery))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.cache.dispatcher.lock().remove(self.id);
    }
}
