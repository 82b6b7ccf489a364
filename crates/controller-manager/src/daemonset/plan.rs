//! Which daemon pods to create and delete, and what to say about those that are there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetStatus},
        core::v1::{Node, Pod, PodSpec, Toleration},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    deployment::limits::scaled,
    node_fit::{is_wanted, taints, tolerates_all},
    pod::{Availability, availability, is_leaving, is_ready, node_name, phase},
};

pub(super) const HASH_LABEL: &str = "controller-revision-hash";
pub(super) const GENERATION_LABEL: &str = "pod-template-generation";
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Whether a node gets a daemon pod, and whether it keeps the one that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) runs: bool,
    pub(super) keeps: bool,
}

/// `spec` is that of the pods, with the tolerations that every daemon pod has.
pub(super) fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let names_other = spec.node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name);
    if names_other || !is_wanted(spec, node) {
        return Fit { runs: false, keeps: false };
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if tolerates_all(tolerations, taints(node), &["NoSchedule", "NoExecute"]) {
        return Fit { runs: true, keeps: true };
    }
    Fit { runs: false, keeps: tolerates_all(tolerations, taints(node), &["NoExecute"]) }
}

/// The tolerations that daemon pods have besides their own: they are there before a node is ready and stay when it is not.
pub(super) fn add_tolerations(spec: &mut PodSpec) {
    const ALWAYS: [(&str, &str); 6] = [
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    let on_host = spec.host_network == Some(true);
    let network = on_host.then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in ALWAYS.into_iter().chain(network) {
        let wanted = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        match tolerations
            .iter_mut()
            .find(|t| t.key == wanted.key && t.effect == wanted.effect && t.operator == wanted.operator)
        {
            Some(known) => *known = wanted,
            None => tolerations.push(wanted),
        }
    }
}

/// The node that a pod is on or, before it is bound, is meant for.
pub(super) fn target_node(pod: &Pod) -> Option<&str> {
    let bound = node_name(pod);
    if !bound.is_empty() {
        return Some(bound);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let names: Vec<_> = fields
        .filter(|field| field.key == "metadata.name" && field.operator == "In")
        .filter_map(|field| field.values.as_deref())
        .collect();
    match names.as_slice() {
        [[name]] => Some(name),
        _ => None,
    }
}

pub(super) type PodsByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// Daemon pods by node, the oldest of a node first.
pub(super) fn by_node(pods: &[Arc<Pod>]) -> PodsByNode {
    let mut by_node = PodsByNode::new();
    for pod in pods {
        if let Some(node) = target_node(pod) {
            by_node.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }
    for pods in by_node.values_mut() {
        pods.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (node_name(pod).is_empty(), created, pod.metadata.name.clone())
        });
    }
    by_node
}

/// The wanted template, told apart by revision hash, or by generation on pods of before revisions.
pub(super) struct Version<'a> {
    pub(super) hash: &'a str,
    pub(super) generation: Option<String>,
}

impl<'a> Version<'a> {
    pub(super) fn of(set: &DaemonSet, hash: &'a str) -> Self {
        let annotation = set.metadata.annotations.as_ref().and_then(|all| all.get(TEMPLATE_GENERATION));
        Self { hash, generation: annotation.cloned() }
    }

    pub(super) fn has(&self, pod: &Pod) -> bool {
        let label = |key| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        label(HASH_LABEL).is_some_and(|hash| hash == self.hash)
            || (self.generation.is_some() && label(GENERATION_LABEL) == self.generation.as_ref())
    }
}

/// How a rolling update may proceed, in nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) surge: usize,
    pub(super) unavailable: usize,
}

pub(super) fn limits(set: &DaemonSet, desired: usize) -> Limits {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let total = i32::try_from(desired).unwrap_or(i32::MAX);
    let number = |value: Option<&IntOrString>, default: i32| {
        let value = value.map_or(default, |value| scaled(value, total, true));
        usize::try_from(value).unwrap_or_default()
    };
    let surge = number(rolling.and_then(|rolling| rolling.max_surge.as_ref()), 0);
    let unavailable = number(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), 1);
    // Neither would mean that nothing ever moves.
    Limits { surge, unavailable: if surge == 0 && unavailable == 0 { 1 } else { unavailable } }
}

pub(super) fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods among those to delete that ended by themselves.
    pub(super) ended: Vec<Arc<Pod>>,
}

/// A node with its fit and its pods.
pub(super) struct OnNode<'a> {
    pub(super) node: &'a str,
    pub(super) fit: Fit,
    pub(super) pods: &'a [Arc<Pod>],
}

