//! Whether this node takes a pod that was bound to it: upstream's predicates, its reasons and its words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::plan;
use super::status::Doom;
use super::sysctls;
use crate::cgroups::is_critical;
use crate::resources::{self, Amounts};

/// Pods that must not run (any more), by uid: rejected at their admission, or evicted later.
#[derive(Default)]
pub(crate) struct Dooms {
    by_uid: Mutex<BTreeMap<String, Doom>>,
    added: Notify,
}

impl Dooms {
    pub(crate) fn of(&self, uid: &str) -> Option<Doom> {
        self.by_uid.lock().get(uid).cloned()
    }

    /// The first reason stays.
    pub(crate) fn add(&self, uid: &str, doom: Doom) {
        self.by_uid.lock().entry(uid.to_owned()).or_insert(doom);
        self.added.notify_one();
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.by_uid.lock().remove(uid);
    }

    /// Returns when one was added since the last call.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub reason: String,
    pub message: String,
}

impl Refusal {
    fn predicate(name: &str, words: &str) -> Self {
        Refusal { reason: name.to_owned(), message: format!("Predicate {name} failed: {words}") }
    }

    pub(crate) fn into_doom(self) -> Doom {
        Doom {
            message: format!("Pod was rejected: {}", self.message),
            reason: self.reason,
            grace: Some(0),
            disruption: false,
        }
    }
}

/// What the node has to say: its object if it is known, and what pods can be given on it.
pub(crate) struct Host<'a> {
    pub node: Option<&'a Node>,
    pub allocatable: &'a Amounts,
    pub max_pods: usize,
    /// Kernel parameters that pods may set although they are not safe for everybody.
    pub unsafe_sysctls: &'a [String],
}

/// `others` are the pods that were admitted and have not ended.
pub(crate) fn refusal(pod: &Pod, host: &Host<'_>, others: &[&Pod], is_static: bool) -> Option<Refusal> {
    let selected = pod.spec.as_ref().and_then(|s| s.node_selector.as_ref()?.get("kubernetes.io/os"));
    if selected.is_some_and(|os| os != "linux") {
        return Some(Refusal {
            reason: "PodOSSelectorNodeLabelDoesNotMatch".to_owned(),
            message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label".to_owned(),
        });
    }
    if pod.spec.as_ref().and_then(|s| s.os.as_ref()).is_some_and(|os| os.name != "linux") {
        return Some(Refusal {
            reason: "PodOSNotSupported".to_owned(),
            message: "Failed to admit pod as the OS field doesn't match node OS".to_owned(),
        });
    }
    if let Some(node) = host.node
        && !knows_its_groups(pod, node)
    {
        return Some(Refusal {
            reason: "SupplementalGroupsPolicyNotSupported".to_owned(),
            message: "SupplementalGroupsPolicy=Strict is not supported in this node".to_owned(),
        });
    }
    if let Some(message) = sysctls::forbidden(pod, host.unsafe_sysctls) {
        return Some(Refusal { reason: "SysctlForbidden".to_owned(), message });
    }
    if others.len() >= host.max_pods {
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {}",
            others.len(),
            host.max_pods
        );
        return Some(Refusal { reason: "OutOfpods".to_owned(), message });
    }
    if let Some(refusal) = lacking(pod, host.allocatable, others) {
        return Some(refusal);
    }
    if let Some(node) = host.node {
        if !selects(pod, node) {
            return Some(Refusal::predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
        }
        if !is_static && !tolerates(pod, node) {
            return Some(Refusal::predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
        }
    }
    let wanted = host_ports(pod);
    if others.iter().flat_map(|o| host_ports(o)).any(|taken| wanted.iter().any(|w| clash(w, &taken))) {
        let words = "node(s) didn't have free ports for the requested pod ports";
        return Some(Refusal::predicate("NodePorts", words));
    }
    None
}

/// A runtime that does not know of the policy would give a pod groups that it must not have.
fn knows_its_groups(pod: &Pod, node: &Node) -> bool {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let is_strict = context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    let features = node.status.as_ref().and_then(|s| s.features.as_ref());
    !is_strict || features.and_then(|f| f.supplemental_groups_policy) == Some(true)
}

/// A node that runs short takes only pods that it could not do without; one that lacks memory alone takes those that ask
/// for some, too.
pub(crate) fn under_pressure(pod: &Pod, pressures: &[&str]) -> Option<Refusal> {
    let critical = is_critical(pod);
    let memory_only = pressures == ["MemoryPressure"];
    if pressures.is_empty() || critical || (memory_only && crate::cgroups::qos_class(pod) != "BestEffort") {
        return None;
    }
    let message = format!("The node had condition: [{}]. ", pressures.join(", "));
    Some(Refusal { reason: "Evicted".to_owned(), message })
}

/// The first resource of which the node has not enough left.
pub(crate) fn lacking(pod: &Pod, allocatable: &Amounts, others: &[&Pod]) -> Option<Refusal> {
    let used: Vec<Amounts> = others.iter().map(|o| resources::requests(o)).collect();
    for (name, wanted) in resources::requests(pod) {
        // What the Node does not count cannot run short on it.
        let is_uncounted = resources::is_extended(&name) && !allocatable.contains_key(&name);
        if wanted <= 0 || is_uncounted {
            continue;
        }
        let capacity = allocatable.get(&name).copied().unwrap_or_default();
        let taken: i64 = used.iter().filter_map(|u| u.get(&name)).sum();
        if wanted > capacity - taken {
            // cpu is counted in thousandths, everything else in whole units.
            let shown = |milli: i64| if name == "cpu" { milli } else { milli / 1000 };
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                shown(wanted),
                shown(taken),
                shown(capacity)
            );
            return Some(Refusal { reason: format!("OutOf{name}"), message });
        }
    }
    None
}

