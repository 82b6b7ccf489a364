//! Kinds whose names are any path segment (RBAC's roles and bindings), and small kinds with a few defaults only.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct RbacStrategy;
pub(crate) struct BindingStrategy;
pub(crate) struct EventStrategy;
pub(crate) struct EndpointSliceStrategy;
pub(crate) struct EndpointsStrategy;
pub(crate) struct PriorityClassStrategy;
pub(crate) struct LeaseStrategy;
pub(crate) struct CertificateSigningRequestStrategy;
pub(crate) struct FlowControlStrategy;
pub(crate) struct StorageClassStrategy;

/// Upstream's rule for names that are only ever a segment of a path.
pub(crate) fn path_segment(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name == "." || name == ".." {
        wrong.push(format!("may not be '{name}'"));
    }
    for part in ["/", "%"] {
        if name.contains(part) {
            wrong.push(format!("may not contain '{part}'"));
        }
    }
    wrong
}

impl Strategy for RbacStrategy {
    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        path_segment(name)
    }

    fn row(&self, role: &Value, _: Now) -> Option<Vec<Cell>> {
        Some(vec![role.name().into(), role.meta("creationTimestamp").clone()])
    }
}

impl Strategy for BindingStrategy {
    fn default(&self, binding: &mut Value) {
        const GROUP: &str = "rbac.authorization.k8s.io";
        binding.set_default(&["roleRef", "apiGroup"], GROUP);
        if let Some(subjects) = binding.get_mut("subjects") {
            for subject in subjects.items_mut() {
                if matches!(subject.str_at(&["kind"]), "User" | "Group") {
                    subject.set_default(&["apiGroup"], GROUP);
                }
            }
        }
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        path_segment(name)
    }

    fn row(&self, binding: &Value, now: Now) -> Option<Vec<Cell>> {
        let role = format!("{}/{}", binding.str_at(&["roleRef", "kind"]), binding.str_at(&["roleRef", "name"]));
        let named = |kind: &str| {
            let of_kind = binding["subjects"].items().iter().filter(|s| s.str_at(&["kind"]) == kind);
            let names: Vec<String> = of_kind
                .map(|s| match s.str_at(&["namespace"]) {
                    "" => s.str_at(&["name"]).to_owned(),
                    ns => format!("{ns}/{}", s.str_at(&["name"])),
                })
                .collect();
            Value::from(names.join(", "))
        };
        let age = table_cells::created(binding, now);
        Some(vec![binding.name().into(), role.into(), age, named("User"), named("Group"), named("ServiceAccount")])
    }
}

impl Strategy for EventStrategy {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::strategy::dns_subdomain(name, prefix)
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[
            ("involvedObject.kind", &["involvedObject", "kind"]),
            ("involvedObject.namespace", &["involvedObject", "namespace"]),
            ("involvedObject.name", &["involvedObject", "name"]),
            ("involvedObject.uid", &["involvedObject", "uid"]),
            ("involvedObject.apiVersion", &["involvedObject", "apiVersion"]),
            ("involvedObject.resourceVersion", &["involvedObject", "resourceVersion"]),
            ("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
            ("reason", &["reason"]),
            ("reportingComponent", &["reportingComponent"]),
            ("source", &["source", "component"]),
            ("type", &["type"]),
        ]
    }

    fn row(&self, event: &Value, now: Now) -> Option<Vec<Cell>> {
        let first_of =
            |fields: &[&[&str]]| fields.iter().map(|f| event.at(f)).find(|v| !v.is_null()).cloned().unwrap_or_default();
        let last =
            first_of(&[&["series", "lastObservedTime"], &["lastTimestamp"], &["eventTime"], &["firstTimestamp"]]);
        let first = first_of(&[&["firstTimestamp"], &["eventTime"]]);
        let object = &event["involvedObject"];
        let regarding = format!("{}/{}", object.str_at(&["kind"]).to_lowercase(), object.str_at(&["name"]));
        let source = match (event.str_at(&["source", "component"]), event.str_at(&["source", "host"])) {
            ("", _) => event.str_at(&["reportingComponent"]).to_owned(),
            (component, "") => component.to_owned(),
            (component, host) => format!("{component}, {host}"),
        };
        let count = event["series"]["count"].as_i64().or_else(|| event["count"].as_i64()).unwrap_or(1).max(1);
        Some(vec![
            table_cells::age(&last, now),
            event.str_at(&["type"]).into(),
            event.str_at(&["reason"]).into(),
            regarding.into(),
            object.str_at(&["fieldPath"]).into(),
            source.into(),
            event.str_at(&["message"]).trim().into(),
            table_cells::age(&first, now),
            count.to_string().into(),
            event.name().into(),
        ])
    }
}

impl Strategy for EndpointSliceStrategy {
    fn default(&self, slice: &mut Value) {
        if let Some(ports) = slice.get_mut("ports") {
            for port in ports.items_mut() {
                port.set_default(&["name"], "");
                port.set_default(&["protocol"], "TCP");
            }
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        ["endpoints", "ports", "addressType"].iter().any(|f| new[*f] != old[*f])
    }
}

impl Strategy for EndpointsStrategy {
    fn default(&self, endpoints: &mut Value) {
        let Some(subsets) = endpoints.get_mut("subsets") else { return };
        for subset in subsets.items_mut() {
            if let Some(ports) = subset.get_mut("ports") {
                for port in ports.items_mut() {
                    port.set_default(&["protocol"], "TCP");
                }
            }
        }
    }
}

impl Strategy for PriorityClassStrategy {
    fn default(&self, class: &mut Value) {
        class.set_default(&["preemptionPolicy"], "PreemptLowerPriority");
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, _: &Value, _: &Value) -> bool {
        false
    }
}

impl Strategy for LeaseStrategy {
    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn row(&self, lease: &Value, now: Now) -> Option<Vec<Cell>> {
        let holder = lease.str_at(&["spec", "holderIdentity"]);
        Some(vec![lease.name().into(), holder.into(), table_cells::created(lease, now)])
    }
}

impl Strategy for CertificateSigningRequestStrategy {
    fn default(&self, request: &mut Value) {
        request
            .set_default(&["spec", "usages"], vec![Value::from("digital signature"), Value::from("key encipherment")]);
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("spec.signerName", &["spec", "signerName"])]
    }
}

impl Strategy for FlowControlStrategy {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::strategy::dns_subdomain(name, prefix)
    }

    fn has_generation(&self) -> bool {
        true
    }
}

impl Strategy for StorageClassStrategy {
    fn default(&self, class: &mut Value) {
        class.set_default(&["reclaimPolicy"], "Delete");
        class.set_default(&["volumeBindingMode"], "Immediate");
    }
}
