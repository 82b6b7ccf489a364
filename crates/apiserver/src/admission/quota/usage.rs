//! What an object uses of a quota.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::quantity::{Format, Quantity};

use crate::admission::extended_resource_toleration::is_extended;
use crate::admission::persistent_volume_claim_resize::class_of;
use crate::admission::pod::{Amounts, Of, amounts, pod_amounts};

/// Resources that a container must say before a quota can count them.
const MUST_BE_SAID: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// Core resources that are also counted without `count/`.
const COUNTED_BY_NAME: &[&str] = &[
    "pods",
    "services",
    "persistentvolumeclaims",
    "configmaps",
    "secrets",
    "resourcequotas",
    "replicationcontrollers",
];
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
const DEVICE_SUFFIX: &str = ".deviceclass.resource.k8s.io/devices";

/// How the objects of a resource are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evaluator {
    Pods,
    Services,
    Claims,
    ResourceClaims,
    /// One object is one.
    Objects,
}

impl Evaluator {
    pub(super) fn of(gvr: &Gvr) -> Self {
        match (gvr.group.as_str(), gvr.resource.as_str()) {
            ("", "pods") => Evaluator::Pods,
            ("", "services") => Evaluator::Services,
            ("", "persistentvolumeclaims") => Evaluator::Claims,
            ("resource.k8s.io", "resourceclaims") => Evaluator::ResourceClaims,
            _ => Evaluator::Objects,
        }
    }

    /// An update can change what an object uses.
    pub(super) fn counts_updates(self) -> bool {
        matches!(self, Evaluator::Services | Evaluator::Claims | Evaluator::ResourceClaims)
    }

    pub(super) fn usage(self, gvr: &Gvr, object: &Value) -> Amounts {
        let mut usage = count_of(gvr, 1);
        match self {
            Evaluator::Pods => pod_usage(object, &mut usage),
            Evaluator::Services => service_usage(object, &mut usage),
            Evaluator::Claims => claim_usage(object, &mut usage),
            Evaluator::ResourceClaims => device_usage(object, &mut usage),
            Evaluator::Objects => {}
        }
        usage
    }

    /// Does this evaluator count a resource that a quota names?
    pub(super) fn counts(self, gvr: &Gvr, name: &str) -> bool {
        if count_of(gvr, 1).contains_key(name) {
            return true;
        }
        match self {
            Evaluator::Pods => {
                let base = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
                let is_native = matches!(base, "cpu" | "memory" | "ephemeral-storage");
                let is_huge = base.starts_with("hugepages-") && !name.starts_with("limits.");
                is_native || is_huge || (name.starts_with("requests.") && is_extended(base))
            }
            Evaluator::Services => matches!(name, "services.nodeports" | "services.loadbalancers"),
            Evaluator::Claims => name == "requests.storage" || name.contains(CLASS_SUFFIX),
            Evaluator::ResourceClaims => name.ends_with(DEVICE_SUFFIX),
            Evaluator::Objects => false,
        }
    }

    /// What the object would have to say to be counted.
    ///
    /// # Errors
    /// In upstream's words.
    pub(super) fn check_constraints(self, object: &Value, required: &[&str]) -> Result<(), String> {
        if self != Evaluator::Pods {
            return Ok(());
        }
        let required: BTreeSet<&str> = required.iter().copied().filter(|r| MUST_BE_SAID.contains(r)).collect();
        let spec = &object["spec"];
        let of_pod = said(&spec["resources"]);
        let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for container in ["containers", "initContainers"].into_iter().flat_map(|list| spec[list].items()) {
            let own = said(&container["resources"]);
            for resource in required.iter().filter(|r| !own.contains_key(**r) && !of_pod.contains_key(**r)) {
                missing.entry(*resource).or_default().insert(container.str_at(&["name"]));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let told = missing.iter().map(|(resource, names)| {
            format!("{resource} for: {}", names.iter().copied().collect::<Vec<_>>().join(","))
        });
        Err(format!("must specify {}", told.collect::<Vec<_>>().join("; ")))
    }
}

fn one(count: i64) -> Quantity {
    Quantity::new(count, Format::DecimalSi)
}

/// `count/deployments.apps`, and the plain name of what has one.
fn count_of(gvr: &Gvr, count: i64) -> Amounts {
    let mut usage = Amounts::from([(format!("count/{}", gvr.group_resource()), one(count))]);
    if gvr.group.is_empty() && COUNTED_BY_NAME.contains(&gvr.resource.as_str()) {
        usage.insert(gvr.resource.to_string(), one(count));
    }
    usage
}

/// Requests and limits under the names that quotas give them.
fn quota_names(requests: &Amounts, limits: &Amounts, usage: &mut Amounts) {
    for (name, quantity) in requests {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                usage.insert(name.clone(), *quantity);
                usage.insert(format!("requests.{name}"), *quantity);
            }
            huge if huge.starts_with("hugepages-") => {
                usage.insert(name.clone(), *quantity);
                usage.insert(format!("requests.{name}"), *quantity);
            }
            other if is_extended(other) => {
                usage.insert(format!("requests.{name}"), *quantity);
            }
            _ => {}
        }
    }
    for (name, quantity) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), *quantity);
        }
    }
}

