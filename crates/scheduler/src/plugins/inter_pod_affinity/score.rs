//! Preferences of the pod, and of the pods that are there: nodes near liked pods are better, near disliked ones worse.

use super::{InterPodAffinity, selected_by_all};
use crate::cluster::{Cluster, NodeIdx, NodeRef, TermKind, TopologyId};
use crate::framework::{MAX_NODE_SCORE, Normalize, PreScore, Score};
use crate::pod::PodInfo;

/// What every domain of a topology is worth.
pub(crate) struct Worth(Vec<(TopologyId, Vec<i64>)>);

impl Worth {
    fn of(&mut self, topology: TopologyId, bound: usize) -> &mut Vec<i64> {
        let at = self.0.iter().position(|(own, _)| *own == topology).unwrap_or_else(|| {
            self.0.push((topology, Vec::new()));
            self.0.len() - 1
        });
        let worth = &mut self.0[at].1;
        if worth.len() < bound {
            worth.resize(bound, 0);
        }
        worth
    }
}

impl InterPodAffinity {
    fn looks_at_others(&self, pod: &PodInfo) -> bool {
        let prefers = pod.affinity.as_ref().is_some_and(|own| !own.preferred.is_empty());
        prefers || !self.args.ignore_preferred_terms_of_existing_pods
    }

    /// What a term of a pod that is there adds to its domains when it selects the pod.
    fn weight_of(&self, kind: TermKind) -> i64 {
        match kind {
            TermKind::Required => self.args.hard_pod_affinity_weight,
            TermKind::RequiredAnti => 0,
            TermKind::Preferred(weight) => weight,
        }
    }
}

impl Score for InterPodAffinity {
    type State = Worth;
    const NORMALIZE: Normalize = Normalize::ByPlugin;

    fn concerns(&self, pod: &PodInfo, cluster: &Cluster) -> bool {
        if pod.affinity.as_ref().is_some_and(|own| !own.preferred.is_empty()) {
            return true;
        }
        self.looks_at_others(pod) && {
            let labels = cluster.namespace_labels(pod.namespace());
            cluster.terms().matching(pod, labels).any(|term| self.weight_of(term.kind) != 0)
        }
    }

    fn prescore(&self, pod: &PodInfo, cluster: &mut Cluster, _: &[NodeIdx]) -> PreScore<Worth> {
        let mut worth = Worth(Vec::new());
        let preferred = pod.affinity.as_ref().map_or(&[][..], |own| &*own.preferred);
        for own in preferred {
            let topology = cluster.topology(&own.term.topology_key);
            let id = cluster.count(selected_by_all(std::slice::from_ref(&own.term)));
            let bound = cluster.nodes().topology().bound(topology);
            let worth = worth.of(topology, bound);
            for node in cluster.nodes().iter() {
                if let Some(domain) = node.domain(topology) {
                    worth[domain.index()] += own.weight * i64::from(cluster.counts().on_node(id, node.idx()));
                }
            }
        }
        if self.looks_at_others(pod) {
            let labels = cluster.namespace_labels(pod.namespace());
            for term in cluster.terms().matching(pod, labels) {
                let weight = self.weight_of(term.kind);
                if weight != 0 {
                    let worth = worth.of(term.topology, term.domains.len());
                    worth.iter_mut().zip(&term.domains).for_each(|(sum, pods)| *sum += weight * i64::from(*pods));
                }
            }
        }
        if worth.0.is_empty() { PreScore::Skip } else { PreScore::Run(worth) }
    }

    /// Negative where the pod is not wanted, or does not want to be.
    fn score(&self, worth: &Worth, _: &PodInfo, node: NodeRef<'_>) -> i64 {
        let each = worth.0.iter().filter_map(|(topology, worth)| worth.get(node.domain(*topology)?.index()));
        each.sum()
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "the rule is stated in floating point, over sums far below 2^53"
    )]
    fn normalize(&self, _: &Worth, _: &Cluster, _: &[NodeIdx], scores: &mut [i64]) {
        let (least, most) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
        for score in scores {
            *score = if most == least {
                0
            } else {
                (MAX_NODE_SCORE as f64 * ((*score - least) as f64 / (most - least) as f64)) as i64
            };
        }
    }
}
