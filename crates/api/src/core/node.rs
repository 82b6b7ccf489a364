//! Node.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::net::{family_of_cidr, legacy_cidr};
use crate::validation::node_selector::taints;
use crate::validation::resources::amount_of;
use crate::validation::{Checks, text};

pub(crate) struct NodeStrategy;

/// `podCIDR` is the first of `podCIDRs`; where they differ it counts, because that is what old kubelets write.
fn pair_pod_cidrs(node: &mut Value) {
    let spec = &node["spec"];
    let (one, first) = (spec.str_at(&["podCIDR"]), spec["podCIDRs"].items().first().and_then(Value::as_str));
    match (one, first) {
        ("", Some(first)) => {
            let first = first.to_owned();
            node.set(&["spec", "podCIDR"], first);
        }
        ("", None) => {}
        (one, first) if first == Some(one) => {}
        (one, _) => {
            let all = vec![Value::from(one)];
            node.set(&["spec", "podCIDRs"], all);
        }
    }
}

fn validate_resources(node: &Value, errs: &mut FieldErrors) {
    for field in ["capacity", "allocatable"] {
        let path = Path::new("status").child(field);
        for (name, amount) in node["status"][field].entries() {
            amount_of(errs, &Cursor::new(path.child(name), amount), name);
        }
    }
}

impl Strategy for NodeStrategy {
    fn default(&self, node: &mut Value) {
        if node.at(&["status", "allocatable"]).is_null() && !node.at(&["status", "capacity"]).is_null() {
            let capacity = node.at(&["status", "capacity"]).clone();
            node.set(&["status", "allocatable"], capacity);
        }
        pair_pod_cidrs(node);
    }

    fn validate(&self, node: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        taints(&mut errs, &Cursor::new(Path::new("metadata.taints"), node.at(&["spec", "taints"])));
        validate_resources(node, &mut errs);
        let cidrs = Cursor::root(node).fields(&["spec", "podCIDRs"]);
        for cidr in cidrs.elements() {
            legacy_cidr(&mut errs, &cidr, &[]);
        }
        let families: Vec<&str> = cidrs.elements().map(|c| family_of_cidr(text(&c))).collect();
        if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
            errs.invalid(&cidrs, "may specify no more than one CIDR for each IP family");
        }
        errs
    }

    fn validate_update(&self, node: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        validate_resources(node, &mut errs);
        let addresses = Cursor::root(node).fields(&["status", "addresses"]);
        let all = addresses.items();
        for (i, address) in addresses.elements().enumerate() {
            if all[..i].contains(address.value) {
                errs.duplicate_struct(&address, "");
            }
        }
        let (spec, was) = (Cursor::root(node).field("spec"), &old["spec"]);
        if !was["podCIDRs"].items().is_empty() && spec["podCIDRs"] != was["podCIDRs"] {
            errs.forbidden(
                &spec.path.child("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
        let provider = was.str_at(&["providerID"]);
        if !provider.is_empty() && spec.str_at(&["providerID"]) != provider {
            errs.forbidden(
                &spec.path.child("providerID"),
                "node updates may not change providerID except from \"\" to valid",
            );
        }
        taints(&mut errs, &Cursor::new(Path::new("metadata.taints"), &spec["taints"]));
        if spec["externalID"] != was["externalID"] {
            errs.forbidden(
                // That is how upstream's path without a name reads.
                &Path::new("[]"),
                "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature \
                 gate is enabled)",
            );
        }
        errs
    }

    fn validate_status_update(&self, node: &Value, old: &Value) -> FieldErrors {
        self.validate_update(node, old)
    }

    fn warnings(&self, node: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if !node.at(&["spec", "configSource"]).is_null() {
            warnings.push("spec.configSource: the feature is no longer available".to_owned());
        }
        if !node.str_at(&["spec", "externalID"]).is_empty() {
            warnings.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        warnings
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("spec.unschedulable", &["spec", "unschedulable"])]
    }

    fn selectable_field(&self, node: &Value, label: &str) -> Option<compact_str::CompactString> {
        (label == "spec.unschedulable").then(|| {
            if node.at(&["spec", "unschedulable"]).as_bool() == Some(true) { "true".into() } else { "false".into() }
        })
    }

    fn row(&self, node: &Value, now: Now) -> Option<Vec<Cell>> {
        let ready = node.at(&["status", "conditions"]).items().iter().find(|c| c.str_at(&["type"]) == "Ready");
        let mut status = match ready.map(|c| c.str_at(&["status"])) {
            Some("True") => "Ready".to_owned(),
            Some(_) => "NotReady".to_owned(),
            None => "Unknown".to_owned(),
        };
        if node.at(&["spec", "unschedulable"]).as_bool() == Some(true) {
            status.push_str(",SchedulingDisabled");
        }
        let mut roles: Vec<&str> = Vec::new();
        for (label, value) in node.meta("labels").entries() {
            if let Some(role) = label.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
                roles.push(role);
            } else if label == "kubernetes.io/role" {
                roles.extend(value.as_str().filter(|r| !r.is_empty()));
            }
        }
        let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
        let address = |kind: &str| {
            let all = node.at(&["status", "addresses"]).items();
            all.iter().find(|a| a.str_at(&["type"]) == kind).map_or("<none>", |a| a.str_at(&["address"])).to_owned()
        };
        let info = |field: &str| match node.str_at(&["status", "nodeInfo", field]) {
            "" => "<unknown>".to_owned(),
            text => text.to_owned(),
        };
        Some(vec![
            node.name().into(),
            status.into(),
            roles.into(),
            table_cells::created(node, now),
            node.str_at(&["status", "nodeInfo", "kubeletVersion"]).into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            info("osImage").into(),
            info("kernelVersion").into(),
            info("containerRuntimeVersion").into(),
        ])
    }
}
