//! Who wants to hear of a change: watchers, indexed by what they select, so that a change costs what matches it.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use compact_str::CompactString;
use parking_lot::Mutex;
use storage::Key;
use tokio::sync::mpsc;

use super::object::{Object, Shape};
use super::ring::Change;
use super::selection::Selection;

/// How many changes may wait for a watcher before it is closed. Beyond this a client is better served by a new list.
const QUEUE: usize = 1024;

/// Names a watcher of one resource.
pub(super) type WatcherId = u64;

/// A change on its way to watchers, with the frames that were made of it: equal watchers share them.
pub struct Delivery {
    pub change: Arc<Change>,
    frames: Mutex<Vec<(FrameKey, Bytes)>>,
}

/// Which encoding of which event a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameKey {
    pub event: EventType,
    /// Names the watcher's encoding; equal numbers mean equal frames.
    pub form: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
        }
    }
}

impl Delivery {
    pub(super) fn new(change: Arc<Change>) -> Self {
        Delivery { change, frames: Mutex::new(Vec::new()) }
    }

    /// The frame of that key, made by the first watcher that needs it.
    pub fn frame(&self, key: FrameKey, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut frames = self.frames.lock();
        if let Some((_, frame)) = frames.iter().find(|(k, _)| *k == key) {
            return frame.clone();
        }
        let frame = make();
        frames.push((key, frame.clone()));
        frame
    }
}

/// What a change means to a selection: an object that enters it is added, one that leaves it is deleted.
#[must_use]
pub(crate) fn event_of(shape: &Shape, selection: &Selection, change: &Change) -> Option<EventType> {
    let selected = |object: &Option<Arc<Object>>| object.as_ref().is_some_and(|o| selection.matches(shape, o));
    match (selected(&change.previous), selected(&change.current)) {
        (false, false) => None,
        (false, true) => Some(EventType::Added),
        (true, true) => Some(EventType::Modified),
        (true, false) => Some(EventType::Deleted),
    }
}

/// The one fact of an object that brings a watcher into play. Each watcher is filed under the narrowest that its selection
/// demands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trigger {
    Any,
    Namespace(CompactString),
    Key(Key),
    /// Index of a selectable field, and its value.
    Field(usize, CompactString),
    Label(CompactString, CompactString),
}

#[derive(Default)]
pub(super) struct Dispatcher {
    watchers: HashMap<WatcherId, Watcher>,
    by_trigger: HashMap<Trigger, Vec<WatcherId>>,
    /// How many watchers are filed under fields and labels, so that nobody pays for triggers that nobody uses.
    by_field: usize,
    by_label: usize,
    last_id: WatcherId,
}

struct Watcher {
    trigger: Trigger,
    selection: Arc<Selection>,
    queue: mpsc::Sender<Arc<Delivery>>,
}

impl Dispatcher {
    pub(super) fn add(
        &mut self,
        shape: &Shape,
        selection: Arc<Selection>,
    ) -> (WatcherId, mpsc::Receiver<Arc<Delivery>>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let trigger = trigger_of(shape, &selection);
        self.last_id += 1;
        self.count(&trigger, 1);
        self.by_trigger.entry(trigger.clone()).or_default().push(self.last_id);
        self.watchers.insert(self.last_id, Watcher { trigger, selection, queue });
        (self.last_id, receiver)
    }

    pub(super) fn remove(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.remove(&id) else { return };
        self.count(&watcher.trigger, -1);
        if let Some(ids) = self.by_trigger.get_mut(&watcher.trigger) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_trigger.remove(&watcher.trigger);
            }
        }
    }

    /// Ends every watch: their clients must list again.
    pub(super) fn close_all(&mut self) {
        self.watchers.clear();
        self.by_trigger.clear();
        (self.by_field, self.by_label) = (0, 0);
    }

    pub(super) fn len(&self) -> usize {
        self.watchers.len()
    }

    fn count(&mut self, trigger: &Trigger, by: isize) {
        let counter = match trigger {
            Trigger::Field(..) => &mut self.by_field,
            Trigger::Label(..) => &mut self.by_label,
            Trigger::Any | Trigger::Namespace(_) | Trigger::Key(_) => return,
        };
        *counter = counter.saturating_add_signed(by);
    }

    /// Hands a change to every watcher whose selection it touches. Never waits: a watcher whose queue is full is closed.
    pub(super) fn send(&mut self, shape: &Shape, change: &Arc<Change>) {
        if self.watchers.is_empty() {
            return;
        }
        let mut delivery = None;
        let mut slow = Vec::new();
        for trigger in self.triggers_of(shape, change) {
            let Some(ids) = self.by_trigger.get(&trigger) else { continue };
            for id in ids {
                let Some(watcher) = self.watchers.get(id) else { continue };
                if event_of(shape, &watcher.selection, change).is_none() {
                    continue;
                }
                let delivery = delivery.get_or_insert_with(|| Arc::new(Delivery::new(Arc::clone(change))));
                if watcher.queue.try_send(Arc::clone(delivery)).is_err() {
                    slow.push(*id);
                }
            }
        }
        for id in slow {
            tracing::debug!(watcher = id, prefix = shape.prefix, "closing a watch that does not keep up");
            self.remove(id);
        }
    }

    /// Every trigger that the object pulls as it is or pulled as it was, each once.
    fn triggers_of(&self, shape: &Shape, change: &Change) -> Vec<Trigger> {
        let object = change.object();
        let mut triggers = vec![Trigger::Any, Trigger::Key(object.key.clone())];
        if shape.namespaced {
            triggers.push(Trigger::Namespace(shape.names(&object.key).0.into()));
        }
        for object in [&change.current, &change.previous].into_iter().flatten() {
            if self.by_field > 0 {
                let fields = (0..shape.fields.len()).map(|i| Trigger::Field(i, object.field(i).into()));
                triggers.extend(fields);
            }
            if self.by_label > 0 {
                triggers.extend(object.labels().iter().map(|(k, v)| Trigger::Label(k.clone(), v.clone())));
            }
        }
        let mut i = 2;
        while i < triggers.len() {
            if triggers[..i].contains(&triggers[i]) {
                triggers.swap_remove(i);
            } else {
                i += 1;
            }
        }
        triggers
    }
}

fn trigger_of(shape: &Shape, selection: &Selection) -> Trigger {
    if let Some(key) = selection.only_key(shape) {
        Trigger::Key(key)
    } else if let Some((index, value)) = selection.required_field() {
        Trigger::Field(index, value.into())
    } else if let Some((key, value)) = selection.required_label() {
        Trigger::Label(key.into(), value.into())
    } else if let Some(namespace) = selection.namespace.as_deref().filter(|_| shape.namespaced) {
        Trigger::Namespace(namespace.into())
    } else {
        Trigger::Any
    }
}
