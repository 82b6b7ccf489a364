//! How many objects of a resource a namespace has, for resources that quotas count but nobody here reads. Each is followed
//! from when the first quota names it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use client::{
    ObjectKey,
    informer::{Lister, WatchEvent, follow_metadata},
    workqueue::Queue,
};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{Client, core::ObjectMeta};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::discovery::discover;

pub(super) struct Counts {
    client: Client,
    quotas: Lister<ResourceQuota>,
    stop: CancellationToken,
    followed: tokio::sync::Mutex<HashMap<(String, String), Followed>>,
}

#[derive(Clone)]
struct Followed {
    counts: Arc<Mutex<HashMap<String, i64>>>,
    synced: watch::Receiver<bool>,
}

impl Counts {
    pub(super) fn new(client: Client, quotas: Lister<ResourceQuota>, stop: CancellationToken) -> Self {
        Self { client, quotas, stop, followed: tokio::sync::Mutex::default() }
    }

    /// The number of objects; `None` for a resource that the server does not have.
    pub(super) async fn count(
        &self,
        resource: &str,
        group: &str,
        namespace: &str,
        queue: &Queue<ObjectKey>,
    ) -> Result<Option<i64>, kube::Error> {
        let Some(followed) = self.follow(resource, group, queue).await? else { return Ok(None) };
        // One that ended has nothing more to tell.
        let _ = followed.synced.clone().wait_for(|synced| *synced).await;
        let counts = followed.counts.lock();
        Ok(Some(counts.get(namespace).copied().unwrap_or_default()))
    }

    async fn follow(
        &self,
        resource: &str,
        group: &str,
        queue: &Queue<ObjectKey>,
    ) -> Result<Option<Followed>, kube::Error> {
        let mut all = self.followed.lock().await;
        let id = (resource.to_owned(), group.to_owned());
        if let Some(followed) = all.get(&id) {
            return Ok(Some(followed.clone()));
        }
        let discovered = discover(&self.client).await?.resources;
        let found = discovered.into_iter().find(|known| {
            known.api.plural == resource && known.api.group == group && known.is_namespaced && known.can("watch")
        });
        let Some(found) = found else { return Ok(None) };
        let counts = Arc::new(Mutex::new(HashMap::new()));
        let (sender, synced) = watch::channel(false);
        let mut intake = Intake {
            counts: counts.clone(),
            objects: HashSet::new(),
            quotas: self.quotas.clone(),
            queue: queue.clone(),
            synced: sender,
        };
        tokio::spawn(follow_metadata(self.client.clone(), found.api, self.stop.clone(), move |event| {
            intake.take(event);
        }));
        let followed = Followed { counts, synced };
        all.insert(id, followed.clone());
        Ok(Some(followed))
    }
}

/// Turns one resource's watch into numbers, and tells the quotas of a namespace whose number fell.
struct Intake {
    counts: Arc<Mutex<HashMap<String, i64>>>,
    objects: HashSet<(String, String)>,
    quotas: Lister<ResourceQuota>,
    queue: Queue<ObjectKey>,
    synced: watch::Sender<bool>,
}

impl Intake {
    fn take(&mut self, event: WatchEvent<ObjectMeta>) {
        let id = |meta: ObjectMeta| (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
        match event {
            WatchEvent::Init => self.objects.clear(),
            WatchEvent::InitApply(meta) => {
                self.objects.insert(id(meta));
            }
            WatchEvent::InitDone => {
                let mut counts = HashMap::new();
                for (namespace, _) in &self.objects {
                    *counts.entry(namespace.clone()).or_default() += 1;
                }
                *self.counts.lock() = counts;
                self.synced.send_replace(true);
                self.quotas.list().iter().for_each(|quota| self.queue.add(ObjectKey::of(&**quota)));
            }
            WatchEvent::Apply(meta) => {
                let id = id(meta);
                let namespace = id.0.clone();
                if self.objects.insert(id) {
                    // Admission has charged it.
                    *self.counts.lock().entry(namespace).or_default() += 1;
                }
            }
            WatchEvent::Delete(meta) => {
                let id = id(meta);
                if self.objects.remove(&id) {
                    *self.counts.lock().entry(id.0.clone()).or_default() -= 1;
                    let in_namespace = self.quotas.in_namespace(&id.0);
                    in_namespace.iter().for_each(|quota| self.queue.add(ObjectKey::of(&**quota)));
                }
            }
        }
    }
}
