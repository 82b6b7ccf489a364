//! The caches as authorizers and admission plugins read them.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::selector::LabelSelector;

use super::Cache;
use super::feed::Feed;
use super::selection::Selection;
use crate::lister::Lister;

pub(crate) struct CacheLister {
    feed: Arc<Feed>,
    /// By group-resource: `pods`, `roles.rbac.authorization.k8s.io`.
    caches: HashMap<String, Arc<Cache>>,
}

impl CacheLister {
    #[must_use]
    pub(crate) fn new(feed: Arc<Feed>, caches: HashMap<String, Arc<Cache>>) -> Self {
        CacheLister { feed, caches }
    }

    fn cache(&self, resource: &str) -> Option<&Arc<Cache>> {
        self.caches.get(resource)
    }
}

impl Lister for CacheLister {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let cache = self.cache(resource)?;
        let object = cache.get(&cache.shape.key(namespace, name))?;
        Some(object.decoded())
    }

    fn list(&self, resource: &str, namespace: &str) -> Vec<Arc<Value>> {
        let Some(cache) = self.cache(resource) else { return Vec::new() };
        let selection = Selection::new(Some(namespace).filter(|n| !n.is_empty()), None, LabelSelector::default());
        cache.list(&selection, self.feed.revision()).objects.iter().map(|object| object.decoded()).collect()
    }

    fn generation(&self, resource: &str) -> u64 {
        self.cache(resource).map_or(0, |cache| cache.generation())
    }

    fn synced(&self) -> bool {
        self.feed.synced()
    }
}
