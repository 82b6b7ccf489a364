//! How authorizers and admission plugins read the cluster: from the watch cache, never from the store itself.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use futures::future::BoxFuture;

/// Reads decoded objects from the watch cache. Implemented by the registry; tests hand in a map.
/// `resource` is upstream's group-resource (`pods`, `clusterroles.rbac.authorization.k8s.io`); objects come in the storage
/// version, with `resourceVersion`.
pub trait Lister: Send + Sync {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// As [`Self::get`]; what the cache does not have is looked for once more when it has caught up with the store. So what
    /// one answer has told a client is there for its next request, also when another server takes that.
    fn find<'a>(&'a self, resource: &'a str, namespace: &'a str, name: &'a str) -> Found<'a>;

    /// All objects of a namespace; of the cluster when `namespace` is empty.
    fn list(&self, resource: &str, namespace: &str) -> Vec<Arc<Value>>;

    /// Rises with every change of the resource, so that a reader can keep something derived until it has changed.
    fn generation(&self, resource: &str) -> u64;

    /// All caches have seen the whole store once.
    fn synced(&self) -> bool;
}

/// An object that is looked for, or why the store could not be asked for it.
pub type Found<'a> = BoxFuture<'a, Result<Option<Arc<Value>>, Status>>;

/// A lister over a map, for tests of what reads through one.
#[cfg(test)]
pub(crate) mod fixture {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;

    use super::*;

    type Key = (String, String, String);

    #[derive(Default)]
    pub(crate) struct MapLister(Mutex<(BTreeMap<Key, Arc<Value>>, u64)>);

    impl MapLister {
        pub(crate) fn put(&self, resource: &str, object: Value) {
            let mut inner = self.0.lock();
            let key = (resource.to_owned(), object.namespace().to_owned(), object.name().to_owned());
            inner.0.insert(key, Arc::new(object));
            inner.1 += 1;
        }
    }

    impl Lister for MapLister {
        fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            self.0.lock().0.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
        }

        fn find<'a>(&'a self, resource: &'a str, namespace: &'a str, name: &'a str) -> Found<'a> {
            Box::pin(async move { Ok(self.get(resource, namespace, name)) })
        }

        fn list(&self, resource: &str, namespace: &str) -> Vec<Arc<Value>> {
            let inner = self.0.lock();
            let of = |k: &Key| k.0 == resource && (namespace.is_empty() || k.1 == namespace);
            inner.0.iter().filter(|(k, _)| of(k)).map(|(_, v)| Arc::clone(v)).collect()
        }

        fn generation(&self, _: &str) -> u64 {
            self.0.lock().1
        }

        fn synced(&self) -> bool {
            true
        }
    }
}
