//! Aggregation: groups and versions that an APIService hands to another server.
//!
//! [`controller`] keeps the table up with the APIServices, makes those of what this server serves itself, and looks whether
//! the others answer; [`proxy`] passes requests on in the name of whoever made them.

mod availability;
pub(crate) mod controller;
mod documents;
mod local;
pub(crate) mod proxy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apimachinery::Value;
use apimachinery::meta::GroupVersion;
use parking_lot::RwLock;
use rustls::ClientConfig;
use tokio::sync::Notify;

pub(crate) use documents::Remote;
pub(crate) use local::group_priority;

/// What other servers answer for.
#[derive(Default)]
pub(crate) struct Aggregator {
    backends: RwLock<BTreeMap<GroupVersion, Arc<Backend>>>,
    /// Most clusters have none, and every request asks.
    any: AtomicBool,
    changed: Notify,
}

/// Who answers for a group and version.
pub(crate) struct Backend {
    pub gv: GroupVersion,
    pub group_priority: i64,
    pub version_priority: i64,
    /// The Service that leads there.
    pub namespace: String,
    pub service: String,
    pub port: i64,
    /// How it proves itself and this server does, or why that cannot be.
    pub tls: Result<Arc<ClientConfig>, String>,
    pub available: bool,
    /// What it says that it serves, as far as it was ever asked.
    pub remote: Arc<Remote>,
}

impl Aggregator {
    /// Who answers for a path; `None`: this server.
    #[must_use]
    pub(crate) fn backend_of(&self, path: &str) -> Option<Arc<Backend>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next()?);
        self.backend(group, version)
    }

    #[must_use]
    pub(crate) fn backend(&self, group: &str, version: &str) -> Option<Arc<Backend>> {
        let gv = GroupVersion { group: group.into(), version: version.into() };
        self.backends.read().get(&gv).cloned()
    }

    /// All of them, in order of their groups and versions.
    #[must_use]
    pub(crate) fn backends(&self) -> Vec<Arc<Backend>> {
        self.backends.read().values().cloned().collect()
    }

    /// What this server serves itself has changed.
    pub(crate) fn nudge(&self) {
        self.changed.notify_one();
    }

    fn set(&self, backend: Backend) {
        self.backends.write().insert(backend.gv.clone(), Arc::new(backend));
        self.any.store(true, Ordering::Release);
    }

    fn remove(&self, gv: &GroupVersion) {
        let mut backends = self.backends.write();
        backends.remove(gv);
        self.any.store(!backends.is_empty(), Ordering::Release);
    }
}

/// The group and version of an APIService.
fn group_version_of(service: &Value) -> GroupVersion {
    let spec = &service["spec"];
    GroupVersion { group: spec.str_at(&["group"]).into(), version: spec.str_at(&["version"]).into() }
}
