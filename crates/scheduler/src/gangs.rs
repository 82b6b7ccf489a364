//! Which pods belong together, and how many of them are there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::ObjectKey;
use parking_lot::Mutex;

use crate::pod::{PodInfo, Uid};

/// The pods of groups; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Gangs(Arc<Mutex<HashMap<ObjectKey, Gang>>>);

#[derive(Debug, Default)]
struct Gang {
    all: HashSet<Uid>,
    /// Those that have a node, or are on the way to one.
    placed: HashSet<Uid>,
}

/// The group that a pod says it belongs to.
#[must_use]
pub fn group_of(pod: &PodInfo) -> Option<ObjectKey> {
    let name = pod.spec()?.scheduling_group.as_ref()?.pod_group_name.as_deref()?;
    Some(ObjectKey::new(pod.namespace(), name))
}

impl Gangs {
    /// A pod is there.
    pub(crate) fn add(&self, pod: &PodInfo) {
        let Some(group) = group_of(pod) else { return };
        let mut gangs = self.0.lock();
        let gang = gangs.entry(group).or_default();
        gang.all.insert(pod.uid.clone());
        if pod.node_name().is_some() {
            gang.placed.insert(pod.uid.clone());
        }
    }

    pub(crate) fn remove(&self, pod: &PodInfo) {
        let Some(group) = group_of(pod) else { return };
        let mut gangs = self.0.lock();
        let Some(gang) = gangs.get_mut(&group) else { return };
        gang.all.remove(&pod.uid);
        gang.placed.remove(&pod.uid);
        if gang.all.is_empty() {
            gangs.remove(&group);
        }
    }

    /// The pod is on the way to a node, or is not any more.
    pub(crate) fn set_placed(&self, pod: &PodInfo, placed: bool) {
        let Some(group) = group_of(pod) else { return };
        if let Some(gang) = self.0.lock().get_mut(&group) {
            if placed {
                gang.placed.insert(pod.uid.clone());
            } else {
                gang.placed.remove(&pod.uid);
            }
        }
    }

    /// The pods of the group that are on no node, nor on the way to one.
    pub(crate) fn unplaced(&self, group: &ObjectKey) -> Vec<Uid> {
        let gangs = self.0.lock();
        gangs.get(group).map(|gang| gang.all.difference(&gang.placed).cloned().collect()).unwrap_or_default()
    }

    /// How many pods the group has, and how many of them are placed.
    #[must_use]
    pub fn counts(&self, group: &ObjectKey) -> (usize, usize) {
        self.0.lock().get(group).map_or((0, 0), |gang| (gang.all.len(), gang.placed.len()))
    }
}
