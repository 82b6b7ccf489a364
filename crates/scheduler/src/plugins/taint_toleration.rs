//! TaintToleration: tainted nodes take only pods that tolerate it, or take others last.

use k8s_openapi::api::core::v1::Toleration;

use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Normalize, Plugin, PreFilter, PreScore,
    Reuse, Score, Signature,
};
use crate::pod::PodInfo;
use crate::taints::{self, tolerates, untolerated};

/// Which taint it was is not told: who may see the pod need not know about nodes.
const REASON: &str = "node(s) had untolerated taint(s)";

pub(super) struct TaintToleration;

impl Plugin for TaintToleration {
    const NAME: &'static str = "TaintToleration";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_TAINT)),
        ClusterEvent::new(EventResource::UnscheduledPod, Actions::UPDATE_POD_TOLERATION),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        let Change::Node { old, new: Some(new) } = change else { return Hint::Queue };
        let keeps_away = |node: &k8s_openapi::api::core::v1::Node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
            untolerated(taints, pod.tolerations()).is_some()
        };
        Hint::queue_if(!keeps_away(new) && old.is_none_or(keeps_away))
    }
}

impl Filter for TaintToleration {
    type State = ();

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        taints::sign(pod.tolerations(), signature);
        Reuse::PerNode
    }

    fn prefilter(&self, _: &PodInfo, _: &mut Cluster) -> PreFilter<()> {
        PreFilter::Run(())
    }

    fn filter(&self, (): &(), pod: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        match untolerated(node.taints(), pod.tolerations()) {
            None => FilterStatus::Success,
            Some(_) => FilterStatus::unresolvable(REASON),
        }
    }
}

impl Score for TaintToleration {
    /// The tolerations that may be for taints which only prefer.
    type State = Vec<Toleration>;
    const NORMALIZE: Normalize = Normalize::ByHighestReversed;

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        taints::sign(pod.tolerations(), signature);
        Reuse::PerNode
    }

    fn prescore(&self, pod: &PodInfo, _: &mut Cluster, _: &[NodeIdx]) -> PreScore<Self::State> {
        let prefers = |toleration: &&Toleration| {
            matches!(toleration.effect.as_deref(), None | Some("" | taints::PREFER_NO_SCHEDULE))
        };
        PreScore::Run(pod.tolerations().iter().filter(prefers).cloned().collect())
    }

    /// The number of taints that the pod does not tolerate.
    fn score(&self, tolerations: &Self::State, _: &PodInfo, node: NodeRef<'_>) -> i64 {
        let prefers = node.taints().iter().filter(|taint| taint.effect == taints::PREFER_NO_SCHEDULE);
        let count = prefers.filter(|taint| !tolerations.iter().any(|own| tolerates(own, taint))).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    }
}
