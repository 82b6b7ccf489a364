//! What a PostFilter plugin has to work with: a pod that no node can take, why, and trials of what would be.

use std::sync::Arc;

use super::trial::Trial;
use super::{Cycle, Diagnosis};
use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::extender::{Extender, Room};
use crate::framework::FilterStatus;
use crate::framework::erased::RunningFilter;
use crate::pod::PodInfo;

/// What came of trying to make room.
#[derive(Debug)]
pub enum PostFilterOutcome {
    /// The pod is to wait for room on this node, and these pods are to be evicted from it.
    Nominate {
        node: String,
        victims: Vec<Arc<PodInfo>>,
    },
    /// There is no room to be made; the message says why, and an earlier nomination is void.
    Unschedulable(String),
    /// As before; nothing is said, and an earlier nomination stays.
    Nothing(String),
    Error(String),
}

/// A pod that no node can take.
pub struct Attempt<'a> {
    cycle: Cycle<'a>,
    extenders: &'a [Extender],
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(cycle: Cycle<'a>, extenders: &'a [Extender]) -> Self {
        Self { cycle, extenders }
    }

    #[must_use]
    pub fn pod(&self) -> &Arc<PodInfo> {
        self.cycle.pod
    }

    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        self.cycle.cluster
    }

    /// What the node was turned down for; `None` if it was not looked at.
    #[must_use]
    pub fn status_of(&self, node: NodeIdx) -> Option<&FilterStatus> {
        self.cycle.status_of(node)
    }

    /// Nodes that evicting pods may help with.
    #[must_use]
    pub fn nodes_where_eviction_may_help(&self) -> Vec<NodeIdx> {
        let nodes = self.cycle.cluster.nodes().iter().map(NodeRef::idx);
        nodes.filter(|at| matches!(self.status_of(*at), Some(FilterStatus::Unschedulable(_)))).collect()
    }

    /// Whether the plugin's pre-filter was run; it was not if one before it turned the pod down.
    #[must_use]
    pub fn was_asked(&self, plugin: &str) -> bool {
        self.cycle.was_asked(plugin)
    }

    /// A diagnosis without reasons yet, over all nodes.
    #[must_use]
    pub fn new_diagnosis(&self) -> Diagnosis {
        Diagnosis { nodes: self.cycle.cluster.nodes().len(), ..Diagnosis::default() }
    }

    /// Which of the rooms can be made, as far as extenders know.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub(crate) fn ask_extenders(&self, mut rooms: Vec<Room>) -> Result<Vec<Room>, String> {
        for extender in self.extenders {
            rooms = extender.preempt(self.cycle.pod, rooms)?;
        }
        Ok(rooms)
    }

    /// Tries changes on one node; nothing of it lasts.
    pub fn try_on(&mut self, node: NodeIdx) -> NodeTrial<'_, 'a> {
        let filters = self.cycle.forks();
        NodeTrial { cycle: &mut self.cycle, at: node, filters, removed: Vec::new() }
    }
}

/// One node on which pods are removed and added again, to see whether the pod then fits.
pub struct NodeTrial<'c, 'a> {
    cycle: &'c mut Cycle<'a>,
    at: NodeIdx,
    filters: Vec<(usize, Box<dyn RunningFilter>)>,
    removed: Vec<Arc<PodInfo>>,
}

impl NodeTrial<'_, '_> {
    #[must_use]
    pub fn node(&self) -> Option<NodeRef<'_>> {
        self.cycle.cluster.nodes().get(self.at)
    }

    pub fn remove(&mut self, other: &Arc<PodInfo>) {
        let Some(other) = self.cycle.cluster.trial_remove(self.at, &other.uid) else { return };
        if let Some(node) = self.cycle.cluster.nodes().get(self.at) {
            for (_, filter) in &mut self.filters {
                filter.remove_pod(self.cycle.pod, &other, node);
            }
        }
        self.removed.push(other);
    }

    /// Puts a removed pod back.
    pub fn put_back(&mut self, other: &Arc<PodInfo>) {
        let Some(position) = self.removed.iter().position(|own| own.uid == other.uid) else { return };
        let other = self.removed.swap_remove(position);
        self.cycle.cluster.trial_add(self.at, other.clone());
        if let Some(node) = self.cycle.cluster.nodes().get(self.at) {
            for (_, filter) in &mut self.filters {
                filter.add_pod(self.cycle.pod, &other, node);
            }
        }
    }

    /// Whether the pod fits now: with the more important pods that are nominated for the node, and without them.
    pub fn status(&mut self) -> FilterStatus {
        let (profile, pod) = (self.cycle.profile, self.cycle.pod);
        let nominated: Vec<_> = match self.node() {
            Some(node) => {
                let on = self.cycle.cluster.nominations.on(node.name());
                on.iter().filter(|other| self.cycle.counts(other)).cloned().collect()
            }
            None => return FilterStatus::Success,
        };
        if !nominated.is_empty() {
            let mut filters: Vec<_> = self.filters.iter().map(|(at, filter)| (*at, filter.fork())).collect();
            let mut trial = Trial::on(self.cycle.cluster, self.at);
            for other in nominated {
                trial.add(&mut filters, pod, other);
            }
            if let Some((_, status)) = trial.run(&filters, profile, pod) {
                return status;
            }
        }
        let trial = Trial::on(self.cycle.cluster, self.at);
        trial.run(&self.filters, profile, pod).map_or(FilterStatus::Success, |(_, status)| status)
    }
}

impl Drop for NodeTrial<'_, '_> {
    fn drop(&mut self) {
        for pod in self.removed.drain(..) {
            self.cycle.cluster.trial_add(self.at, pod);
        }
    }
}
