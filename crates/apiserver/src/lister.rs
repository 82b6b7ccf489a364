//! How authorizers and admission plugins read the cluster: from the watch cache, never from the store.

use std::sync::Arc;

use apimachinery::Value;

/// Reads decoded objects from the watch cache. Implemented by the registry; tests hand in a map.
/// `resource` is upstream's group-resource (`pods`, `clusterroles.rbac.authorization.k8s.io`); objects come in the storage
/// version, with `resourceVersion`.
pub trait Lister: Send + Sync {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All objects of a namespace; of the cluster when `namespace` is empty.
    fn list(&self, resource: &str, namespace: &str) -> Vec<Arc<Value>>;

    /// Rises with every change of the resource, so that a reader can keep something derived until it has changed.
    fn generation(&self, resource: &str) -> u64;

    /// All caches have seen the whole store once.
    fn synced(&self) -> bool;
}
