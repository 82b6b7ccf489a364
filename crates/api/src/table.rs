//! The one table of everything that can be served, from `data/resources.jsonl`: a resource a line, in the order of discovery.

use std::sync::LazyLock;

use apimachinery::Value;
use apimachinery::meta::{GroupVersion, Gvk, Gvr};

use crate::resource::{ResourceDef, Scope, Subresource};
use crate::strategies;
use crate::strategy::Column;

static RESOURCES: LazyLock<Vec<ResourceDef>> = LazyLock::new(|| {
    include_str!("../data/resources.jsonl")
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("data/resources.jsonl: {e}: {line}"));
            resource_of(&row)
        })
        .collect()
});

/// Every built-in resource, once for each version that it is served in, in the order of discovery.
#[must_use]
pub fn resources() -> &'static [ResourceDef] {
    &RESOURCES
}

/// The resource of that group, version and plural.
#[must_use]
pub fn resource(gvr: &Gvr) -> Option<&'static ResourceDef> {
    RESOURCES.iter().find(|r| r.gvr == *gvr)
}

/// The resource whose objects have that kind.
#[must_use]
pub fn resource_of_kind(gvk: &Gvk) -> Option<&'static ResourceDef> {
    RESOURCES.iter().find(|r| r.gvr.group == gvk.group && r.gvr.version == gvk.version && r.kind == gvk.kind)
}

/// Where upstream keeps a resource below `/registry/`, for those that are not kept under their own name.
const STORAGE_PREFIXES: &[(&str, &str, &str)] = &[
    ("", "endpoints", "services/endpoints"),
    ("", "nodes", "minions"),
    ("", "replicationcontrollers", "controllers"),
    ("", "services", "services/specs"),
    ("networking.k8s.io", "ingresses", "ingress"),
    ("events.k8s.io", "events", "events"),
    ("apiregistration.k8s.io", "apiservices", "apiregistration.k8s.io/apiservices"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "apiextensions.k8s.io/customresourcedefinitions"),
];

/// Kinds that are not stored as they are served: those with several versions or groups, and those that are so new that
/// upstream writes them in a version that the release before reads too (they differ in nothing but its name).
const STORAGE_VERSIONS: &[(&str, &str, (&str, &str))] = &[
    ("autoscaling", "HorizontalPodAutoscaler", ("autoscaling", "v2")),
    ("events.k8s.io", "Event", ("", "v1")),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy", ("admissionregistration.k8s.io", "v1beta1")),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", ("admissionregistration.k8s.io", "v1beta1")),
    ("certificates.k8s.io", "ClusterTrustBundle", ("certificates.k8s.io", "v1beta1")),
];

fn resource_of(row: &Value) -> ResourceDef {
    let gv = GroupVersion::parse(row.str_at(&["gv"])).unwrap_or_default();
    let plural = row.str_at(&["resource"]);
    let kind = row.str_at(&["kind"]);
    let prefix = STORAGE_PREFIXES.iter().find(|(group, resource, _)| *group == gv.group && *resource == plural);
    let stored = STORAGE_VERSIONS.iter().find(|(group, k, _)| *group == gv.group && *k == kind);
    let (group, version) = stored.map_or((gv.group.as_str(), gv.version.as_str()), |(_, _, gv)| *gv);
    ResourceDef {
        gvr: Gvr::new(&gv.group, &gv.version, plural),
        kind: kind.to_owned(),
        list_kind: format!("{kind}List"),
        singular: row.str_at(&["singularName"]).to_owned(),
        short_names: strings(&row["shortNames"]),
        categories: strings(&row["categories"]),
        scope: if row["namespaced"].as_bool() == Some(true) { Scope::Namespaced } else { Scope::Cluster },
        verbs: strings(&row["verbs"]),
        storage_version_hash: row.str_at(&["storageVersionHash"]).to_owned(),
        on_by_default: row["off"].as_bool() != Some(true),
        subresources: row["subresources"].entries().iter().map(|(name, s)| subresource_of(name, s, &gv)).collect(),
        storage: Gvk::new(group, version, kind),
        storage_prefix: prefix.map_or(plural, |(_, _, prefix)| prefix).to_owned(),
        columns: row["columns"].items().iter().map(column_of).collect(),
        strategy: strategies::of(&gv.group, &gv.version, plural),
    }
}

fn subresource_of(name: &str, row: &Value, parent: &GroupVersion) -> Subresource {
    let gv = GroupVersion::parse(row.str_at(&["groupVersion"])).unwrap_or_else(|| parent.clone());
    Subresource {
        name: name.to_owned(),
        gvk: Gvk::new(&gv.group, &gv.version, row.str_at(&["kind"])),
        verbs: strings(&row["verbs"]),
    }
}

fn column_of(row: &Value) -> Column {
    let text = |i: usize| row.items().get(i).and_then(Value::as_str).unwrap_or_default().to_owned();
    let priority = row.items().get(3).and_then(Value::as_i64).unwrap_or_default();
    Column { name: text(0), kind: text(1), format: text(2), priority }
}

fn strings(list: &Value) -> Vec<String> {
    list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_knows_where_upstream_keeps_things() {
        let prefix = |g, v, r| resource(&Gvr::new(g, v, r)).unwrap().storage_prefix.as_str();
        assert_eq!(prefix("", "v1", "nodes"), "minions");
        assert_eq!(prefix("apps", "v1", "deployments"), "deployments");
        assert_eq!(prefix("networking.k8s.io", "v1", "ingresses"), "ingress");
    }

    #[test]
    fn subresources_have_their_own_kinds() {
        let pods = resource(&Gvr::new("", "v1", "pods")).unwrap();
        assert_eq!(pods.subresource("eviction").unwrap().gvk, Gvk::new("policy", "v1", "Eviction"));
        assert_eq!(pods.subresource("status").unwrap().gvk, Gvk::new("", "v1", "Pod"));
        assert!(pods.is_namespaced());
        assert_eq!(pods.short_names, ["po"]);
        assert_eq!(pods.columns[0].name, "Name");
    }

    #[test]
    fn autoscalers_are_stored_in_v2_whatever_version_is_used() {
        let v1 = resource_of_kind(&Gvk::new("autoscaling", "v1", "HorizontalPodAutoscaler")).unwrap();
        assert_eq!(v1.storage.version, "v2");
    }
}
