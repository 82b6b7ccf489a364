//! The cluster as scheduling needs it: nodes and the pods on them in columns, kept up to date change by change.
//!
//! A pod is on a node here from the moment that it is assumed to go there, before the API server knows. Invariants:
//! - What a node has requested is the sum over its pods.
//! - Every count column and every owned term agrees with the pods on nodes.
//! - A node whose facts changed is in the change log after the change.

mod changes;
mod counts;
mod images;
mod nodes;
mod nominations;
mod terms;
mod topology;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

pub use changes::Mark;
pub use counts::{CountId, CountKey, PodCounts};
pub use images::{ImageState, Images};
pub use nodes::{NodeIdx, NodeRef, Nodes, Resource};
pub use nominations::Nominations;
pub use terms::{OwnedTerm, OwnedTerms, TermKind, terms_of};
pub use topology::{Domain, Topology, TopologyId};

use crate::pod::{PodInfo, Uid};
use crate::resources::{ScalarId, ScalarNames};
use crate::selector::Labels;

#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Nodes,
    names: ScalarNames,
    pods: HashMap<Uid, Placed>,
    assumed: usize,
    counts: PodCounts,
    terms: OwnedTerms,
    namespaces: Arc<Namespaces>,
    pub nominations: Nominations,
}

/// Where a pod is.
#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    node: NodeIdx,
    /// The API server has not told of it yet.
    assumed: bool,
}

static NO_LABELS: Labels = Labels::new();

/// The labels of namespaces.
#[derive(Clone, Debug, Default)]
pub struct Namespaces(HashMap<Box<str>, Labels>);

impl Namespaces {
    /// None for a namespace that is not known.
    #[must_use]
    pub fn labels(&self, namespace: &str) -> &Labels {
        self.0.get(namespace).unwrap_or(&NO_LABELS)
    }
}

impl Cluster {
    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    #[must_use]
    pub fn counts(&self) -> &PodCounts {
        &self.counts
    }

    /// The affinity terms of the pods on nodes.
    #[must_use]
    pub fn terms(&self) -> &OwnedTerms {
        &self.terms
    }

    #[must_use]
    pub fn scalar_names(&self) -> &ScalarNames {
        &self.names
    }

