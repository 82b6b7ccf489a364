//! Kinds whose names are any path segment (RBAC's roles and bindings), and small kinds with a few defaults only.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct RbacStrategy;
pub(crate) struct BindingStrategy;
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
