//! InterPodAffinity: pods want to be near some pods and far from others, in domains of a topology.

mod score;

use std::sync::Arc;

use serde::Deserialize;

use crate::cluster::{Cluster, CountKey, Namespaces, NodeRef, TermKind, TopologyId};
use crate::framework::{Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreFilter};
use crate::pod::{AffinityTerm, PodInfo};

const REASON_AFFINITY: &str = "node(s) didn't match pod affinity rules";
const REASON_ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const REASON_EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Args {
    /// How much it counts for a node that pods there demand to be near such a pod. 0 to 100.
    hard_pod_affinity_weight: i64,
    /// A pod that has no preferences does not care for those of others.
    ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

pub(super) struct InterPodAffinity {
    args: Args,
}

impl InterPodAffinity {
    /// # Errors
    /// When an argument is out of range.
    pub(super) fn new(args: Args) -> Result<Self, String> {
        if (0..=100).contains(&args.hard_pod_affinity_weight) {
            Ok(Self { args })
        } else {
            let weight = args.hard_pod_affinity_weight;
            Err(format!("hardPodAffinityWeight: Invalid value: {weight}: not in valid range [0, 100]"))
        }
    }
}

/// Pods by domain of one topology.
#[derive(Clone, Debug)]
struct Domains {
    topology: TopologyId,
    counts: Arc<Vec<u32>>,
}

impl Domains {
    fn on(&self, node: NodeRef<'_>) -> Option<u32> {
        let domain = node.domain(self.topology)?;
        Some(self.counts.get(domain.index()).copied().unwrap_or(0))
    }

    fn change(&mut self, node: NodeRef<'_>, came: bool) {
        let Some(domain) = node.domain(self.topology) else { return };
        let counts = Arc::make_mut(&mut self.counts);
        if counts.len() <= domain.index() {
            counts.resize(domain.index() + 1, 0);
        }
        let count = &mut counts[domain.index()];
        *count = if came { *count + 1 } else { count.saturating_sub(1) };
    }

    /// Sums a column over nodes into domains.
    fn of(topology: TopologyId, key: CountKey, cluster: &mut Cluster) -> Self {
        let id = cluster.count(key);
        let mut counts = vec![0; cluster.nodes().topology().bound(topology)];
        for node in cluster.nodes().iter() {
            if let Some(domain) = node.domain(topology) {
                counts[domain.index()] += cluster.counts().on_node(id, node.idx());
            }
        }
        Self { topology, counts: Arc::new(counts) }
    }
}

#[derive(Clone)]
pub(crate) struct Nearness {
    namespaces: Arc<Namespaces>,
    /// The pod's required terms: pods that all of them select, by domain of each one's topology.
    near: Vec<Domains>,
    /// The pod itself is one that its required terms select.
    may_be_first: bool,
    /// No pod on any node is.
    nobody_near: bool,
    /// The pod's required anti-affinity: the pods that each term selects.
    far: Vec<Domains>,
    /// Pods that do not want this one near, by the topologies of their terms.
    existing: Vec<Domains>,
}

impl Nearness {
    fn look_for_anybody(&mut self) {
        self.nobody_near = self.near.iter().all(|own| own.counts.iter().all(|count| *count == 0));
    }

    fn changed(&mut self, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>, came: bool) {
        if let Some(affinity) = &other.affinity {
            for term in &affinity.required_anti {
                if !term.pods.matches(pod.namespace(), pod.labels(), self.namespaces.labels(pod.namespace())) {
                    continue;
                }
                let Some(topology) = node.topology(&term.topology_key) else { continue };
                let own = match self.existing.iter().position(|own| own.topology == topology) {
                    Some(at) => &mut self.existing[at],
                    None => {
                        self.existing.push(Domains { topology, counts: Arc::default() });
                        let last = self.existing.len() - 1;
                        &mut self.existing[last]
                    }
                };
                own.change(node, came);
            }
        }
        let Some(affinity) = &pod.affinity else { return };
        let namespaces = self.namespaces.clone();
        let labels = namespaces.labels(other.namespace());
        let selects = |term: &AffinityTerm| term.pods.matches(other.namespace(), other.labels(), labels);
        if !affinity.required.is_empty() && affinity.required.iter().all(selects) {
            self.near.iter_mut().for_each(|own| own.change(node, came));
            self.look_for_anybody();
        }
        for (term, own) in affinity.required_anti.iter().zip(&mut self.far) {
            if selects(term) {
                own.change(node, came);
            }
        }
    }
}

/// The pods that all of the terms select.
fn selected_by_all(terms: &[AffinityTerm]) -> CountKey {
    CountKey { all_of: terms.iter().map(|term| term.pods.clone()).collect(), skip_terminating: false }
}

impl Plugin for InterPodAffinity {
    const NAME: &'static str = "InterPodAffinity";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::AssignedPod, Actions::ADD.or(Actions::DELETE).or(Actions::UPDATE_POD_LABEL)),
        ClusterEvent::new(EventResource::UnscheduledPod, Actions::UPDATE_POD_LABEL),
        ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_LABEL)),
    ];

    /// A pod that came helps who wants to be near it, one that went who does not, and whom it did not want near.
    /// Namespaces are not looked at: a term that selects them may mean any.
    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        let Change::AssignedPod { old, new } = change else { return Hint::Queue };
        let selects = |term: &AffinityTerm, other: &PodInfo| {
            let here = term.pods.namespace_selector.is_some()
                || term.pods.namespaces.iter().any(|own| **own == *other.namespace());
            here && term.pods.selector.as_ref().is_some_and(|selector| selector.matches(other.labels()))
        };
        let own = pod.affinity.as_deref();
        let wanted = |other: &&PodInfo| {
            own.is_some_and(|own| !own.required.is_empty() && own.required.iter().all(|term| selects(term, other)))
        };
        let unwanted = |other: &&PodInfo| {
            own.is_some_and(|own| own.required_anti.iter().any(|term| selects(term, other)))
                || other.affinity.as_ref().is_some_and(|its| its.required_anti.iter().any(|term| selects(term, pod)))
        };
        Hint::queue_if(new.iter().any(wanted) || old.iter().any(unwanted))
    }
}