/// One pod on each node that gets one, none on the others. While new pods may surge, a node may have an old and a new one.
pub(super) fn plan_placement(
    nodes: &[OnNode<'_>],
    version: &Version<'_>,
    may_surge: bool,
    min_ready: Duration,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    for on in nodes {
        if !on.fit.keeps {
            plan.delete.extend(on.pods.iter().filter(|pod| !is_leaving(pod)).cloned());
            continue;
        }
        if on.pods.is_empty() {
            if on.fit.runs {
                plan.create.push(on.node.to_owned());
            }
            continue;
        }
        let mut running = Vec::new();
        for pod in on.pods.iter().filter(|pod| !is_leaving(pod)) {
            if matches!(phase(pod), "Failed" | "Succeeded") {
                plan.ended.push(pod.clone());
                plan.delete.push(pod.clone());
            } else {
                running.push(pod);
            }
        }
        if !may_surge {
            plan.delete.extend(running.into_iter().skip(1).cloned());
            continue;
        }
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| version.has(pod));
        // The new one takes over once it is available.
        let done = new.first().is_some_and(|pod| availability(pod, min_ready, now) == Availability::Available);
        let keep_old = usize::from(!done);
        plan.delete.extend(old.into_iter().skip(keep_old).cloned());
        plan.delete.extend(new.into_iter().skip(1).cloned());
    }
    plan
}

/// The next steps of a rolling update over nodes that have their pod.
pub(super) fn plan_rolling(
    nodes: &[OnNode<'_>],
    version: &Version<'_>,
    limits: Limits,
    min_ready: Duration,
    now: Timestamp,
) -> Plan {
    let is_available = |pod: &Pod| availability(pod, min_ready, now) == Availability::Available;
    let mut plan = Plan::default();
    let mut candidates: Vec<(&str, &Arc<Pod>)> = Vec::new();
    let (mut unavailable, mut surging) = (0, 0);
    for on in nodes.iter().filter(|on| on.fit.keeps) {
        let running: Vec<_> =
            on.pods.iter().filter(|pod| !is_leaving(pod) && !matches!(phase(pod), "Failed" | "Succeeded")).collect();
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| version.has(pod));
        match (old.as_slice(), new.as_slice()) {
            ([old], []) if limits.surge == 0 => {
                if is_available(old) {
                    candidates.push((on.node, old));
                } else {
                    // It does not work anyway.
                    plan.delete.push(Arc::clone(old));
                }
            }
            ([old], []) => {
                // A pod on its way out still has its place.
                let leaving = on.pods.iter().any(|pod| is_leaving(pod) && version.has(pod));
                match (is_available(old), leaving) {
                    (_, true) => surging += 1,
                    (true, false) => candidates.push((on.node, old)),
                    (false, false) => plan.create.push(on.node.to_owned()),
                }
            }
            ([old], [new]) if limits.surge > 0 => {
                if is_available(new) {
                    plan.delete.push(Arc::clone(old));
                } else {
                    surging += 1;
                }
            }
            ([], [new]) if is_available(new) => {}
            _ => unavailable += 1,
        }
    }
    let (room, used) = if limits.surge == 0 { (limits.unavailable, unavailable) } else { (limits.surge, surging) };
    for (node, old) in candidates.into_iter().take(room.saturating_sub(used)) {
        if limits.surge == 0 {
            plan.delete.push(old.clone());
        } else {
            plan.create.push(node.to_owned());
        }
    }
    plan
}

