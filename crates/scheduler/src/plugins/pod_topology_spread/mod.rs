//! PodTopologySpread: pods of a kind are spread over the domains of a topology.

mod constraint;
mod filter;
mod score;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Node, ReplicationController, Service, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use crate::framework::{Actions, Change, ClusterEvent, EventResource, Hint, Plugin};
use crate::listers::Listers;
use crate::pod::PodInfo;
use crate::selector::{Labels, Selector, labels_of};
use client::ObjectKey;
use constraint::Constraint;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Args {
    /// For pods that have no constraints of their own. They have no selector: the pod's services and its controller say
    /// which pods are of its kind.
    default_constraints: Vec<TopologySpreadConstraint>,
    /// `System` (the default) or `List`.
    defaulting_type: String,
}

pub(super) struct PodTopologySpread {
    defaults: Vec<TopologySpreadConstraint>,
    /// The defaults are the built-in ones, for which nodes need not have all topology keys.
    system_defaults: bool,
    listers: Listers,
}

const DO_NOT_SCHEDULE: &str = "DoNotSchedule";
const SCHEDULE_ANYWAY: &str = "ScheduleAnyway";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

fn built_in_defaults() -> Vec<TopologySpreadConstraint> {
    [(HOSTNAME, 3), (ZONE, 5)]
        .map(|(key, max_skew)| TopologySpreadConstraint {
            topology_key: key.to_owned(),
            max_skew,
            when_unsatisfiable: SCHEDULE_ANYWAY.to_owned(),
            ..TopologySpreadConstraint::default()
        })
        .into()
}

impl PodTopologySpread {
    /// # Errors
    /// All mistakes of the arguments, in one text.
    pub(super) fn new(args: Args, listers: &Listers) -> Result<Self, String> {
        let mut mistakes = Vec::new();
        let system_defaults = match &*args.defaulting_type {
            "" | "System" => true,
            "List" => false,
            other => {
                mistakes.push(format!(
                    "defaultingType: Unsupported value: {other:?}: supported values: \"List\", \"System\""
                ));
                false
            }
        };
        if system_defaults && !args.default_constraints.is_empty() {
            mistakes
                .push("defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty".to_owned());
        }
        check_constraints(&args.default_constraints, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes.join(", "));
        }
        let defaults = if system_defaults { built_in_defaults() } else { args.default_constraints };
        Ok(Self { defaults, system_defaults, listers: listers.clone() })
    }

    /// What the pod demands (`DoNotSchedule`) or would like (`ScheduleAnyway`).
    fn constraints(&self, pod: &PodInfo, action: &str) -> Vec<Constraint> {
        let own = own_constraints(pod);
        if !own.is_empty() {
            let of_action = own.iter().filter(|own| own.when_unsatisfiable == action);
            return of_action.map(|own| Constraint::of(own, pod)).collect();
        }
        let defaults: Vec<_> = self.defaults.iter().filter(|own| own.when_unsatisfiable == action).collect();
        if defaults.is_empty() {
            return Vec::new();
        }
        let selector = self.kind_of(pod);
        if selector.is_empty() {
            return Vec::new();
        }
        defaults.into_iter().map(|own| Constraint::with(own, selector.clone())).collect()
    }

    /// Whether a pod without constraints of its own can have such ones at all.
    fn has_default(&self, action: &str) -> bool {
        self.defaults.iter().any(|own| own.when_unsatisfiable == action)
    }

    /// Selects the pods that are of the same kind as this one: those of its services and its controller.
    fn kind_of(&self, pod: &PodInfo) -> Selector {
        let labels = pod.labels();
        let mut exactly = Labels::new();
        for service in self.listers.services.in_namespace(pod.namespace()) {
            if let Some(selector) = selector_of_service(&service)
                && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            {
                exactly.extend(selector.clone());
            }
        }
        let owner = pod.object.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let Some(owner) = owner else { return Selector::exactly(&exactly) };
        let key = ObjectKey::new(pod.namespace(), &owner.name);
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let of_controller: Option<LabelSelector> = match (group, &*owner.kind) {
            ("", "ReplicationController") => {
                exactly.extend(
                    self.listers.replication_controllers.get(&key).and_then(|rc| labels_of_rc(&rc)).unwrap_or_default(),
                );
                None
            }
            ("apps", "ReplicaSet") => self.listers.replica_sets.get(&key).and_then(|rs| selector_of_rs(&rs)),
            ("apps", "StatefulSet") => self.listers.stateful_sets.get(&key).and_then(|set| selector_of_set(&set)),
            _ => None,
        };
        let selector = Selector::exactly(&exactly);
        match of_controller {
            Some(other) => selector.and(&Selector::of(&other)),
            None => selector,
        }
    }
}