    /// The number of a resource's name, a new one if it was never seen.
    pub fn intern_scalar(&mut self, name: &str) -> ScalarId {
        self.names.intern(name)
    }

    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        self.namespaces.labels(namespace)
    }

    #[must_use]
    pub fn namespaces(&self) -> &Arc<Namespaces> {
        &self.namespaces
    }

    /// Nominates the pod for a node; an earlier nomination is void.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        // Filters look at its terms as if it were there already.
        for (_, term) in terms_of(&pod) {
            self.nodes.topology_id(&term.topology_key);
        }
        self.nominations.add(pod, node);
    }

    /// How many pods are on nodes, and how many of these are assumed.
    #[must_use]
    pub fn pods(&self) -> (usize, usize) {
        (self.pods.len(), self.assumed)
    }

    /// Works out of a pod what scheduling needs.
    pub fn pod_info(&mut self, pod: Arc<Pod>) -> Arc<PodInfo> {
        Arc::new(PodInfo::new(pod, &mut self.names))
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let Some(name) = node.metadata.name.clone() else { return };
        let at = self.nodes.place(&name);
        self.while_pods_are_away(at, |nodes, names| nodes.set(at, Some(node), names));
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.nodes.find(name).map(NodeRef::idx) else { return };
        self.while_pods_are_away(at, |nodes, names| nodes.set(at, None, names));
    }

    /// Lets a node change its labels: the terms of its pods are counted by domain, so they leave the old one first.
    fn while_pods_are_away(&mut self, at: NodeIdx, change: impl FnOnce(&mut Nodes, &mut ScalarNames)) {
        let with_terms: Vec<_> = self.nodes.pods_at(at).iter().filter(|pod| pod.affinity.is_some()).cloned().collect();
        for pod in &with_terms {
            self.terms.change(at, pod, &self.nodes.topology, false);
        }
        change(&mut self.nodes, &mut self.names);
        for pod in &with_terms {
            self.terms.change(at, pod, &self.nodes.topology, true);
        }
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let changed = match labels {
            Some(labels) if self.namespaces.0.get(name) == Some(&labels) => false,
            Some(labels) => {
                Arc::make_mut(&mut self.namespaces).0.insert(name.into(), labels);
                true
            }
            None => Arc::make_mut(&mut self.namespaces).0.remove(name).is_some(),
        };
        if changed {
            self.counts.forget_namespace_selectors();
        }
    }

    /// Puts a pod on a node before the API server knows.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: NodeIdx) {
        self.take_away(&pod.uid);
        self.put(pod, node, true);
    }

    /// The assumed pod did not get to its node after all. A pod that the API server told of stays.
    pub fn forget(&mut self, uid: &Uid) -> Option<Arc<PodInfo>> {
        self.pods.get(uid).filter(|placed| placed.assumed)?;
        self.take_away(uid)
    }

    #[must_use]
    pub fn is_assumed(&self, uid: &Uid) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// The pod as it is known on its node.
    #[must_use]
    pub fn placed(&self, uid: &Uid) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|placed| &placed.pod)
    }

    /// Takes over a pod that the API server says is on a node.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) {
        let Some(name) = pod.node_name() else { return };
        let at = self.nodes.place(name);
        if let Some(placed) = self.pods.get_mut(&pod.uid)
            && placed.node == at
            && same_for_scheduling(&placed.pod, &pod)
        {
            // The usual case after a binding: nothing that is counted changes, only the object is another.
            if std::mem::take(&mut placed.assumed) {
                self.assumed -= 1;
            }
            self.nodes.replace_pod(at, &pod);
            placed.pod = pod;
            return;
        }
        self.take_away(&pod.uid);
        // The place may have been given up when its last pod left.
        let at = self.nodes.place(pod.node_name().unwrap_or_default());
        self.put(pod, at, false);
    }

    /// The pod is gone, or takes up nothing any more.
    pub fn remove_pod(&mut self, uid: &Uid) -> Option<Arc<PodInfo>> {
        self.take_away(uid)
    }

    /// Puts a pod on a node as far as the node's own facts go, until [`Self::trial_remove`] undoes it.
    pub(crate) fn trial_add(&mut self, node: NodeIdx, pod: Arc<PodInfo>) {
        self.nodes.put_pod(node, pod);
    }

    /// The opposite of [`Self::trial_add`].
    pub(crate) fn trial_remove(&mut self, node: NodeIdx, uid: &Uid) -> Option<Arc<PodInfo>> {
        self.nodes.take_pod(node, uid)
    }

    /// The column of a topology key.
    pub fn topology(&mut self, key: &str) -> TopologyId {
        self.nodes.topology_id(key)
    }

    /// The column of counts for a selection of pods.
    pub fn count(&mut self, key: CountKey) -> CountId {
        if let Some(id) = self.counts.id(&key) {
            return id;
        }
        let (pods, namespaces) = (&self.pods, &self.namespaces);
        let all = pods.values().map(|placed| {
            let labels = namespaces.labels(placed.pod.namespace());
            (placed.node, &*placed.pod, labels)
        });
        self.counts.add(key, all)
    }

    fn put(&mut self, pod: Arc<PodInfo>, node: NodeIdx, assumed: bool) {
        for (_, term) in terms_of(&pod) {
            self.nodes.topology_id(&term.topology_key);
        }
        let labels = self.namespaces.labels(pod.namespace());
        self.counts.change(node, &pod, labels, true);
        self.terms.change(node, &pod, &self.nodes.topology, true);
        self.nodes.add_pod(node, pod.clone());
        self.assumed += usize::from(assumed);
        self.pods.insert(pod.uid.clone(), Placed { pod, node, assumed });
    }

    fn take_away(&mut self, uid: &Uid) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        self.assumed -= usize::from(placed.assumed);
        let labels = self.namespaces.labels(placed.pod.namespace());
        self.counts.change(placed.node, &placed.pod, labels, false);
        self.terms.change(placed.node, &placed.pod, &self.nodes.topology, false);
        self.nodes.remove_pod(placed.node, uid)
    }
}

/// Whether a pod that is on a node counts there as before.
fn same_for_scheduling(old: &PodInfo, new: &PodInfo) -> bool {
    old.requests == new.requests
        && old.ports == new.ports
        && old.affinity == new.affinity
        && old.priority == new.priority
        && old.is_terminating() == new.is_terminating()
        && old.labels() == new.labels()
}
