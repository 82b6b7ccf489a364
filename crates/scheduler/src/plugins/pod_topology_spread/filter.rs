//! What a pod demands: no domain may get more pods than the emptiest one has and the skew allows.

use std::sync::Arc;

use super::constraint::{Constraint, Inclusion, has_all, topologies};
use super::{DO_NOT_SCHEDULE, PodTopologySpread, own_constraints};
use crate::cluster::{Cluster, NodeRef, TopologyId};
use crate::framework::{Filter, FilterStatus, PreFilter, Reuse, Signature};
use crate::pod::PodInfo;

const REASON: &str = "node(s) didn't match pod topology spread constraints";
const REASON_NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// No node of the domain is counted.
const UNKNOWN: u32 = u32::MAX;

#[derive(Clone)]
pub(crate) struct Spread {
    inclusion: Arc<Inclusion>,
    topologies: Arc<[TopologyId]>,
    constraints: Vec<Counted>,
}

#[derive(Clone)]
struct Counted {
    constraint: Arc<Constraint>,
    /// Whether the pod itself will be counted: 0 or 1.
    own: i64,
    /// By domain.
    counts: Arc<Vec<u32>>,
    /// What the emptiest domain has, as the constraint sees it.
    least: i64,
}

impl Counted {
    fn work_out_least(&mut self) {
        let known = self.counts.iter().filter(|count| **count != UNKNOWN);
        let (domains, least) = known.fold((0, u32::MAX), |(n, least), count| (n + 1, least.min(*count)));
        self.least = if domains < self.constraint.min_domains || domains == 0 { 0 } else { i64::from(least) };
    }
}

impl PodTopologySpread {
    fn changed(state: &mut Spread, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>, came: bool) {
        if other.namespace() != pod.namespace() || other.is_terminating() || !has_all(&state.topologies, node) {
            return;
        }
        let Spread { inclusion, topologies, constraints } = state;
        for (own, topology) in constraints.iter_mut().zip(topologies.iter()) {
            if !own.constraint.selects(other.labels()) || !own.constraint.includes(inclusion, pod, node) {
                continue;
            }
            let Some(domain) = node.domain(*topology) else { continue };
            let counts = Arc::make_mut(&mut own.counts);
            if let Some(count) = counts.get_mut(domain.index()).filter(|count| **count != UNKNOWN) {
                *count = if came { *count + 1 } else { count.saturating_sub(1) };
            }
            own.work_out_least();
        }
    }
}

impl Filter for PodTopologySpread {
    type State = Spread;

    fn sign(&self, pod: &PodInfo, _: &mut Signature) -> Reuse {
        let own = own_constraints(pod);
        let demands = own.iter().any(|own| own.when_unsatisfiable == DO_NOT_SCHEDULE);
        if demands || (own.is_empty() && self.has_default(DO_NOT_SCHEDULE)) { Reuse::Never } else { Reuse::PerNode }
    }

    fn prefilter(&self, pod: &PodInfo, cluster: &mut Cluster) -> PreFilter<Spread> {
        let constraints = self.constraints(pod, DO_NOT_SCHEDULE);
        if constraints.is_empty() {
            return PreFilter::Skip;
        }
        let inclusion = Inclusion::of(pod);
        let topologies = topologies(&constraints, cluster);
        let columns: Vec<_> =
            constraints.iter().map(|own| own.count_key(pod.namespace()).map(|key| cluster.count(key))).collect();
        let topology = cluster.nodes().topology();
        let mut counts: Vec<Vec<u32>> = topologies.iter().map(|id| vec![UNKNOWN; topology.bound(*id)]).collect();
        for node in cluster.nodes().iter().filter(|node| has_all(&topologies, *node)) {
            for (at, own) in constraints.iter().enumerate() {
                let Some(domain) = node.domain(topologies[at]) else { continue };
                if !own.includes(&inclusion, pod, node) {
                    continue;
                }
                let on_node = columns[at].map_or(0, |id| cluster.counts().on_node(id, node.idx()));
                let count = &mut counts[at][domain.index()];
                *count = if *count == UNKNOWN { on_node } else { *count + on_node };
            }
        }
        let constraints = constraints.into_iter().zip(counts).map(|(constraint, counts)| {
            let own = i64::from(constraint.selects(pod.labels()));
            let mut counted = Counted { constraint: Arc::new(constraint), own, counts: Arc::new(counts), least: 0 };
            counted.work_out_least();
            counted
        });
        let constraints = constraints.collect();
        PreFilter::Run(Spread { inclusion: Arc::new(inclusion), topologies: topologies.into(), constraints })
    }

    fn filter(&self, state: &Spread, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        for (own, topology) in state.constraints.iter().zip(state.topologies.iter()) {
            let Some(domain) = node.domain(*topology) else { return FilterStatus::unresolvable(REASON_NO_LABEL) };
            let count = own.counts.get(domain.index()).copied().filter(|count| *count != UNKNOWN);
            if i64::from(count.unwrap_or(0)) + own.own - own.least > own.constraint.max_skew {
                return FilterStatus::unschedulable(REASON);
            }
        }
        FilterStatus::Success
    }

    fn add_pod(&self, state: &mut Spread, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>) {
        Self::changed(state, pod, other, node, true);
    }

    fn remove_pod(&self, state: &mut Spread, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>) {
        Self::changed(state, pod, other, node, false);
    }
}
