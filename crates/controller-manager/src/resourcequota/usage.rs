//! What objects count for in a quota, and whether a quota's scopes take them in.

use apimachinery::quantity::{Format, Quantity};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{
        PersistentVolumeClaim, Pod, PodAffinityTerm, ResourceQuotaSpec, ScopedResourceSelectorRequirement, Service,
    },
    resource::v1::ResourceClaim,
};

use crate::pod_resources::{Amounts, Side, add, is_best_effort, pod_amounts, quantity};

pub(super) fn count(number: i64) -> Quantity {
    Quantity::new(number, Format::DecimalSi)
}

/// Native resources that a quota names without a prefix.
const PLAIN: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// A pod that ended, or should have by now, holds nothing but its own object.
fn is_over(pod: &Pod, now: Timestamp) -> bool {
    if crate::pod::is_finished(pod) {
        return true;
    }
    let grace = pod.metadata.deletion_grace_period_seconds.map(SignedDuration::from_secs);
    let deleted = pod.metadata.deletion_timestamp.as_ref();
    deleted.zip(grace).is_some_and(|(at, grace)| at.0.checked_add(grace).is_ok_and(|end| end < now))
}

pub(super) fn of_pod(pod: &Pod, now: Timestamp) -> Amounts {
    let mut usage = Amounts::from([("count/pods".to_owned(), count(1))]);
    if is_over(pod, now) {
        return usage;
    }
    usage.insert("pods".to_owned(), count(1));
    for (name, amount) in pod_amounts(pod, Side::Requests) {
        usage.insert(format!("requests.{name}"), amount);
        if PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-") {
            usage.insert(name, amount);
        }
    }
    for (name, amount) in pod_amounts(pod, Side::Limits) {
        if PLAIN.contains(&name.as_str()) {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
    usage
}

pub(super) fn of_service(service: &Service) -> Amounts {
    let mut usage = Amounts::from([("count/services".to_owned(), count(1)), ("services".to_owned(), count(1))]);
    let spec = service.spec.clone().unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    match spec.type_.as_deref() {
        Some("NodePort") => {
            usage.insert("services.nodeports".to_owned(), count(i64::try_from(ports.len()).unwrap_or(i64::MAX)));
        }
        Some("LoadBalancer") => {
            usage.insert("services.loadbalancers".to_owned(), count(1));
            let opened = if spec.allocate_load_balancer_node_ports == Some(false) {
                ports.iter().filter(|port| port.node_port.is_some_and(|number| number > 0)).count()
            } else {
                ports.len()
            };
            usage.insert("services.nodeports".to_owned(), count(i64::try_from(opened).unwrap_or(i64::MAX)));
        }
        _ => {}
    }
    usage
}

pub(super) fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let spec = claim.spec.clone().unwrap_or_default();
    let mut usage = Amounts::from([
        ("count/persistentvolumeclaims".to_owned(), count(1)),
        ("persistentvolumeclaims".to_owned(), count(1)),
    ]);
    let old = claim.metadata.annotations.as_ref().and_then(|all| all.get("volume.beta.kubernetes.io/storage-class"));
    let class = old.cloned().or(spec.storage_class_name).filter(|class| !class.is_empty());
    let prefix = class.map(|class| format!("{class}.storageclass.storage.k8s.io"));
    if let Some(prefix) = &prefix {
        usage.insert(format!("{prefix}/persistentvolumeclaims"), count(1));
    }
    let requested = spec.resources.and_then(|resources| resources.requests);
    if let Some(asked) = requested.as_ref().and_then(|requests| requests.get("storage")) {
        let allocated = claim.status.as_ref().and_then(|status| status.allocated_resources.as_ref());
        let allocated = allocated.and_then(|amounts| amounts.get("storage")).map(quantity);
        let storage = quantity(asked).max(allocated.unwrap_or_default());
        usage.insert("requests.storage".to_owned(), storage);
        if let Some(prefix) = &prefix {
            usage.insert(format!("{prefix}/requests.storage"), storage);
        }
    }
    usage
}

