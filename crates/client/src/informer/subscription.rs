//! A receiver of changes that never holds more than one change per object.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Event, Kind, store::Shared};
use crate::ObjectKey;

/// Receives an informer's changes. What happened to an object between two receipts arrives as one change, from the
/// state that this receiver last saw to the state now; an object that came and went in between does not arrive.
pub struct Subscription<K> {
    pending: Arc<Pending<K>>,
}

struct Pending<K> {
    changes: Mutex<Changes<K>>,
    changed: Notify,
}

/// The state that was last received, and the state now.
type Change<K> = (Option<Arc<K>>, Option<Arc<K>>);

struct Changes<K> {
    order: VecDeque<ObjectKey>,
    by_key: HashMap<ObjectKey, Change<K>>,
}

impl<K: Kind> Subscription<K> {
    pub(super) fn attach(shared: &Shared<K>) -> Self {
        let pending = Arc::new(Pending {
            changes: Mutex::new(Changes { order: VecDeque::new(), by_key: HashMap::new() }),
            changed: Notify::new(),
        });
        let sink: Weak<Pending<K>> = Arc::downgrade(&pending);
        shared.add_handler(Box::new(move |event| {
            if let Some(pending) = sink.upgrade() {
                pending.changes.lock().merge(event);
                pending.changed.notify_one();
            }
        }));
        Self { pending }
    }

    /// The next change, in the order in which objects first changed. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Event<K> {
        loop {
            let event = self.try_next();
            if let Some(event) = event {
                return event;
            }
            // A change between the look and the wait leaves a permit behind, which ends the wait at once.
            self.pending.changed.notified().await;
        }
    }

    /// The next change, if there is one now.
    pub fn try_next(&mut self) -> Option<Event<K>> {
        self.pending.changes.lock().take()
    }
}

impl<K> Changes<K> {
    fn merge(&mut self, event: &Event<K>)
    where
        K: Kind,
    {
        let key = event.key();
        if let Some((_, new)) = self.by_key.get_mut(&key) {
            *new = event.now().cloned();
            return;
        }
        self.by_key.insert(key.clone(), (event.old().cloned(), event.now().cloned()));
        self.order.push_back(key);
    }

    fn take(&mut self) -> Option<Event<K>> {
        while let Some(key) = self.order.pop_front() {
            match self.by_key.remove(&key) {
                Some((None, Some(new))) => return Some(Event::Added(new)),
                Some((Some(old), Some(new))) => return Some(Event::Updated { old, new }),
                Some((Some(old), None)) => return Some(Event::Deleted(old)),
                Some((None, None)) | None => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::ObjectMeta;

    use super::*;

    fn map(name: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    #[tokio::test]
    async fn changes_of_one_object_collapse_until_received() {
        let shared = Shared::default();
        shared.apply(map("a", 1));
        let mut subscription = Subscription::attach(&shared);
        shared.apply(map("a", 2));
        shared.apply(map("b", 3));
        shared.delete(map("b", 4));
        shared.apply(map("c", 5));
        assert!(
            matches!(subscription.next().await, Event::Added(a) if a.metadata.resource_version.as_deref() == Some("2"))
        );
        assert!(matches!(subscription.next().await, Event::Added(c) if c.metadata.name.as_deref() == Some("c")));
        shared.apply(map("c", 6));
        shared.delete(map("c", 7));
        assert!(
            matches!(subscription.next().await, Event::Deleted(c) if c.metadata.resource_version.as_deref() == Some("5"))
        );
        assert!(subscription.try_next().is_none());
    }
}
