//! Shared informers: one watch per kind and selection, a cache of `Arc<K>` with declared indexes, and two ways to hear
//! of changes.
//!
//! - [`SharedInformer::on_event`]: a closure called in order with every change, on the informer's own task. It must be
//!   short and must not wait; putting a key into a queue is what it is for. Nothing is buffered, so nothing can
//!   overflow.
//! - [`SharedInformer::subscribe`]: a receiver for consumers that work on each change. Changes of the same object that
//!   were not yet received collapse into one, so that what is kept is bounded by the number of objects.

mod factory;
mod reflector;
mod store;
mod subscription;
mod trim;

use std::{fmt::Debug, sync::Arc};

use kube::Resource;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub use factory::{Selection, SharedInformerFactory};
pub use kube::runtime::watcher::Event as WatchEvent;
pub use reflector::follow_metadata;
pub use store::{Lister, NAMESPACE_INDEX, revision_of};
pub use subscription::Subscription;
pub use trim::trim_pod;

use crate::ObjectKey;
use store::Shared;

/// What an informer can watch: a kind with its type known at compile time.
pub trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Kind for K {}

/// One change of one object, as the cache went through it.
#[derive(Debug)]
pub enum Event<K> {
    Added(Arc<K>),
    Updated {
        old: Arc<K>,
        new: Arc<K>,
    },
    /// The last state that was seen; the object may have changed once more before it went away.
    Deleted(Arc<K>),
}

impl<K> Clone for Event<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Added(new) => Self::Added(new.clone()),
            Self::Updated { old, new } => Self::Updated { old: old.clone(), new: new.clone() },
            Self::Deleted(old) => Self::Deleted(old.clone()),
        }
    }
}

impl<K> Event<K> {
    /// The newest state that the event tells of.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Updated { new: object, .. } | Self::Deleted(object) => object,
        }
    }

    /// The state before, unless the object is new.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Self::Added(_) => None,
            Self::Updated { old, .. } | Self::Deleted(old) => Some(old),
        }
    }

    /// The state now, unless the object is gone.
    pub fn now(&self) -> Option<&Arc<K>> {
        match self {
            Self::Added(new) | Self::Updated { new, .. } => Some(new),
            Self::Deleted(_) => None,
        }
    }
}

impl<K: Resource> Event<K> {
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(&**self.object())
    }
}

/// A handle to one shared watch and its cache. Clones share both.
pub struct SharedInformer<K> {
    shared: Arc<Shared<K>>,
    synced: watch::Receiver<bool>,
}

impl<K> Clone for SharedInformer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), synced: self.synced.clone() }
    }
}

impl<K: Kind> SharedInformer<K> {
    /// Read access to the cache; see [`Self::synced`] for when it is whole.
    #[must_use]
    pub fn lister(&self) -> Lister<K> {
        Lister::new(self.shared.clone())
    }

    /// Declares an index: `values` gives the values under which an object is found by [`Lister::by_index`]. Declaring
    /// the same name again changes nothing, so that several consumers can share an index.
    pub fn add_index(&self, name: &'static str, values: fn(&K) -> Vec<String>) {
        self.shared.add_index(name, values);
    }

    /// Calls `handler` with every change, after an `Added` for every object that is in the cache now.
    ///
    /// The handler runs inside the informer: it must neither block nor register handlers.
    pub fn on_event(&self, handler: impl Fn(&Event<K>) + Send + Sync + 'static) {
        self.shared.add_handler(Box::new(handler));
    }

    /// A receiver of changes, which first receives `Added` for every object that is in the cache now.
    #[must_use]
    pub fn subscribe(&self) -> Subscription<K> {
        Subscription::attach(&self.shared)
    }

    /// Waits until the first list is in the cache and every handler was called for it. Returns `false` when the
    /// informer was stopped before that.
    pub async fn synced(&self) -> bool {
        self.synced.clone().wait_for(|synced| *synced).await.is_ok()
    }

    #[must_use]
    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }
}

/// An informer over a list that is given once and never watched, for tests of consumers.
impl<K: Kind> SharedInformer<K> {
    #[must_use]
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let shared = Arc::new(Shared::default());
        shared.replace(objects.into_iter().map(Arc::new).collect());
        let (_, synced) = watch::channel(true);
        Self { shared, synced }
    }
}
