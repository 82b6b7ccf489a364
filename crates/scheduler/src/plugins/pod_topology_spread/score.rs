//! What a pod would like: domains with few pods of its kind are better.

use super::constraint::{Inclusion, has_all, topologies};
use super::{HOSTNAME, PodTopologySpread, SCHEDULE_ANYWAY, own_constraints};
use crate::cluster::{Cluster, NodeIdx, NodeRef, TopologyId};
use crate::framework::{MAX_NODE_SCORE, Normalize, PreScore, Reuse, Score, Signature};
use crate::pod::PodInfo;

pub(crate) struct Liking {
    constraints: Vec<Counted>,
    topologies: Vec<TopologyId>,
    /// Nodes without all of the keys are the worst.
    needs_all: bool,
}

struct Counted {
    topology: TopologyId,
    /// Adds to every node alike, so that a larger skew weighs less.
    base: f64,
    /// The more domains there are, the more a constraint weighs.
    weight: f64,
    /// By node where a domain is a node, else by domain.
    counts: Vec<u32>,
    per_node: bool,
}

impl Liking {
    fn ignores(&self, node: NodeRef<'_>) -> bool {
        self.needs_all && !has_all(&self.topologies, node)
    }
}

impl Score for PodTopologySpread {
    type State = Liking;
    const NORMALIZE: Normalize = Normalize::ByPlugin;

    fn sign(&self, pod: &PodInfo, _: &mut Signature) -> Reuse {
        let own = own_constraints(pod);
        let likes = own.iter().any(|own| own.when_unsatisfiable == SCHEDULE_ANYWAY);
        if likes || (own.is_empty() && self.has_default(SCHEDULE_ANYWAY)) { Reuse::Never } else { Reuse::PerNode }
    }

    fn concerns(&self, pod: &PodInfo, _: &Cluster) -> bool {
        !self.constraints(pod, SCHEDULE_ANYWAY).is_empty()
    }

    #[expect(clippy::cast_precision_loss, reason = "the rule is stated in floating point, over numbers of nodes")]
    fn prescore(&self, pod: &PodInfo, cluster: &mut Cluster, feasible: &[NodeIdx]) -> PreScore<Liking> {
        let constraints = self.constraints(pod, SCHEDULE_ANYWAY);
        if constraints.is_empty() {
            return PreScore::Skip;
        }
        let needs_all = !own_constraints(pod).is_empty() || !self.system_defaults;
        let inclusion = Inclusion::of(pod);
        let topologies = topologies(&constraints, cluster);
        let columns: Vec<_> =
            constraints.iter().map(|own| own.count_key(pod.namespace()).map(|key| cluster.count(key))).collect();
        let nodes = cluster.nodes();
        let scored: Vec<NodeRef<'_>> = feasible.iter().filter_map(|at| nodes.get(*at)).collect();
        let scored: Vec<_> = scored.into_iter().filter(|node| !needs_all || has_all(&topologies, *node)).collect();
        let counted = constraints.iter().enumerate().map(|(at, own)| {
            let topology = topologies[at];
            let per_node = own.topology_key == HOSTNAME;
            let count = |node: NodeRef<'_>| columns[at].map_or(0, |id| cluster.counts().on_node(id, node.idx()));
            let (size, counts) = if per_node {
                let mut counts = vec![0; nodes.capacity()];
                for node in &scored {
                    counts[node.idx().at()] = count(*node);
                }
                (scored.len(), counts)
            } else {
                let mut asked_for = vec![false; nodes.topology().bound(topology)];
                // Nodes outside of every domain are one domain more.
                let mut outside = false;
                for node in &scored {
                    match node.domain(topology) {
                        Some(domain) => asked_for[domain.index()] = true,
                        None => outside = true,
                    }
                }
                let mut counts = vec![0; asked_for.len()];
                for node in nodes.iter() {
                    let Some(domain) = node.domain(topology) else { continue };
                    let counts_here = asked_for[domain.index()]
                        && (!needs_all || has_all(&topologies, node))
                        && own.includes(&inclusion, pod, node);
                    if counts_here {
                        counts[domain.index()] += count(node);
                    }
                }
                (asked_for.iter().filter(|asked| **asked).count() + usize::from(outside), counts)
            };
            let (base, weight) = ((own.max_skew - 1) as f64, ((size + 2) as f64).ln());
            Counted { topology, base, weight, counts, per_node }
        });
        PreScore::Run(Liking { constraints: counted.collect(), topologies: topologies.clone(), needs_all })
    }

    /// How crowded it is around the node.
    #[expect(clippy::cast_possible_truncation, reason = "far below 2^53")]
    fn score(&self, state: &Liking, _: &PodInfo, node: NodeRef<'_>) -> i64 {
        if state.ignores(node) {
            return 0;
        }
        let each = state.constraints.iter().filter_map(|own| {
            let domain = node.domain(own.topology)?;
            let count = if own.per_node { own.counts.get(node.idx().at()) } else { own.counts.get(domain.index()) };
            Some(f64::from(count.copied().unwrap_or(0)) * own.weight + own.base)
        });
        each.sum::<f64>().round() as i64
    }

    fn normalize(&self, state: &Liking, cluster: &Cluster, nodes: &[NodeIdx], scores: &mut [i64]) {
        let columns = cluster.nodes();
        let ignored: Vec<bool> =
            nodes.iter().map(|at| columns.get(*at).is_none_or(|node| state.ignores(node))).collect();
        let counted = scores.iter().zip(&ignored).filter(|(_, ignored)| !**ignored).map(|(score, _)| *score);
        let (least, most) = counted.fold((i64::MAX, 0), |(least, most), score| (least.min(score), most.max(score)));
        for (score, ignored) in scores.iter_mut().zip(ignored) {
            *score = match (ignored, most) {
                (true, _) => 0,
                (false, 0) => MAX_NODE_SCORE,
                (false, most) => MAX_NODE_SCORE * (most + least - *score) / most,
            };
        }
    }
}