impl Filter for InterPodAffinity {
    type State = Nearness;

    fn prefilter(&self, pod: &PodInfo, cluster: &mut Cluster) -> PreFilter<Nearness> {
        let own = pod.affinity.as_deref();
        if own.is_none() && cluster.terms().is_empty() {
            return PreFilter::Skip;
        }
        let namespaces = cluster.namespaces().clone();
        let namespace_labels = namespaces.labels(pod.namespace());
        let mut existing: Vec<Domains> = Vec::new();
        for term in cluster.terms().matching(pod, namespace_labels) {
            if term.kind != TermKind::RequiredAnti {
                continue;
            }
            match existing.iter_mut().find(|own| own.topology == term.topology) {
                Some(own) => {
                    let counts = Arc::make_mut(&mut own.counts);
                    if counts.len() < term.domains.len() {
                        counts.resize(term.domains.len(), 0);
                    }
                    counts.iter_mut().zip(&term.domains).for_each(|(count, more)| *count += more);
                }
                None => existing.push(Domains { topology: term.topology, counts: Arc::new(term.domains.clone()) }),
            }
        }
        let (required, anti) = own.map_or((&[][..], &[][..]), |own| (&*own.required, &*own.required_anti));
        if existing.is_empty() && required.is_empty() && anti.is_empty() {
            return PreFilter::Skip;
        }
        let mut near = Vec::with_capacity(required.len());
        for term in required {
            let topology = cluster.topology(&term.topology_key);
            near.push(Domains::of(topology, selected_by_all(required), cluster));
        }
        let mut far = Vec::with_capacity(anti.len());
        for term in anti {
            let topology = cluster.topology(&term.topology_key);
            far.push(Domains::of(topology, selected_by_all(std::slice::from_ref(term)), cluster));
        }
        let itself = required.iter().all(|t| t.pods.matches(pod.namespace(), pod.labels(), namespace_labels));
        let mut state = Nearness { namespaces, near, may_be_first: itself, nobody_near: false, far, existing };
        state.look_for_anybody();
        PreFilter::Run(state)
    }

    fn filter(&self, state: &Nearness, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        let mut somebody = true;
        for own in &state.near {
            match own.on(node) {
                None => return FilterStatus::unresolvable(REASON_AFFINITY),
                Some(0) => somebody = false,
                Some(_) => {}
            }
        }
        let is_first = state.may_be_first && state.nobody_near;
        if !somebody && !is_first {
            return FilterStatus::unresolvable(REASON_AFFINITY);
        }
        if state.far.iter().any(|own| own.on(node).is_some_and(|count| count > 0)) {
            return FilterStatus::unschedulable(REASON_ANTI_AFFINITY);
        }
        if state.existing.iter().any(|own| own.on(node).is_some_and(|count| count > 0)) {
            return FilterStatus::unschedulable(REASON_EXISTING);
        }
        FilterStatus::Success
    }

    fn add_pod(&self, state: &mut Nearness, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>) {
        state.changed(pod, other, node, true);
    }

    fn remove_pod(&self, state: &mut Nearness, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>) {
        state.changed(pod, other, node, false);
    }
}
