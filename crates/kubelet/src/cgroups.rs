//! Quality of service, cgroup names and the numbers that the kernel's controllers take. Pure; the directories themselves are
//! made by [`crate::pod::worker`] through `libcgroups`' layout of the host.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::static_pods;

/// A CFS period of 100 ms, in microseconds.
const PERIOD: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA: i64 = 1000;

/// What a container may use, in the units of the CRI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub cpu_shares: i64,
    pub cpu_quota: i64,
    pub cpu_period: i64,
    /// 0: no limit.
    pub memory_bytes: i64,
}

/// A quantity in thousandths of its unit, rounded up. `None` for what is no quantity.
pub(crate) fn milli(q: &Quantity) -> Option<i64> {
    let (number, factor) = split(&q.0)?;
    let value = number.parse::<f64>().ok()? * factor * 1000.0;
    #[expect(clippy::cast_possible_truncation, reason = "checked to be in range")]
    (value.is_finite() && value.abs() < 9.0e18).then_some(value.ceil() as i64)
}

/// A quantity in whole units, rounded up.
pub(crate) fn whole(q: &Quantity) -> Option<i64> {
    let (number, factor) = split(&q.0)?;
    let value = number.parse::<f64>().ok()? * factor;
    #[expect(clippy::cast_possible_truncation, reason = "checked to be in range")]
    (value.is_finite() && value.abs() < 9.0e18).then_some(value.ceil() as i64)
}

fn split(text: &str) -> Option<(&str, f64)> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some((number, factor))
}

/// Bytes as quantities are written that are powers of two: `2Mi`.
pub(crate) fn show_binary(bytes: u64) -> String {
    let mut size = bytes;
    for suffix in ["", "Ki", "Mi", "Gi", "Ti"] {
        if size == 0 || !size.is_multiple_of(1024) {
            return format!("{size}{suffix}");
        }
        size /= 1024;
    }
    format!("{size}Pi")
}

fn amount<'a>(list: Option<&'a BTreeMap<String, Quantity>>, name: &str) -> Option<&'a Quantity> {
    list?.get(name)
}

pub(crate) fn limits_of(resources: Option<&ResourceRequirements>, node_memory: i64) -> (Limits, i64) {
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let cpu_limit = amount(limits, "cpu").and_then(milli).unwrap_or_default();
    let cpu_request = amount(requests, "cpu").and_then(milli).unwrap_or(cpu_limit);
    let memory = amount(limits, "memory").and_then(whole).unwrap_or_default();
    let memory_request = amount(requests, "memory").and_then(whole).unwrap_or(memory);
    let quota = if cpu_limit == 0 { 0 } else { (cpu_limit * PERIOD / 1000).max(MIN_QUOTA) };
    let shares = if cpu_request == 0 { MIN_SHARES } else { (cpu_request * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) };
    let out = Limits { cpu_shares: shares, cpu_quota: quota, cpu_period: PERIOD, memory_bytes: memory };
    (out, oom_of_burstable(memory_request, node_memory))
}

/// Upstream's ranking of burstable containers: the more of the node they asked for, the later they are killed.
fn oom_of_burstable(memory_request: i64, node_memory: i64) -> i64 {
    if node_memory <= 0 { 999 } else { (1000 - 1000 * memory_request / node_memory).clamp(3, 999) }
}

/// Pods that a cluster could not do without, and those that a file brings back at once.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    static_pods::is_static(pod)
        || static_pods::is_mirror(pod)
        || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= 2_000_000_000)
}

/// Pods that their node itself could not do without.
fn is_node_critical(pod: &Pod) -> bool {
    let class = pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref());
    is_critical(pod) && class == Some("system-node-critical")
}

