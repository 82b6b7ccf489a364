//! Pods as several plugins see them: containers, and what a pod asks of its node.

use std::collections::BTreeMap;

use apimachinery::Value;
use apimachinery::quantity::{Format, Quantity};

/// Amounts by resource name.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// Which of a container's two lists of amounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Requests,
    Limits,
}

impl Of {
    fn field(self) -> &'static str {
        match self {
            Of::Requests => "requests",
            Of::Limits => "limits",
        }
    }
}

/// All containers of a pod spec, in the order in which upstream visits them.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| spec[list].items())
}

/// Reads a list of amounts. What is no quantity was refused by validation, or will be: it counts nothing here.
pub(super) fn amounts(list: &Value) -> Amounts {
    let quantity = |v: &Value| match v {
        Value::String(text) => text.parse().ok(),
        Value::Int(number) => Some(Quantity::new(*number, Format::DecimalSi)),
        other => other.as_f64().and_then(|f| f.to_string().parse().ok()),
    };
    list.entries().iter().filter_map(|(name, v)| Some((name.to_string(), quantity(v)?))).collect()
}

pub(super) fn amounts_value(amounts: &Amounts) -> Value {
    Value::Object(amounts.iter().map(|(name, quantity)| (name.as_str().into(), Value::from(*quantity))).collect())
}

pub(super) fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, quantity) in more {
        let entry = sum.entry(name.clone()).or_insert(Quantity::new(0, quantity.format));
        *entry = entry.saturating_add(*quantity);
    }
}

fn keep_greater(sum: &mut Amounts, other: &Amounts) {
    for (name, quantity) in other {
        let entry = sum.entry(name.clone()).or_insert(*quantity);
        if *quantity > *entry {
            *entry = *quantity;
        }
    }
}

/// A container that starts before the others and stays.
fn is_sidecar(container: &Value) -> bool {
    container.str_at(&["restartPolicy"]) == "Always"
}

/// What a pod asks of its node, as scheduler and quota count it (KEP-753 for sidecars, KEP-2837 for pod-level resources):
/// the sum of the containers that run together, or what an init container needs while it runs, and the overhead.
pub(super) fn pod_amounts(pod: &Value, of: Of) -> Amounts {
    let spec = &pod["spec"];
    let mut total = Amounts::new();
    for container in spec["containers"].items() {
        add(&mut total, &container_amounts(pod, container, "containerStatuses", of));
    }
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for container in spec["initContainers"].items() {
        let own = container_amounts(pod, container, "initContainerStatuses", of);
        if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            keep_greater(&mut init, &sidecars);
        } else {
            let mut with_sidecars = own;
            add(&mut with_sidecars, &sidecars);
            keep_greater(&mut init, &with_sidecars);
        }
    }
    keep_greater(&mut total, &init);
    for (name, quantity) in amounts(&spec["resources"][of.field()]) {
        if name == "cpu" || name == "memory" || name.starts_with("hugepages-") {
            total.insert(name, quantity);
        }
    }
    let overhead = amounts(&spec["overhead"]);
    match of {
        Of::Requests => add(&mut total, &overhead),
        // An unlimited resource stays unlimited.
        Of::Limits => {
            for (name, quantity) in overhead {
                if let Some(limit) = total.get_mut(&name).filter(|limit| !limit.is_zero()) {
                    *limit = limit.saturating_add(quantity);
                }
            }
        }
    }
    total
}

/// What a container asks for, or still holds while a resize (KEP-1287) is not done.
fn container_amounts(pod: &Value, container: &Value, statuses: &str, of: Of) -> Amounts {
    let mut wanted = amounts(&container["resources"][of.field()]);
    let name = container.str_at(&["name"]);
    let status = pod["status"][statuses].items().iter().find(|s| s.str_at(&["name"]) == name);
    if let Some(status) = status {
        keep_greater(&mut wanted, &amounts(&status["resources"][of.field()]));
        if of == Of::Requests {
            keep_greater(&mut wanted, &amounts(&status["allocatedResources"]));
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, of: Of, want: &str) {
        let pod: Value = serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap();
        assert_eq!(serde_json::to_string(&amounts_value(&pod_amounts(&pod, of))).unwrap(), want);
    }

    #[test]
    fn containers_add_up_and_init_containers_run_alone() {
        check(
            r#"{"containers":[{"resources":{"requests":{"cpu":"1"}}},{"resources":{"requests":{"cpu":"500m","memory":"1Gi"}}}],
                "initContainers":[{"resources":{"requests":{"cpu":"1","memory":"2Gi"}}}]}"#,
            Of::Requests,
            r#"{"cpu":"1500m","memory":"2Gi"}"#,
        );
    }

    #[test]
    fn a_sidecar_runs_with_what_starts_after_it() {
        check(
            r#"{"containers":[{"resources":{"requests":{"cpu":"1"}}}],
                "initContainers":[{"restartPolicy":"Always","resources":{"requests":{"cpu":"1"}}},{"resources":{"requests":{"cpu":"2"}}}]}"#,
            Of::Requests,
            r#"{"cpu":"3"}"#,
        );
    }

    #[test]
    fn overhead_does_not_limit_what_is_unlimited() {
        check(
            r#"{"overhead":{"cpu":"1","memory":"1Gi"},"containers":[{"resources":{"limits":{"cpu":"1"}}}]}"#,
            Of::Limits,
            r#"{"cpu":"2"}"#,
        );
        check(
            r#"{"resources":{"requests":{"cpu":"4"}},"containers":[{"resources":{"requests":{"cpu":"1","x.io/y":"1"}}}]}"#,
            Of::Requests,
            r#"{"cpu":"4","x.io/y":"1"}"#,
        );
    }
}