fn said(resources: &Value) -> Amounts {
    let mut usage = Amounts::new();
    quota_names(&amounts(&resources["requests"]), &amounts(&resources["limits"]), &mut usage);
    usage
}

fn pod_usage(pod: &Value, usage: &mut Amounts) {
    // A pod that is over occupies nothing, but the object is there.
    if matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed") {
        usage.remove("pods");
        return;
    }
    quota_names(&pod_amounts(pod, Of::Requests), &pod_amounts(pod, Of::Limits), usage);
}

fn service_usage(service: &Value, usage: &mut Amounts) {
    let spec = &service["spec"];
    let ports = spec["ports"].items();
    let len = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (balancers, node_ports) = match spec.str_at(&["type"]) {
        "NodePort" => (0, len(ports.len())),
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"].as_bool() == Some(false) => {
            (1, len(ports.iter().filter(|p| p["nodePort"].as_i64().unwrap_or(0) != 0).count()))
        }
        "LoadBalancer" => (1, len(ports.len())),
        _ => (0, 0),
    };
    usage.insert("services.loadbalancers".to_owned(), one(balancers));
    usage.insert("services.nodeports".to_owned(), one(node_ports));
}

fn claim_usage(claim: &Value, usage: &mut Amounts) {
    let asked = amounts(&claim["spec"]["resources"]["requests"]).get("storage").copied();
    let allocated = amounts(&claim["status"]["allocatedResources"]).get("storage").copied();
    let class = class_of(claim);
    if !class.is_empty() {
        usage.insert(format!("{class}{CLASS_SUFFIX}persistentvolumeclaims"), one(1));
    }
    if let Some(storage) = asked.max(allocated) {
        usage.insert("requests.storage".to_owned(), storage);
        if !class.is_empty() {
            usage.insert(format!("{class}{CLASS_SUFFIX}requests.storage"), storage);
        }
    }
}

/// Devices by class; a request for all there are counts as many as a claim may have.
fn device_usage(claim: &Value, usage: &mut Amounts) {
    const MOST: i64 = 32;
    for request in claim.at(&["spec", "devices", "requests"]).items() {
        let exactly = if request["exactly"].is_null() { request } else { &request["exactly"] };
        let choices: Vec<&Value> = if request["firstAvailable"].items().is_empty() {
            vec![exactly]
        } else {
            request["firstAvailable"].items().iter().collect()
        };
        for choice in choices {
            let class = choice.str_at(&["deviceClassName"]);
            if class.is_empty() {
                continue;
            }
            let count =
                if choice.str_at(&["allocationMode"]) == "All" { MOST } else { choice["count"].as_i64().unwrap_or(1) };
            let entry = usage.entry(format!("{class}{DEVICE_SUFFIX}")).or_insert(one(0));
            *entry = entry.saturating_add(one(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::pod::amounts_value;

    #[track_caller]
    fn check(resource: &str, object: &str, want: &str) {
        let gvr = Gvr::new("", "v1", resource);
        let object: Value = serde_json::from_str(object).unwrap();
        let usage = Evaluator::of(&gvr).usage(&gvr, &object);
        assert_eq!(serde_json::to_string(&amounts_value(&usage)).unwrap(), want);
    }

    #[test]
    fn objects_use_what_they_ask_for() {
        check(
            "pods",
            r#"{"spec":{"containers":[{"resources":{"requests":{"cpu":"1","x.io/gpu":"2"},"limits":{"memory":"1Gi"}}}]}}"#,
            r#"{"count/pods":"1","cpu":"1","limits.memory":"1Gi","pods":"1","requests.cpu":"1","requests.x.io/gpu":"2"}"#,
        );
        check("pods", r#"{"status":{"phase":"Failed"}}"#, r#"{"count/pods":"1"}"#);
        check(
            "services",
            r#"{"spec":{"type":"LoadBalancer","ports":[{"port":1},{"port":2}]}}"#,
            r#"{"count/services":"1","services":"1","services.loadbalancers":"1","services.nodeports":"2"}"#,
        );
        check(
            "persistentvolumeclaims",
            r#"{"spec":{"storageClassName":"fast","resources":{"requests":{"storage":"1Gi"}}}}"#,
            r#"{"count/persistentvolumeclaims":"1","fast.storageclass.storage.k8s.io/persistentvolumeclaims":"1","fast.storageclass.storage.k8s.io/requests.storage":"1Gi","persistentvolumeclaims":"1","requests.storage":"1Gi"}"#,
        );
        check("configmaps", "{}", r#"{"configmaps":"1","count/configmaps":"1"}"#);
        check("endpoints", "{}", r#"{"count/endpoints":"1"}"#);
    }

    #[test]
    fn pods_must_say_what_is_counted() {
        let pod: Value = serde_json::from_str(
            r#"{"spec":{"containers":[{"name":"a"},{"name":"b","resources":{"requests":{"cpu":"1"}}}]}}"#,
        )
        .unwrap();
        let checked = Evaluator::Pods.check_constraints(&pod, &["requests.cpu", "limits.memory", "pods"]);
        assert_eq!(checked, Err("must specify limits.memory for: a,b; requests.cpu for: a".to_owned()));
    }
}
