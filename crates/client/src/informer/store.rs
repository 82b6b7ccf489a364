//! The cache behind an informer: objects by key, declared indexes, and the handlers that hear of each change.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kube::Resource;
use parking_lot::{Mutex, RwLock};

use super::{Event, Kind};
use crate::ObjectKey;

type Handler<K> = Box<dyn Fn(&Event<K>) + Send + Sync>;
type IndexFn<K> = fn(&K) -> Vec<String>;

pub(super) struct Shared<K> {
    cache: RwLock<Cache<K>>,
    /// Held from before a change enters the cache until every handler heard of it, so that a handler that is added
    /// meanwhile sees each object once.
    handlers: Mutex<Vec<Handler<K>>>,
    /// The newest resourceVersion seen, of an object.
    revision: AtomicU64,
}

struct Cache<K> {
    objects: HashMap<ObjectKey, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, HashSet<ObjectKey>>,
}

impl<K> Default for Shared<K> {
    fn default() -> Self {
        Self {
            cache: RwLock::new(Cache { objects: HashMap::new(), indexes: HashMap::new() }),
            handlers: Mutex::default(),
            revision: AtomicU64::new(0),
        }
    }
}

impl<K: Kind> Shared<K> {
    pub(super) fn add_handler(&self, handler: Handler<K>) {
        let mut handlers = self.handlers.lock();
        let present: Vec<_> = self.cache.read().objects.values().cloned().collect();
        for object in present {
            handler(&Event::Added(object));
        }
        handlers.push(handler);
    }

    pub(super) fn add_index(&self, name: &'static str, values: IndexFn<K>) {
        let mut cache = self.cache.write();
        if cache.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { values, keys: HashMap::new() };
        for (key, object) in &cache.objects {
            index.insert(key, object);
        }
        cache.indexes.insert(name, index);
    }

    pub(super) fn apply(&self, object: K) {
        let revision = revision_of(&object);
        let handlers = self.handlers.lock();
        let change = self.cache.write().put(Arc::new(object));
        // Before the handlers: what they queue may be worked on at once, and has to find its writes visible.
        self.see(revision);
        if let Some(event) = change {
            tell(&handlers, &event);
        }
    }

    pub(super) fn delete(&self, object: K) {
        let revision = revision_of(&object);
        let handlers = self.handlers.lock();
        let key = ObjectKey::of(&object);
        let known = self.cache.write().take(&key).is_some();
        self.see(revision);
        if known {
            // The server's last word is newer than what the cache had.
            tell(&handlers, &Event::Deleted(Arc::new(object)));
        }
    }

    /// Makes the cache hold exactly `objects`, as a new list does after a gap in the watch.
    pub(super) fn replace(&self, objects: Vec<Arc<K>>) {
        let revision = objects.iter().filter_map(|object| revision_of(&**object)).max();
        let handlers = self.handlers.lock();
        let kept: HashSet<ObjectKey> = objects.iter().map(|object| ObjectKey::of(&**object)).collect();
        let gone: Vec<ObjectKey> =
            self.cache.read().objects.keys().filter(|key| !kept.contains(*key)).cloned().collect();
        for key in gone {
            let old = self.cache.write().take(&key);
            if let Some(old) = old {
                tell(&handlers, &Event::Deleted(old));
            }
        }
        for object in objects {
            let change = self.cache.write().put(object);
            if let Some(event) = change {
                tell(&handlers, &event);
            }
        }
        self.see(revision);
    }

    fn see(&self, revision: Option<u64>) {
        if let Some(revision) = revision {
            self.revision.fetch_max(revision, Ordering::Release);
        }
    }
}

/// The object's resourceVersion as the number that it is.
#[must_use]
pub fn revision_of<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

fn tell<K>(handlers: &[Handler<K>], event: &Event<K>) {
    for handler in handlers {
        handler(event);
    }
}

impl<K: Kind> Cache<K> {
    /// Puts the object in; nothing happened if it is in already.
    fn put(&mut self, new: Arc<K>) -> Option<Event<K>> {
        let key = ObjectKey::of(&*new);
        let old = match self.objects.get_mut(&key) {
            Some(slot)
                if slot.meta().resource_version == new.meta().resource_version
                    && slot.meta().uid == new.meta().uid
                    && new.meta().resource_version.is_some() =>
            {
                return None;
            }
            Some(slot) => Some(std::mem::replace(slot, new.clone())),
            None => {
                self.objects.insert(key.clone(), new.clone());
                None
            }
        };
        for index in self.indexes.values_mut() {
            index.change(&key, old.as_deref(), Some(&new));
        }
        Some(match old {
            Some(old) => Event::Updated { old, new },
            None => Event::Added(new),
        })
    }

