//! The parts of the queue in which pods wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::heap::{Heap, Keyed};
use super::{QueuedPod, hints};
use crate::framework::erased::AnyQueueSort;
use crate::framework::{Change, ClusterEvent};
use crate::pod::Uid;
use crate::profiles::Profiles;

/// Pods that wait for the end of their back-off. Ends are rounded down to whole seconds since `origin`, so that pods which
/// failed about the same time are tried again together, in the order of the active queue.
pub(super) struct Backoff {
    origin: Instant,
    /// After being unschedulable: these may be tried early when there is nothing else to do.
    unschedulable: Heap<BackingOff>,
    /// After an error: trying early would only add load to what failed.
    failed: Heap<BackingOff>,
}

struct BackingOff {
    queued: QueuedPod,
    end: Instant,
}

impl Keyed for BackingOff {
    fn key(&self) -> &Uid {
        &self.queued.pod.uid
    }
}

fn before(sort: &dyn AnyQueueSort) -> impl Fn(&BackingOff, &BackingOff) -> bool + '_ {
    |a, b| a.end < b.end || (a.end == b.end && sort.before(&a.queued, &b.queued))
}

impl Backoff {
    pub(super) fn new(origin: Instant) -> Self {
        Self { origin, unschedulable: Heap::default(), failed: Heap::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.unschedulable.len() + self.failed.len()
    }

    pub(super) fn get_mut(&mut self, uid: &Uid) -> Option<&mut QueuedPod> {
        let found = self.unschedulable.get_mut(uid).or_else(|| self.failed.get_mut(uid));
        found.map(|own| &mut own.queued)
    }

    pub(super) fn push(&mut self, queued: QueuedPod, end: Instant, sort: &dyn AnyQueueSort) {
        let heap = if queued.errors_in_a_row > 0 { &mut self.failed } else { &mut self.unschedulable };
        let seconds = end.saturating_duration_since(self.origin).as_secs();
        let end = self.origin + Duration::from_secs(seconds);
        heap.push(BackingOff { queued, end }, before(sort));
    }

    pub(super) fn remove(&mut self, uid: &Uid, sort: &dyn AnyQueueSort) -> Option<QueuedPod> {
        let order = before(sort);
        let found = self.unschedulable.remove(uid, &order).or_else(|| self.failed.remove(uid, &order));
        found.map(|own| own.queued)
    }

    pub(super) fn pop_early(&mut self, sort: &dyn AnyQueueSort) -> Option<QueuedPod> {
        self.unschedulable.pop(before(sort)).map(|own| own.queued)
    }

    /// A pod whose back-off is over.
    pub(super) fn pop_complete(&mut self, now: Instant, sort: &dyn AnyQueueSort) -> Option<QueuedPod> {
        let order = before(sort);
        for heap in [&mut self.unschedulable, &mut self.failed] {
            if heap.peek().is_some_and(|first| first.end <= now) {
                return heap.pop(&order).map(|own| own.queued);
            }
        }
        None
    }

    pub(super) fn next_complete(&self) -> Option<Instant> {
        [&self.unschedulable, &self.failed].into_iter().filter_map(Heap::peek).map(|first| first.end).min()
    }
}

/// Pods that wait for a change.
#[derive(Default)]
pub(super) struct Waiting {
    pods: HashMap<Uid, QueuedPod>,
    /// By the plugin that turned them down, so that a change is told only to those that it concerns.
    by_plugin: HashMap<&'static str, HashSet<Uid>>,
    /// Those that no plugin turned down.
    by_nobody: HashSet<Uid>,
    /// Those that are not gated, by how long they wait.
    since: BTreeSet<(Instant, Uid)>,
}

impl Waiting {
    /// How many were tried in vain, and how many are gated.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.since.len(), self.pods.len() - self.since.len())
    }

    pub(super) fn contains(&self, uid: &Uid) -> bool {
        self.pods.contains_key(uid)
    }

    pub(super) fn insert(&mut self, queued: QueuedPod) {
        let uid = queued.pod.uid.clone();
        self.remove(&uid);
        for plugin in &queued.turned_down_by {
            self.by_plugin.entry(plugin).or_default().insert(uid.clone());
        }
        if queued.turned_down_by.is_empty() {
            self.by_nobody.insert(uid.clone());
        }
        if queued.gated_by.is_none() {
            self.since.insert((queued.since, uid.clone()));
        }
        self.pods.insert(uid, queued);
    }

    pub(super) fn remove(&mut self, uid: &Uid) -> Option<QueuedPod> {
        let queued = self.pods.remove(uid)?;
        for plugin in &queued.turned_down_by {
            if let Some(uids) = self.by_plugin.get_mut(plugin) {
                uids.remove(uid);
                if uids.is_empty() {
                    self.by_plugin.remove(plugin);
                }
            }
        }
        self.by_nobody.remove(uid);
        self.since.remove(&(queued.since, uid.clone()));
        Some(queued)
    }

    /// The pods that the change may help.
    pub(super) fn helped(&self, profiles: &Profiles, event: ClusterEvent, change: &Change<'_>) -> BTreeSet<Uid> {
        let mut helped: BTreeSet<Uid> = self.by_nobody.iter().cloned().collect();
        for (plugin, uids) in &self.by_plugin {
            if !profiles.may_help(plugin, event) {
                continue;
            }
            let candidates = uids.iter().filter_map(|uid| self.pods.get(uid));
            let candidates = candidates.filter(|queued| hints::helps(profiles, queued, event, change));
            helped.extend(candidates.map(|queued| queued.pod.uid.clone()));
        }
        helped
    }

    pub(super) fn overdue(&self, now: Instant, after: Duration) -> Vec<Uid> {
        self.since.iter().take_while(|(since, _)| *since + after <= now).map(|(_, uid)| uid.clone()).collect()
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.since.first().map(|(since, _)| *since)
    }

    pub(super) fn by_plugin(&self, scheduler_name: &str) -> impl Iterator<Item = (&'static str, usize)> {
        let ours = |uid: &&Uid| self.pods.get(*uid).is_some_and(|queued| queued.pod.scheduler_name() == scheduler_name);
        let counts: BTreeMap<_, _> =
            self.by_plugin.iter().map(|(plugin, uids)| (*plugin, uids.iter().filter(ours).count())).collect();
        counts.into_iter()
    }
}
