//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use crate::cluster::{Cluster, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreFilter, Reuse, Signature,
};
use crate::pod::PodInfo;
use crate::taints;

const REASON: &str = "node(s) were unschedulable";

pub(super) struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    const NAME: &'static str = "NodeUnschedulable";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_TAINT)),
        ClusterEvent::new(EventResource::UnscheduledPod, Actions::UPDATE_POD_TOLERATION),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        let cordoned = |node: &k8s_openapi::api::core::v1::Node| {
            node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default()
        };
        match change {
            Change::Node { old, new: Some(new) } => {
                Hint::queue_if(!cordoned(new) && old.is_none_or(cordoned) || tolerates_cordon(pod))
            }
            Change::UnscheduledPod { new, .. } => Hint::queue_if(tolerates_cordon(new)),
            _ => Hint::Queue,
        }
    }
}

impl Filter for NodeUnschedulable {
    type State = ();

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&tolerates_cordon(pod));
        Reuse::PerNode
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<()> {
        if tolerates_cordon(pod) { PreFilter::Skip } else { PreFilter::Run(()) }
    }

    fn filter(&self, (): &(), _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        if node.is_unschedulable() { FilterStatus::unresolvable(REASON) } else { FilterStatus::Success }
    }
}

/// Cordoning counts as a taint, whether or not the node has it.
fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: taints::NO_SCHEDULE.to_owned(),
        ..Taint::default()
    };
    pod.tolerations().iter().any(|toleration| taints::tolerates(toleration, &taint))
}
