//! Reading one's own writes: after a controller created or deleted things, its cache is behind for a moment, and acting
//! on it again would do the same twice.
//!
//! A write's answer carries the resourceVersion that the cache will have passed once it shows the write; a deletion shows
//! as the object being gone or on its way. Either event also queues the controller's key again, so nobody has to poll.

use std::{collections::HashMap, time::Duration};

use client::{
    ObjectKey,
    informer::{Kind, Lister, revision_of},
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// After this long a controller acts whatever it waits for, as upstream's does: an event may have been lost with a watch.
const PATIENCE: Duration = Duration::from_secs(300);

/// What each key of one controller waits to see of the kind that it writes.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<ObjectKey, Expected>>);

struct Expected {
    revision: u64,
    /// Key and uid of what was deleted.
    leaving: Vec<(ObjectKey, String)>,
    since: Instant,
}

impl Expectations {
    /// The cache will show `object` as it was written.
    pub(crate) fn wrote<K: Kind>(&self, key: &ObjectKey, object: &K) {
        let mut all = self.0.lock();
        let expected = all.entry(key.clone()).or_insert_with(Expected::new);
        expected.revision = expected.revision.max(revision_of(object).unwrap_or_default());
        expected.since = Instant::now();
    }

    pub(crate) fn deleted<K: Kind>(&self, key: &ObjectKey, object: &K) {
        let mut all = self.0.lock();
        let expected = all.entry(key.clone()).or_insert_with(Expected::new);
        expected.leaving.push((ObjectKey::of(object), object.meta().uid.clone().unwrap_or_default()));
        expected.since = Instant::now();
    }

    /// Whether the cache shows all that was written for the key.
    pub(crate) fn are_met<K: Kind>(&self, key: &ObjectKey, lister: &Lister<K>) -> bool {
        let mut all = self.0.lock();
        let Some(expected) = all.get_mut(key) else { return true };
        expected.leaving.retain(|(key, uid)| {
            lister.get(key).is_some_and(|object| {
                object.meta().uid.as_ref() == Some(uid) && object.meta().deletion_timestamp.is_none()
            })
        });
        let met = lister.has_seen(expected.revision) && expected.leaving.is_empty();
        if met || expected.since.elapsed() > PATIENCE {
            all.remove(key);
            return true;
        }
        false
    }

    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

impl Expected {
    fn new() -> Self {
        Self { revision: 0, leaving: Vec::new(), since: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use client::informer::SharedInformer;
    use k8s_openapi::api::core::v1::Pod;
    use kube::core::ObjectMeta;

    use super::*;

    fn pod(name: &str, version: &str) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                uid: Some(name.into()),
                resource_version: Some(version.into()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_until_the_cache_shows_its_writes_or_patience_ends() {
        let (expectations, key) = (Expectations::default(), ObjectKey::from("ns/rs"));
        let at = |version| SharedInformer::fixed([pod("a", version)]).lister();
        assert!(expectations.are_met(&key, &at("1")));
        expectations.wrote(&key, &pod("b", "7"));
        assert!(!expectations.are_met(&key, &at("6")));
        assert!(expectations.are_met(&key, &at("7")));
        expectations.deleted(&key, &pod("a", "1"));
        assert!(!expectations.are_met(&key, &at("9")));
        assert!(expectations.are_met(&key, &SharedInformer::fixed([pod("b", "9")]).lister()));
        expectations.wrote(&key, &pod("b", "70"));
        tokio::time::advance(PATIENCE + Duration::from_secs(1)).await;
        assert!(expectations.are_met(&key, &at("9")));
    }
}