pub(super) fn of_resource_claim(claim: &ResourceClaim) -> Amounts {
    let mut usage = Amounts::from([("count/resourceclaims.resource.k8s.io".to_owned(), count(1))]);
    for request in claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten()) {
        // Of alternatives, the worst that may come counts for each class.
        let mut worst = Amounts::new();
        let alternatives = request
            .first_available
            .iter()
            .flatten()
            .map(|sub| (&sub.device_class_name, &sub.allocation_mode, sub.count));
        let exact = request.exactly.iter().map(|one| (&one.device_class_name, &one.allocation_mode, one.count));
        for (class, mode, number) in exact.chain(alternatives) {
            let number = if mode.as_deref() == Some("All") { 32 } else { number.unwrap_or(1) };
            let name = format!("{class}.deviceclass.resource.k8s.io/devices");
            let known = worst.entry(name).or_default();
            *known = (*known).max(count(number));
        }
        add(&mut usage, &worst);
    }
    usage
}

/// Whether every scope of the quota takes in an object, of which `matches` answers for one scope.
pub(super) fn in_scopes(
    spec: &ResourceQuotaSpec,
    matches: impl Fn(&ScopedResourceSelectorRequirement) -> bool,
) -> bool {
    let plain = |scope: &String| ScopedResourceSelectorRequirement {
        scope_name: scope.clone(),
        operator: "Exists".to_owned(),
        values: None,
    };
    let selected = spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    spec.scopes.iter().flatten().map(plain).chain(selected.cloned()).all(|scope| matches(&scope))
}

pub(super) fn pod_matches(pod: &Pod, scope: &ScopedResourceSelectorRequirement) -> bool {
    let spec = pod.spec.clone().unwrap_or_default();
    match scope.scope_name.as_str() {
        "Terminating" => spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0),
        "NotTerminating" => spec.active_deadline_seconds.is_none_or(|seconds| seconds < 0),
        "BestEffort" => is_best_effort(&spec),
        "NotBestEffort" => !is_best_effort(&spec),
        "PriorityClass" => has_value(scope, spec.priority_class_name.as_deref()),
        "CrossNamespacePodAffinity" => looks_elsewhere(pod),
        _ => false,
    }
}

pub(super) fn claim_matches(claim: &PersistentVolumeClaim, scope: &ScopedResourceSelectorRequirement) -> bool {
    if scope.scope_name != "VolumeAttributesClass" {
        return false;
    }
    let spec = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let target = status.and_then(|status| status.modify_volume_status.as_ref());
    let target = target.and_then(|modify| modify.target_volume_attributes_class_name.as_deref());
    let named: Vec<_> = [spec, current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect();
    match scope.operator.as_str() {
        "Exists" => !named.is_empty(),
        "DoesNotExist" => named.is_empty(),
        _ => named.iter().any(|name| has_value(scope, Some(name))),
    }
}

fn has_value(scope: &ScopedResourceSelectorRequirement, value: Option<&str>) -> bool {
    let value = value.filter(|value| !value.is_empty());
    let listed = |value: &str| scope.values.iter().flatten().any(|known| known == value);
    match scope.operator.as_str() {
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "In" => value.is_some_and(listed),
        "NotIn" => value.is_none_or(|value| !listed(value)),
        _ => false,
    }
}

fn looks_elsewhere(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return false };
    let crosses = |term: &PodAffinityTerm| {
        term.namespace_selector.is_some() || term.namespaces.as_ref().is_some_and(|names| !names.is_empty())
    };
    let near = affinity.pod_affinity.iter().flat_map(|near| {
        let soft = near.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        let hard = near.required_during_scheduling_ignored_during_execution.iter().flatten();
        hard.chain(soft.map(|soft| &soft.pod_affinity_term))
    });
    let far = affinity.pod_anti_affinity.iter().flat_map(|far| {
        let soft = far.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        let hard = far.required_during_scheduling_ignored_during_execution.iter().flatten();
        hard.chain(soft.map(|soft| &soft.pod_affinity_term))
    });
    near.chain(far).any(crosses)
}

/// The resource whose objects a name counts: `count/<resource>.<group>`, or one of the names from before there was that.
pub(super) fn counted_resource(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(counted.split_once('.').unwrap_or((counted, "")));
    }
    ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"].contains(&name).then_some((name, ""))
}

/// Whether claims, pods or services answer for the name, so that nothing else has to be counted.
pub(super) fn is_native(name: &str) -> bool {
    match counted_resource(name) {
        Some((resource, group)) => {
            (group.is_empty() && ["pods", "services", "persistentvolumeclaims"].contains(&resource))
                || (group == "resource.k8s.io" && resource == "resourceclaims")
        }
        None => {
            let is_extended = name.strip_prefix("requests.").is_some_and(|name| name.contains('/'));
            let is_class =
                name.contains(".storageclass.storage.k8s.io/") || name.contains(".deviceclass.resource.k8s.io/");
            is_extended
                || is_class
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
                || NATIVE.contains(&name)
        }
    }
}