fn selector_of_service(service: &Service) -> Option<&Labels> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn labels_of_rc(controller: &ReplicationController) -> Option<Labels> {
    controller.spec.as_ref()?.selector.clone()
}

fn selector_of_rs(set: &ReplicaSet) -> Option<LabelSelector> {
    set.spec.as_ref().map(|spec| spec.selector.clone())
}

fn selector_of_set(set: &StatefulSet) -> Option<LabelSelector> {
    set.spec.as_ref().map(|spec| spec.selector.clone())
}

fn own_constraints(pod: &PodInfo) -> &[TopologySpreadConstraint] {
    pod.spec().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default()
}

fn check_constraints(constraints: &[TopologySpreadConstraint], mistakes: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    for (at, constraint) in constraints.iter().enumerate() {
        let path = format!("defaultConstraints[{at}]");
        if constraint.max_skew <= 0 {
            mistakes.push(format!("{path}.maxSkew: Invalid value: {}: must be greater than zero", constraint.max_skew));
        }
        if constraint.topology_key.is_empty() {
            mistakes.push(format!("{path}.topologyKey: Required value: can not be empty"));
        }
        if !matches!(&*constraint.when_unsatisfiable, DO_NOT_SCHEDULE | SCHEDULE_ANYWAY) {
            mistakes.push(format!(
                "{path}.whenUnsatisfiable: Unsupported value: {:?}: supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
                constraint.when_unsatisfiable
            ));
        }
        if constraint.label_selector.is_some() {
            mistakes.push(format!(
                "{path}.labelSelector: Forbidden: constraint must not define a selector, as they deduced for each pod"
            ));
        }
        if !seen.insert((&constraint.topology_key, &constraint.when_unsatisfiable)) {
            mistakes.push(format!(
                "{path}.{{topologyKey, whenUnsatisfiable}}: Duplicate value: \"{{{}, {}}}\"",
                constraint.topology_key, constraint.when_unsatisfiable
            ));
        }
    }
}

impl Plugin for PodTopologySpread {
    const NAME: &'static str = "PodTopologySpread";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::AssignedPod, Actions::ADD.or(Actions::DELETE).or(Actions::UPDATE_POD_LABEL)),
        ClusterEvent::new(EventResource::UnscheduledPod, Actions::UPDATE_POD_LABEL.or(Actions::UPDATE_POD_TOLERATION)),
        ClusterEvent::new(
            EventResource::Node,
            Actions::ADD.or(Actions::DELETE).or(Actions::UPDATE_NODE_LABEL).or(Actions::UPDATE_NODE_TAINT),
        ),
    ];

    /// Counts change with pods that a constraint selects, domains with nodes that have its key.
    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        let constraints = self.constraints(pod, DO_NOT_SCHEDULE);
        match change {
            Change::AssignedPod { old, new } => {
                let counts = |other: &&PodInfo| {
                    other.namespace() == pod.namespace() && constraints.iter().any(|own| own.selects(other.labels()))
                };
                Hint::queue_if(old.iter().chain(new).any(counts))
            }
            Change::Node { old, new } => {
                let has_keys = |node: &&Node| {
                    let labels = labels_of(node.metadata.labels.as_ref());
                    constraints.iter().all(|own| labels.contains_key(&own.topology_key))
                };
                Hint::queue_if(old.iter().chain(new).any(has_keys))
            }
            _ => Hint::Queue,
        }
    }
}
