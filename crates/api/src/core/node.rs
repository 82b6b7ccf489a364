//! Node.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct NodeStrategy;

impl Strategy for NodeStrategy {
    fn default(&self, node: &mut Value) {
        if node.at(&["status", "allocatable"]).is_null() && !node.at(&["status", "capacity"]).is_null() {
            let capacity = node.at(&["status", "capacity"]).clone();
            node.set(&["status", "allocatable"], capacity);
        }
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