/// How soon the kernel kills a container of this pod when memory runs out.
pub(crate) fn oom_score_adj(pod: &Pod, burstable: i64) -> i64 {
    match (is_node_critical(pod), qos_class(pod)) {
        (true, _) | (_, "Guaranteed") => -997,
        (_, "BestEffort") => 1000,
        _ => burstable,
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the requests and limits of all containers.
pub(crate) fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    // What the pod says of itself as a whole stands above its containers (KEP-2837).
    let of_pod = Container { resources: spec.resources.clone(), ..Container::default() };
    let says = |list: &Option<BTreeMap<String, Quantity>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let all: Vec<&Container> = match &spec.resources {
        Some(r) if says(&r.requests) || says(&r.limits) => vec![&of_pod],
        _ => spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect(),
    };
    let set = |c: &Container, limits: bool, name: &str| {
        let r = c.resources.as_ref()?;
        let list = if limits { &r.limits } else { &r.requests };
        list.as_ref()?.get(name).and_then(milli).filter(|v| *v > 0)
    };
    let anything = all.iter().any(|c| ["cpu", "memory"].iter().any(|n| set(c, true, n).or(set(c, false, n)).is_some()));
    if !anything {
        return "BestEffort";
    }
    let guaranteed = all.iter().all(|c| {
        ["cpu", "memory"].iter().all(|n| match (set(c, true, n), set(c, false, n)) {
            (Some(limit), Some(request)) => limit == request,
            (Some(_), None) => true,
            _ => false,
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// The cgroup of a pod below the kubelet's root, as the cgroupfs driver names it.
pub(crate) fn pod_cgroup(pod: &Pod, root: &str) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let root = root.trim_end_matches('/');
    match qos_class(pod) {
        "Guaranteed" => format!("{root}/kubepods/pod{uid}"),
        "Burstable" => format!("{root}/kubepods/burstable/pod{uid}"),
        _ => format!("{root}/kubepods/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "u1"}, "spec": {"containers": [{"name": "a", "resources": resources}]}}))
        .unwrap()
    }

    #[test]
    fn quantities_become_numbers() {
        assert_eq!(milli(&q("250m")), Some(250));
        assert_eq!(milli(&q("1.5")), Some(1500));
        assert_eq!(whole(&q("64Mi")), Some(64 << 20));
        assert_eq!(whole(&q("1e3")), Some(1000));
        assert_eq!(whole(&q("1500m")), Some(2));
        assert_eq!(whole(&q("x")), None);
        assert_eq!([2 << 20, 1 << 30, 65536, 1000].map(show_binary), ["2Mi", "1Gi", "64Ki", "1000"]);
    }

    #[test]
    fn what_the_node_needs_is_killed_last() {
        let check = |spec: serde_json::Value, want: i64| {
            let mut all = serde_json::json!({"containers": [{"name": "a"}]});
            all.as_object_mut().unwrap().extend(spec.as_object().cloned().unwrap());
            let pod = serde_json::from_value(serde_json::json!({"spec": all})).unwrap();
            assert_eq!(oom_score_adj(&pod, 500), want, "{spec}");
        };
        let class = |name: &str, priority: i64| serde_json::json!({"priorityClassName": name, "priority": priority});
        check(serde_json::json!({}), 1000);
        check(class("system-node-critical", 2_000_001_000), -997);
        check(class("system-cluster-critical", 2_000_000_000), 1000);
        check(class("mine", 1000), 1000);
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let class = |r| qos_class(&pod(r));
        assert_eq!(class(serde_json::json!({})), "BestEffort");
        assert_eq!(class(serde_json::json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        let half = serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(class(half), "Burstable");
        assert_eq!(pod_cgroup(&pod(serde_json::json!({})), "/"), "/kubepods/besteffort/podu1");
    }

    #[test]
    fn limits_are_in_the_kernels_units() {
        let resources: ResourceRequirements = serde_json::from_value(
            serde_json::json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}),
        )
        .unwrap();
        let (limits, oom) = limits_of(Some(&resources), 1 << 30);
        assert_eq!(limits, Limits { cpu_shares: 256, cpu_quota: 50_000, cpu_period: 100_000, memory_bytes: 64 << 20 });
        assert_eq!(oom, 1000 - 62);
        assert_eq!(limits_of(None, 1 << 30).0.cpu_shares, 2);
    }
}