fn selects(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let by_selector = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let required = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    by_selector && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| matches(t, labels, name)))
}

fn matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let (expressions, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    let empty = expressions.is_none_or(<[_]>::is_empty) && fields.is_none_or(<[_]>::is_empty);
    let by_label = |r: &NodeSelectorRequirement| holds(r, labels.get(&r.key).map(String::as_str));
    let by_field = |r: &NodeSelectorRequirement| holds(r, (r.key == "metadata.name").then_some(name));
    !empty && expressions.into_iter().flatten().all(by_label) && fields.into_iter().flatten().all(by_field)
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let compare = |test: fn(i64, i64) -> bool| {
        let number = value.and_then(|v| v.parse().ok());
        number.zip(values.first().and_then(|v| v.parse().ok())).is_some_and(|(a, b)| test(a, b))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|a, b| a > b),
        "Lt" => compare(|a, b| a < b),
        _ => false,
    }
}

/// Only taints that would drive the pod away again matter to the kubelet.
fn tolerates(pod: &Pod, node: &Node) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|t| t.effect == "NoExecute").all(|t| tolerations.iter().any(|o| covers(o, t)))
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    let key = text(&toleration.key);
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            _ => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        }
}

type Port = (String, String, i32);

fn host_ports(pod: &Pod) -> Vec<Port> {
    let sidecars = plan::init_containers(pod).iter().filter(|c| plan::is_sidecar(c));
    let ports = plan::containers(pod).iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let ports = ports.filter(|p| p.host_port.unwrap_or_default() > 0);
    let any = |ip: &Option<String>| ip.clone().filter(|i| !i.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
    let protocol = |p: &Option<String>| p.clone().unwrap_or_else(|| "TCP".to_owned());
    ports.map(|p| (any(&p.host_ip), protocol(&p.protocol), p.host_port.unwrap_or_default())).collect()
}

fn clash(a: &Port, b: &Port) -> bool {
    a.2 == b.2 && a.1 == b.1 && (a.0 == b.0 || a.0 == "0.0.0.0" || b.0 == "0.0.0.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = serde_json::json!([{"name": "c"}]);
        }
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn check(spec: serde_json::Value, others: &[Pod], want: Option<(&str, &str)>) {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}},
            "spec": {"taints": [{"key": "gone", "effect": "NoExecute"}, {"key": "soft", "effect": "NoSchedule"}]}}))
        .unwrap();
        let allocatable = Amounts::from([("cpu".to_owned(), 2000), ("memory".to_owned(), (1 << 30) * 1000)]);
        let host = Host { node: Some(&node), allocatable: &allocatable, max_pods: 3, unsafe_sysctls: &[] };
        let mut spec = spec;
        if spec.get("tolerations").is_none() {
            spec["tolerations"] = serde_json::json!([{"operator": "Exists"}]);
        }
        let got = refusal(&pod(spec), &host, &others.iter().collect::<Vec<_>>(), false);
        let got = got.map(|r| (r.reason, r.message));
        assert_eq!(got, want.map(|(r, m)| (r.to_owned(), m.to_owned())));
    }

    #[test]
    fn a_pod_that_fits_is_taken() {
        check(serde_json::json!({"nodeSelector": {"disk": "ssd"}}), &[], None);
    }

    #[test]
    fn what_the_node_has_not_is_named() {
        let cpu = |n: &str| serde_json::json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": n}}}]});
        let words = "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000";
        check(cpu("1500m"), &[pod(cpu("1"))], Some(("OutOfcpu", words)));
        let words = "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3";
        let none = || pod(serde_json::json!({}));
        check(serde_json::json!({}), &[none(), none(), none()], Some(("OutOfpods", words)));
    }

    #[test]
    fn an_extended_resource_counts_where_the_node_counts_it() {
        let asks =
            pod(serde_json::json!({"containers": [{"name": "c", "resources": {"limits": {"example.com/gpu": "2"}}}]}));
        let check = |count: Option<i64>, want: Option<&str>| {
            let allocatable = count.map(|n| ("example.com/gpu".to_owned(), n * 1000)).into_iter().collect();
            assert_eq!(lacking(&asks, &allocatable, &[]).map(|r| r.reason).as_deref(), want);
        };
        check(None, None);
        check(Some(2), None);
        check(Some(1), Some("OutOfexample.com/gpu"));
    }

    #[test]
    fn under_pressure_only_what_is_critical_is_taken() {
        let check = |annotations: serde_json::Value, spec: serde_json::Value, pressures: &[&str], want: bool| {
            let mut pod = pod(spec.clone());
            pod.metadata.annotations = serde_json::from_value(annotations.clone()).unwrap();
            assert_eq!(under_pressure(&pod, pressures).is_none(), want, "{annotations} {spec} {pressures:?}");
        };
        let (none, of_file) = (serde_json::json!({}), serde_json::json!({"kubernetes.io/config.source": "file"}));
        check(none.clone(), serde_json::json!({}), &[], true);
        check(none.clone(), serde_json::json!({}), &["DiskPressure"], false);
        check(none.clone(), serde_json::json!({"priority": 2_000_000_000}), &["DiskPressure"], true);
        check(of_file, serde_json::json!({}), &["DiskPressure"], true);
        let asks = serde_json::json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]});
        check(none.clone(), asks.clone(), &["MemoryPressure"], true);
        check(none, asks, &["MemoryPressure", "DiskPressure"], false);
    }

    #[test]
    fn selectors_affinity_and_taints_are_looked_at_again() {
        let words = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        check(serde_json::json!({"nodeSelector": {"disk": "hdd"}}), &[], Some(("NodeAffinity", words)));
        let more_than = |n: &str| {
            serde_json::json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": [n]}]}]}}}})
        };
        check(more_than("4"), &[], None);
        check(more_than("8"), &[], Some(("NodeAffinity", words)));
        let words = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        check(serde_json::json!({"tolerations": []}), &[], Some(("TaintToleration", words)));
    }

    #[test]
    fn what_the_node_cannot_be_or_do_is_named() {
        let words = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        let windows = serde_json::json!({"nodeSelector": {"kubernetes.io/os": "windows"}});
        check(windows, &[], Some(("PodOSSelectorNodeLabelDoesNotMatch", words)));
        let groups = |policy: &str| serde_json::json!({"securityContext": {"supplementalGroupsPolicy": policy}});
        check(groups("Merge"), &[], None);
        let words = "SupplementalGroupsPolicy=Strict is not supported in this node";
        check(groups("Strict"), &[], Some(("SupplementalGroupsPolicyNotSupported", words)));
    }

    #[test]
    fn a_host_port_is_given_once() {
        let port = |ip: &str| {
            serde_json::json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080, "hostIP": ip}]}]})
        };
        let words = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        check(port(""), &[pod(port("127.0.0.1"))], Some(("NodePorts", words)));
        check(port("127.0.0.2"), &[pod(port("127.0.0.1"))], None);
    }
}