pub(super) fn status(
    set: &DaemonSet,
    nodes: &[OnNode<'_>],
    version: &Version<'_>,
    min_ready: Duration,
    now: Timestamp,
) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: set.status.as_ref().and_then(|status| status.collision_count),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for on in nodes {
        if !on.fit.runs {
            status.number_misscheduled += i32::from(!on.pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        // Of several, as in a surge, the oldest stands for the node.
        let Some(pod) = on.pods.first() else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(is_ready(pod));
        available += i32::from(availability(pod, min_ready, now) == Availability::Available);
        updated += i32::from(version.has(pod));
    }
    status.updated_number_scheduled = Some(updated);
    status.number_available = Some(available);
    status.number_unavailable = Some(status.desired_number_scheduled - available);
    status
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PodCondition, PodStatus, Taint},
        apimachinery::pkg::apis::meta::v1::Time,
    };
    use kube::core::ObjectMeta;

    use super::*;

    /// `name hash [ready] [leaving] [Failed]`
    fn pod(words: &str) -> Arc<Pod> {
        let mut parts = words.split(' ');
        let (name, hash) = (parts.next().unwrap(), parts.next().unwrap());
        let ready = PodCondition {
            type_: "Ready".into(),
            status: if words.contains("ready") { "True" } else { "False" }.into(),
            ..PodCondition::default()
        };
        Arc::new(Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                labels: Some([(HASH_LABEL.to_owned(), hash.to_owned())].into()),
                deletion_timestamp: words.contains("leaving").then_some(Time(Timestamp::UNIX_EPOCH)),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec { node_name: Some("n".into()), ..PodSpec::default() }),
            status: Some(PodStatus {
                phase: Some(if words.contains("Failed") { "Failed" } else { "Running" }.into()),
                conditions: Some(vec![ready]),
                ..PodStatus::default()
            }),
        })
    }

    const RUNS: Fit = Fit { runs: true, keeps: true };

    fn show(plan: &Plan) -> String {
        let names: Vec<_> = plan.delete.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        format!("+{} -{}", plan.create.join(","), names.join(","))
    }

    /// Each node is `name fit: pod; pod`.
    fn with<T>(nodes: &[(&str, Fit, &[&str])], run: impl FnOnce(&[OnNode<'_>]) -> T) -> T {
        let pods: Vec<Vec<_>> =
            nodes.iter().map(|(_, _, pods)| pods.iter().map(|words| pod(words)).collect()).collect();
        let nodes: Vec<_> =
            nodes.iter().zip(&pods).map(|((node, fit, _), pods)| OnNode { node, fit: *fit, pods }).collect();
        run(&nodes)
    }

    const V2: Version<'_> = Version { hash: "v2", generation: None };

    #[test]
    fn one_pod_on_each_node_that_gets_one() {
        let off = Fit { runs: false, keeps: false };
        let keeps = Fit { runs: false, keeps: true };
        let nodes: [(&str, Fit, &[&str]); 6] = [
            ("a", RUNS, &[]),
            ("b", RUNS, &["b1 v1 ready", "b2 v2"]),
            ("c", off, &["c1 v2 ready"]),
            ("d", keeps, &["d1 v2"]),
            ("e", keeps, &[]),
            ("f", RUNS, &["f1 v2 Failed"]),
        ];
        let plan =
            |surge| with(&nodes, |on| show(&plan_placement(on, &V2, surge, Duration::ZERO, Timestamp::UNIX_EPOCH)));
        assert_eq!(plan(false), "+a -b2,c1,f1");
        assert_eq!(plan(true), "+a -c1,f1");
    }

    #[track_caller]
    fn check_rolling(nodes: &[(&str, Fit, &[&str])], surge: usize, unavailable: usize, want: &str) {
        let limits = Limits { surge, unavailable };
        let plan = with(nodes, |on| show(&plan_rolling(on, &V2, limits, Duration::ZERO, Timestamp::UNIX_EPOCH)));
        assert_eq!(plan, want);
    }

    #[test]
    fn old_pods_go_as_far_as_availability_allows() {
        let nodes: [(&str, Fit, &[&str]); 4] = [
            ("a", RUNS, &["a1 v1 ready"]),
            ("b", RUNS, &["b1 v1 ready"]),
            ("c", RUNS, &["c1 v1"]),
            ("d", RUNS, &["d1 v2"]),
        ];
        check_rolling(&nodes, 0, 1, "+ -c1");
        check_rolling(&nodes, 0, 2, "+ -c1,a1");
        check_rolling(&nodes[..2], 0, 1, "+ -a1");
        check_rolling(&[("a", RUNS, &["a1 v1 ready leaving"]), ("b", RUNS, &["b1 v1 ready"])], 0, 1, "+ -");
    }

    #[test]
    fn new_pods_surge_and_replace_old_ones_when_available() {
        let nodes: [(&str, Fit, &[&str]); 4] = [
            ("a", RUNS, &["a1 v1 ready"]),
            ("b", RUNS, &["b1 v1 ready", "b2 v2"]),
            ("c", RUNS, &["c1 v1 ready", "c2 v2 ready"]),
            ("d", RUNS, &["d1 v1"]),
        ];
        check_rolling(&nodes, 1, 0, "+d -c1");
        check_rolling(&nodes, 2, 0, "+d,a -c1");
    }

    #[test]
    fn taints_keep_new_pods_away_and_evict_only_where_they_say_so() {
        let node = |effect: &str| Node {
            spec: Some(k8s_openapi::api::core::v1::NodeSpec {
                taints: Some(vec![Taint { key: "x".into(), effect: effect.into(), ..Taint::default() }]),
                ..Default::default()
            }),
            ..Node::default()
        };
        let mut spec = PodSpec::default();
        add_tolerations(&mut spec);
        assert_eq!(spec.tolerations.as_ref().map(Vec::len), Some(6));
        assert_eq!(fit(&spec, &node("NoSchedule")), Fit { runs: false, keeps: true });
        assert_eq!(fit(&spec, &node("NoExecute")), Fit { runs: false, keeps: false });
        assert_eq!(fit(&spec, &node("PreferNoSchedule")), RUNS);
        spec.node_name = Some("other".into());
        assert_eq!(fit(&spec, &Node::default()), Fit { runs: false, keeps: false });
    }

    #[test]
    fn the_status_counts_nodes() {
        let nodes: [(&str, Fit, &[&str]); 3] = [
            ("a", RUNS, &["a1 v2 ready"]),
            ("b", RUNS, &[]),
            ("c", Fit { runs: false, keeps: true }, &["c1 v1 ready"]),
        ];
        let status = with(&nodes, |on| status(&DaemonSet::default(), on, &V2, Duration::ZERO, Timestamp::UNIX_EPOCH));
        let numbers = [
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_misscheduled,
            status.number_ready,
            status.updated_number_scheduled.unwrap(),
            status.number_unavailable.unwrap(),
        ];
        assert_eq!(numbers, [2, 1, 1, 1, 1, 1]);
    }
}
