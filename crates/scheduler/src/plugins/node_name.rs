//! NodeName: a pod that names its node goes nowhere else.

use crate::cluster::{Cluster, NodeRef};
use crate::framework::{
    Actions, ClusterEvent, EventResource, Filter, FilterStatus, Plugin, PreFilter, Reuse, Signature,
};
use crate::pod::PodInfo;

const REASON: &str = "node(s) didn't match the requested node name";

pub(super) struct NodeName;

impl Plugin for NodeName {
    const NAME: &'static str = "NodeName";
    const REQUEUE_ON: &'static [ClusterEvent] = &[ClusterEvent::new(EventResource::Node, Actions::ADD)];
}

impl Filter for NodeName {
    type State = String;

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&pod.node_name());
        Reuse::PerNode
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<String> {
        pod.node_name().map_or(PreFilter::Skip, |name| PreFilter::Run(name.to_owned()))
    }

    fn filter(&self, wanted: &String, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        if **node.name() == **wanted { FilterStatus::Success } else { FilterStatus::unresolvable(REASON) }
    }
}
