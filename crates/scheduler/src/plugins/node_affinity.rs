//! NodeAffinity: node selectors, and required and preferred node affinity.

use k8s_openapi::api::core::v1::{NodeAffinity as ApiAffinity, PreferredSchedulingTerm};
use serde::Deserialize;

use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Normalize, Plugin, PreFilter, PreScore,
    Rejection, Reuse, Score, Signature,
};
use crate::pod::PodInfo;
use crate::selector::{Labels, NodeMatcher, NodeTerm, Selector, labels_of};

const REASON: &str = "node(s) didn't match Pod's node affinity/selector";
const REASON_ADDED: &str = "node(s) didn't match scheduler-enforced node affinity";
const REASON_CONFLICT: &str = "pod affinity terms conflict";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Args {
    /// Demanded of every pod of the profile besides its own affinity.
    added_affinity: Option<ApiAffinity>,
}

pub(super) struct NodeAffinity {
    added: Option<NodeMatcher>,
    added_preferred: Vec<Preferred>,
}

impl NodeAffinity {
    #[must_use]
    pub(super) fn new(args: &Args) -> Self {
        let added = args.added_affinity.as_ref();
        Self { added: added.and_then(required_of), added_preferred: preferred_of(added) }
    }
}

/// What a pod demands of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Required {
    selector: Selector,
    affinity: Option<NodeMatcher>,
}

impl Required {
    #[must_use]
    pub(super) fn of(pod: &PodInfo) -> Self {
        let spec = pod.spec();
        Self {
            selector: Selector::exactly(spec.and_then(|spec| spec.node_selector.as_ref()).into_iter().flatten()),
            affinity: affinity_of(pod).and_then(required_of),
        }
    }

    #[must_use]
    pub(super) fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.selector.matches(labels) && self.affinity.as_ref().is_none_or(|affinity| affinity.matches(name, labels))
    }

    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.selector.is_empty() && self.affinity.is_none()
    }

    fn names(&self) -> Option<Vec<&str>> {
        self.affinity.as_ref().and_then(NodeMatcher::names)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Preferred {
    term: NodeTerm,
    weight: i64,
}

fn affinity_of(pod: &PodInfo) -> Option<&ApiAffinity> {
    pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()
}

fn required_of(affinity: &ApiAffinity) -> Option<NodeMatcher> {
    affinity.required_during_scheduling_ignored_during_execution.as_ref().map(NodeMatcher::of)
}

/// Terms without weight or without requirements prefer nothing.
fn preferred_of(affinity: Option<&ApiAffinity>) -> Vec<Preferred> {
    let terms = affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let compile = |term: &PreferredSchedulingTerm| Preferred {
        term: NodeTerm::of(&term.preference),
        weight: i64::from(term.weight),
    };
    terms.into_iter().flatten().map(compile).filter(|p| p.weight != 0 && !p.term.is_empty()).collect()
}

impl Plugin for NodeAffinity {
    const NAME: &'static str = "NodeAffinity";
    const REQUEUE_ON: &'static [ClusterEvent] =
        &[ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_LABEL))];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        let Change::Node { old, new: Some(new) } = change else { return Hint::Queue };
        let required = Required::of(pod);
        let matches = |node: &k8s_openapi::api::core::v1::Node| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let labels = labels_of(node.metadata.labels.as_ref());
            required.matches(name, labels) && self.added.as_ref().is_none_or(|added| added.matches(name, labels))
        };
        Hint::queue_if(matches(new) && !old.is_some_and(matches))
    }
}

impl Filter for NodeAffinity {
    type State = Required;

    /// A pod for certain nodes is not worth a class of its own: there are as many of them as nodes.
    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        let required = Required::of(pod);
        if required.names().is_some() {
            return Reuse::Never;
        }
        signature.add(&required);
        Reuse::PerNode
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<Required> {
        let required = Required::of(pod);
        match required.names() {
            Some(names) if names.is_empty() => PreFilter::Reject(Rejection::unresolvable(REASON_CONFLICT)),
            Some(names) => {
                let names = names.into_iter().map(str::to_owned).collect();
                PreFilter::RunOn(required, names)
            }
            None if required.is_empty() && self.added.is_none() => PreFilter::Skip,
            None => PreFilter::Run(required),
        }
    }

    fn filter(&self, required: &Required, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        if self.added.as_ref().is_some_and(|added| !added.matches(node.name(), node.labels())) {
            return FilterStatus::unresolvable(REASON_ADDED);
        }
        if required.matches(node.name(), node.labels()) {
            FilterStatus::Success
        } else {
            FilterStatus::unresolvable(REASON)
        }
    }
}

pub(super) struct PreferredState(Vec<Preferred>);

impl Score for NodeAffinity {
    type State = PreferredState;
    const NORMALIZE: Normalize = Normalize::ByHighest;

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&preferred_of(affinity_of(pod)));
        Reuse::PerNode
    }

    fn prescore(&self, pod: &PodInfo, _: &mut Cluster, _: &[NodeIdx]) -> PreScore<Self::State> {
        let mut preferred = preferred_of(affinity_of(pod));
        if preferred.is_empty() && self.added_preferred.is_empty() {
            return PreScore::Skip;
        }
        preferred.extend(self.added_preferred.iter().cloned());
        PreScore::Run(PreferredState(preferred))
    }

    /// The weights of the terms that match.
    fn score(&self, PreferredState(preferred): &PreferredState, _: &PodInfo, node: NodeRef<'_>) -> i64 {
        let matching = preferred.iter().filter(|p| p.term.matches(node.name(), node.labels()));
        matching.map(|p| p.weight).sum()
    }
}
