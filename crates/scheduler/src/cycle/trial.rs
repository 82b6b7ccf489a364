//! What would be if more pods were on a node: they are put there, and taken away when the trial ends.

use std::sync::Arc;

use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::framework::erased::RunningFilter;
use crate::framework::{FilterStatus, Profile};
use crate::pod::PodInfo;

/// A node with pods added for a while. Only what the node itself says of its pods changes; what filters
/// counted over several nodes they are told.
pub(crate) struct Trial<'a> {
    cluster: &'a mut Cluster,
    at: NodeIdx,
    added: Vec<Arc<PodInfo>>,
}

pub(crate) type Filters = [(usize, Box<dyn RunningFilter>)];

impl<'a> Trial<'a> {
    pub(crate) fn on(cluster: &'a mut Cluster, at: NodeIdx) -> Self {
        Self { cluster, at, added: Vec::new() }
    }

    pub(crate) fn node(&self) -> Option<NodeRef<'_>> {
        self.cluster.nodes().get(self.at)
    }

    pub(crate) fn add(&mut self, filters: &mut Filters, pod: &PodInfo, other: Arc<PodInfo>) {
        self.cluster.trial_add(self.at, other.clone());
        if let Some(node) = self.node() {
            for (_, filter) in filters {
                filter.add_pod(pod, &other, node);
            }
        }
        self.added.push(other);
    }

    /// Runs the filters on the node as it is now; the first that turns it down.
    pub(crate) fn run(
        &self,
        filters: &Filters,
        profile: &Profile,
        pod: &PodInfo,
    ) -> Option<(&'static str, FilterStatus)> {
        let node = self.node()?;
        filters.iter().find_map(|(place, filter)| match filter.filter(pod, node) {
            FilterStatus::Success => None,
            status => Some((profile.filters[*place].name(), status)),
        })
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        for pod in self.added.drain(..) {
            self.cluster.trial_remove(self.at, &pod.uid);
        }
    }
}