    fn take(&mut self, key: &ObjectKey) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in self.indexes.values_mut() {
            index.change(key, Some(&old), None);
        }
        Some(old)
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &ObjectKey, object: &K) {
        self.change(key, None, Some(object));
    }

    fn change(&mut self, key: &ObjectKey, old: Option<&K>, new: Option<&K>) {
        let old = old.map_or_else(Vec::new, self.values);
        let new = new.map_or_else(Vec::new, self.values);
        for value in old.iter().filter(|value| !new.contains(value)) {
            if let Some(keys) = self.keys.get_mut(value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(value);
                }
            }
        }
        for value in new {
            if !old.contains(&value) {
                self.keys.entry(value).or_default().insert(key.clone());
            }
        }
    }
}

/// Read access to an informer's cache.
pub struct Lister<K>(Arc<Shared<K>>);

impl<K> Clone for Lister<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Kind> Lister<K> {
    pub(super) fn new(shared: Arc<Shared<K>>) -> Self {
        Self(shared)
    }

    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.0.cache.read().objects.get(key).cloned()
    }

    /// Every object, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.cache.read().objects.values().cloned().collect()
    }

    /// The objects for which `keep` holds, in no order; `keep` runs under the cache's lock.
    #[must_use]
    pub fn filter(&self, mut keep: impl FnMut(&K) -> bool) -> Vec<Arc<K>> {
        self.0.cache.read().objects.values().filter(|object| keep(object)).cloned().collect()
    }

    /// The objects that the index named `index` has under `value`, in no order; none if there is no such index.
    #[must_use]
    pub fn by_index(&self, index: &'static str, value: &str) -> Vec<Arc<K>> {
        let cache = self.0.cache.read();
        let keys = cache.indexes.get(index).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| cache.objects.get(key)).cloned().collect()
    }

    /// The objects of a namespace, through the [`NAMESPACE_INDEX`] if it was declared, else by looking at all.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        if self.0.cache.read().indexes.contains_key(NAMESPACE_INDEX) {
            self.by_index(NAMESPACE_INDEX, namespace)
        } else {
            self.filter(|object| object.meta().namespace.as_deref().unwrap_or_default() == namespace)
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.cache.read().objects.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the cache went past `revision`: a write that was answered with it is then visible here.
    #[must_use]
    pub fn has_seen(&self, revision: u64) -> bool {
        self.0.revision.load(Ordering::Acquire) >= revision
    }
}

/// The index by namespace that [`Lister::in_namespace`] uses.
pub const NAMESPACE_INDEX: &str = "namespace";

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, PodSpec};
    use kube::core::ObjectMeta;

    use super::*;

    fn pod(name: &str, node: &str, version: u64) -> Pod {
        Pod {
            metadata: ObjectMeta {
                namespace: Some("ns".into()),
                name: Some(name.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec { node_name: Some(node.into()), ..PodSpec::default() }),
            status: None,
        }
    }

    fn by_node(pod: &Pod) -> Vec<String> {
        pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).into_iter().collect()
    }

    fn log(shared: &Shared<Pod>) -> Arc<Mutex<Vec<String>>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        shared.add_handler(Box::new(move |event| {
            let verb = match event {
                Event::Added(_) => "added",
                Event::Updated { .. } => "updated",
                Event::Deleted(_) => "deleted",
            };
            sink.lock().push(format!("{verb} {}", event.key()));
        }));
        seen
    }

    #[test]
    fn indexes_follow_the_objects() {
        let shared = Arc::new(Shared::default());
        shared.apply(pod("a", "n1", 1));
        shared.add_index("node", by_node);
        shared.apply(pod("b", "n1", 2));
        shared.apply(pod("a", "n2", 3));
        let lister = Lister::new(shared.clone());
        let names =
            |node| lister.by_index("node", node).iter().map(|p| ObjectKey::of(&**p).to_string()).collect::<Vec<_>>();
        assert_eq!((names("n1"), names("n2")), (vec!["ns/b".to_owned()], vec!["ns/a".to_owned()]));
        shared.delete(pod("b", "n1", 4));
        assert!(names("n1").is_empty());
        assert!(!shared.cache.read().indexes["node"].keys.contains_key("n1"));
        assert!(lister.has_seen(4) && !lister.has_seen(5));
    }

    #[test]
    fn a_new_list_tells_only_the_differences() {
        let shared = Shared::default();
        shared.replace(vec![Arc::new(pod("a", "n", 1)), Arc::new(pod("b", "n", 2)), Arc::new(pod("c", "n", 3))]);
        let seen = log(&shared);
        seen.lock().clear();
        shared.replace(vec![Arc::new(pod("a", "n", 1)), Arc::new(pod("b", "n", 5)), Arc::new(pod("d", "n", 6))]);
        assert_eq!(*seen.lock(), ["deleted ns/c", "updated ns/b", "added ns/d"]);
    }

    #[test]
    fn a_late_handler_hears_of_what_is_there() {
        let shared = Shared::default();
        shared.apply(pod("a", "n", 1));
        let seen = log(&shared);
        shared.apply(pod("a", "n", 1));
        shared.delete(pod("gone", "n", 2));
        assert_eq!(*seen.lock(), ["added ns/a"]);
    }
}