const NATIVE: [&str; 16] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "services",
    "services.nodeports",
    "services.loadbalancers",
    "persistentvolumeclaims",
    "requests.storage",
    "storage",
];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn show(amounts: &Amounts) -> String {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check_pod(spec: Value, phase: &str, want: &str) {
        let pod: Pod = serde_json::from_value(json!({ "spec": spec, "status": { "phase": phase } })).unwrap();
        assert_eq!(show(&of_pod(&pod, Timestamp::UNIX_EPOCH)), want);
    }

    #[test]
    fn a_pod_counts_while_it_lives() {
        let resources = json!({ "requests": { "cpu": "100m", "nvidia.com/gpu": "1" }, "limits": { "memory": "1Gi" } });
        let spec = json!({ "containers": [{ "name": "c", "resources": resources }] });
        check_pod(spec.clone(), "Failed", "count/pods=1");
        let want = "count/pods=1 cpu=100m limits.memory=1Gi pods=1 requests.cpu=100m requests.nvidia.com/gpu=1";
        check_pod(spec, "Running", want);
    }

    #[track_caller]
    fn check_scope(pod: Value, scope: Value, want: bool) {
        let pod: Pod = serde_json::from_value(json!({ "spec": pod })).unwrap();
        let spec: ResourceQuotaSpec = serde_json::from_value(scope).unwrap();
        assert_eq!(in_scopes(&spec, |scope| pod_matches(&pod, scope)), want);
    }

    #[test]
    fn scopes_choose_pods() {
        let plain = json!({ "containers": [{ "name": "c" }] });
        check_scope(plain.clone(), json!({}), true);
        check_scope(plain.clone(), json!({ "scopes": ["BestEffort", "NotTerminating"] }), true);
        check_scope(plain.clone(), json!({ "scopes": ["Terminating"] }), false);
        let classes = |operator: &str| {
            json!({ "scopeSelector": { "matchExpressions": [
                { "scopeName": "PriorityClass", "operator": operator, "values": ["high"] }
            ] } })
        };
        let high = json!({ "containers": [], "priorityClassName": "high" });
        check_scope(high.clone(), classes("In"), true);
        check_scope(high, classes("NotIn"), false);
        check_scope(plain.clone(), classes("NotIn"), true);
        let far = json!({ "containers": [], "affinity": { "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "k", "namespaceSelector": {} }]
        } } });
        check_scope(far, json!({ "scopes": ["CrossNamespacePodAffinity"] }), true);
        check_scope(plain, json!({ "scopes": ["CrossNamespacePodAffinity"] }), false);
    }

    #[test]
    fn services_and_claims_count_what_they_take() {
        let service: Service = serde_json::from_value(json!({ "spec": {
            "type": "LoadBalancer", "ports": [{ "port": 1 }, { "port": 2 }]
        } }))
        .unwrap();
        let want = "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2";
        assert_eq!(show(&of_service(&service)), want);
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({ "spec": {
            "storageClassName": "gold", "resources": { "requests": { "storage": "2Gi" } }
        } }))
        .unwrap();
        let want = "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
                    gold.storageclass.storage.k8s.io/requests.storage=2Gi persistentvolumeclaims=1 requests.storage=2Gi";
        assert_eq!(show(&of_claim(&claim)), want);
    }

    #[test]
    fn names_say_what_is_counted() {
        assert_eq!(counted_resource("count/deployments.apps"), Some(("deployments", "apps")));
        assert_eq!(counted_resource("secrets"), Some(("secrets", "")));
        assert_eq!(counted_resource("pods"), None);
        assert!(is_native("requests.nvidia.com/gpu") && is_native("count/pods") && !is_native("count/jobs.batch"));
        let claim: ResourceClaim = serde_json::from_value(json!({ "spec": { "devices": { "requests": [
            { "name": "a", "exactly": { "deviceClassName": "gpu", "count": 2 } },
            { "name": "b", "firstAvailable": [{ "name": "x", "deviceClassName": "gpu" }] }
        ] } } }))
        .unwrap();
        let usage = of_resource_claim(&claim);
        assert_eq!(usage["gpu.deviceclass.resource.k8s.io/devices"].to_string(), "3");
    }
}
