//! The watches that feed the graph: one per kind that can be deleted, started and stopped as kinds come and go.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use client::informer::{WatchEvent, follow_metadata};
use kube::{Client, core::ObjectMeta};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    graph::{Coordinates, GroupKind, Observed, Owner, Uid},
    plan::{FOREGROUND, ORPHAN},
};
use crate::discovery::Resource;

/// Kinds that own nothing and are owned by nothing, and come in masses.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

/// Whether the garbage collector follows the resource.
pub(super) fn is_followed(resource: &Resource) -> bool {
    ["delete", "list", "watch"].iter().all(|verb| resource.can(verb))
        && !IGNORED.contains(&(resource.api.group.as_str(), resource.api.plural.as_str()))
}

pub(super) struct Monitors {
    client: Client,
    shared: Arc<Shared>,
    stop: CancellationToken,
    running: HashMap<Resource, Monitor>,
}

struct Monitor {
    stop: CancellationToken,
    synced: watch::Receiver<bool>,
}

impl Monitors {
    pub(super) fn new(client: Client, shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { client, shared, stop, running: HashMap::new() }
    }

    /// Follows exactly `resources`. Returns whether that changed anything.
    pub(super) fn set(&mut self, resources: HashSet<Resource>) -> bool {
        let before = self.running.len();
        let shared = self.shared.clone();
        self.running.retain(|resource, monitor| {
            let stays = resources.contains(resource);
            if !stays {
                monitor.stop.cancel();
                shared.forget_kind(&kind_of(resource));
            }
            stays
        });
        let mut changed = self.running.len() != before;
        for resource in resources {
            if self.running.contains_key(&resource) {
                continue;
            }
            changed = true;
            let monitor = self.start(&resource);
            self.running.insert(resource, monitor);
        }
        changed
    }

    fn start(&self, resource: &Resource) -> Monitor {
        let stop = self.stop.child_token();
        let (sender, synced) = watch::channel(false);
        let mut intake =
            Intake { kind: kind_of(resource), shared: self.shared.clone(), listed: HashSet::new(), synced: sender };
        let (client, api, token) = (self.client.clone(), resource.api.clone(), stop.clone());
        tokio::spawn(follow_metadata(client, api, token, move |event| intake.take(event)));
        Monitor { stop, synced }
    }

    /// Waits until every kind was listed once.
    pub(super) async fn synced(&self) {
        for monitor in self.running.values() {
            // A monitor that ended has nothing more to tell.
            let _ = monitor.synced.clone().wait_for(|synced| *synced).await;
        }
    }

    pub(super) fn unsynced(&self) -> Vec<String> {
        self.running
            .iter()
            .filter(|(_, monitor)| !*monitor.synced.borrow())
            .map(|(resource, _)| resource.name())
            .collect()
    }
}

pub(super) fn kind_of(resource: &Resource) -> GroupKind {
    GroupKind { group: resource.api.group.as_str().into(), kind: resource.api.kind.as_str().into() }
}

/// Turns one kind's watch into changes of the graph.
struct Intake {
    kind: GroupKind,
    shared: Arc<Shared>,
    /// What the list that is being received has so far.
    listed: HashSet<Uid>,
    synced: watch::Sender<bool>,
}

impl Intake {
    fn take(&mut self, event: WatchEvent<ObjectMeta>) {
        match event {
            WatchEvent::Init => self.listed.clear(),
            WatchEvent::InitApply(meta) => {
                if let Some(observed) = observed(&self.kind, &meta, &self.shared.names) {
                    self.listed.insert(observed.uid.clone());
                    self.shared.observe(&observed);
                }
            }
            WatchEvent::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.shared.keep_only(&self.kind, &listed);
                self.synced.send_replace(true);
            }
            WatchEvent::Apply(meta) => {
                if let Some(observed) = observed(&self.kind, &meta, &self.shared.names) {
                    self.shared.observe(&observed);
                }
                self.shared.kind_changed(&self.kind);
            }
            WatchEvent::Delete(meta) => {
                if let Some(uid) = meta.uid {
                    self.shared.forget(&Uid::from(uid));
                }
                self.shared.kind_changed(&self.kind);
            }
        }
    }
}

/// Texts that many objects share: namespaces, groups and kinds.
#[derive(Default)]
pub(super) struct Names(Mutex<HashSet<Arc<str>>>);

impl Names {
    fn share(&self, text: &str) -> Arc<str> {
        let mut known = self.0.lock();
        if let Some(shared) = known.get(text) {
            return shared.clone();
        }
        let shared: Arc<str> = text.into();
        known.insert(shared.clone());
        shared
    }
}

fn observed(kind: &GroupKind, meta: &ObjectMeta, names: &Names) -> Option<Observed> {
    let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|name| name == finalizer);
    let owner = |reference: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| Owner {
        uid: reference.uid.as_str().into(),
        kind: GroupKind { group: names.share(group_of(&reference.api_version)), kind: names.share(&reference.kind) },
        name: reference.name.as_str().into(),
        blocks: reference.block_owner_deletion == Some(true),
    };
    Some(Observed {
        uid: meta.uid.as_deref()?.into(),
        at: Coordinates {
            kind: kind.clone(),
            namespace: names.share(meta.namespace.as_deref().unwrap_or_default()),
            name: meta.name.as_deref()?.into(),
        },
        owners: meta.owner_references.iter().flatten().map(owner).collect(),
        is_leaving: meta.deletion_timestamp.is_some(),
        in_foreground: meta.deletion_timestamp.is_some() && has(FOREGROUND),
        to_orphan: meta.deletion_timestamp.is_some() && has(ORPHAN),
    })
}

pub(super) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}
