//! NodePorts: two pods cannot have one port of a host.

use crate::cluster::{Cluster, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreFilter, Reuse, Signature,
};
use crate::pod::PodInfo;

const REASON: &str = "node(s) didn't have free ports for the requested pod ports";

pub(super) struct NodePorts;

impl Plugin for NodePorts {
    const NAME: &'static str = "NodePorts";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE),
        ClusterEvent::new(EventResource::Node, Actions::ADD),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        match change {
            Change::AssignedPod { old: Some(gone), new: None } => {
                Hint::queue_if(pod.ports.iter().any(|own| gone.ports.iter().any(|other| own.conflicts_with(other))))
            }
            _ => Hint::Queue,
        }
    }
}

impl Filter for NodePorts {
    type State = ();

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&pod.ports);
        Reuse::PerNode
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<()> {
        if pod.ports.is_empty() { PreFilter::Skip } else { PreFilter::Run(()) }
    }

    fn filter(&self, (): &(), pod: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        let taken = node.ports();
        if pod.ports.iter().any(|own| taken.iter().any(|other| own.conflicts_with(other))) {
            FilterStatus::unschedulable(REASON)
        } else {
            FilterStatus::Success
        }
    }
}
