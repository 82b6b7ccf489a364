//! The caches as authorizers and admission plugins read them.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::selector::LabelSelector;

use super::Cache;
use super::feed::Feed;
use super::selection::Selection;
use crate::lister::{Found, Lister};
use crate::registry::status;

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

    fn find<'a>(&'a self, resource: &'a str, namespace: &'a str, name: &'a str) -> Found<'a> {
        Box::pin(async move {
            if let Some(object) = self.get(resource, namespace, name) {
                return Ok(Some(object));
            }
            let Some(cache) = self.cache(resource) else { return Ok(None) };
            self.feed.catch_up().await.map_err(|error| {
                let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
                status::of(&error, &Gvr::new(group, "", name), &cache.shape.key(namespace, name))
            })?;
            Ok(self.get(resource, namespace, name))
        })
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
