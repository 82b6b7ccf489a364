//! One constraint, compiled for one pod.

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use super::super::node_affinity::Required;
use crate::cluster::{Cluster, CountKey, NodeRef, TopologyId};
use crate::pod::{PodInfo, PodSelection};
use crate::selector::{Labels, Selector};
use crate::taints;

/// What of a pod decides on which nodes its constraints count pods.
pub(super) struct Inclusion {
    required: Required,
    demanding: bool,
}

impl Inclusion {
    pub(super) fn of(pod: &PodInfo) -> Self {
        let required = Required::of(pod);
        Self { demanding: !required.is_empty(), required }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Constraint {
    pub(super) topology_key: String,
    pub(super) max_skew: i64,
    /// With fewer domains than this, the emptiest counts as empty.
    pub(super) min_domains: usize,
    /// `None` selects nothing.
    selector: Option<Selector>,
    /// Count only on nodes that the pod's node affinity and selector match.
    honor_affinity: bool,
    /// Count only on nodes whose taints the pod tolerates.
    honor_taints: bool,
}

impl Constraint {
    /// `matchLabelKeys` are requirements with the pod's own values; an API server may have written them into the selector
    /// already, which changes nothing.
    pub(super) fn of(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let labels = pod.labels();
        let keys = constraint.match_label_keys.iter().flatten();
        let own: Vec<_> = keys.filter_map(|key| labels.get(key).map(|v| (key, std::slice::from_ref(v)))).collect();
        let extra = own.iter().map(|(key, values)| (key.as_str(), "In", *values));
        let selector = constraint.label_selector.as_ref().map(|selector| Selector::of_parts(selector, extra));
        Self { selector, ..Self::with(constraint, Selector::default()) }
    }

    /// The constraint with a selector that is not its own.
    pub(super) fn with(constraint: &TopologySpreadConstraint, selector: Selector) -> Self {
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
            selector: Some(selector),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    pub(super) fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// Which pods are counted; `None` if none can be. A selector without requirements counts nothing, which is how
    /// upstream does it.
    pub(super) fn count_key(&self, namespace: &str) -> Option<CountKey> {
        let selector = self.selector.clone().filter(|selector| !selector.is_empty())?;
        let selection =
            PodSelection { namespaces: [namespace.into()].into(), namespace_selector: None, selector: Some(selector) };
        Some(CountKey { all_of: [selection].into(), skip_terminating: true })
    }

    /// Whether pods on the node are counted at all.
    pub(super) fn includes(&self, inclusion: &Inclusion, pod: &PodInfo, node: NodeRef<'_>) -> bool {
        if self.honor_affinity && inclusion.demanding && !inclusion.required.matches(node.name(), node.labels()) {
            return false;
        }
        !self.honor_taints || taints::untolerated(node.taints(), pod.tolerations()).is_none()
    }
}

/// The columns of the constraints' keys.
pub(super) fn topologies(constraints: &[Constraint], cluster: &mut Cluster) -> Vec<TopologyId> {
    constraints.iter().map(|own| cluster.topology(&own.topology_key)).collect()
}

/// Whether the node is in a domain of each.
pub(super) fn has_all(topologies: &[TopologyId], node: NodeRef<'_>) -> bool {
    topologies.iter().all(|topology| node.domain(*topology).is_some())
}
