//! The APIServices of what this server serves itself: made by it, and gone with what they stand for.

use apimachinery::Value;
use apimachinery::meta::GroupVersion;

use crate::resources::is_builtin_group;

/// Whose objects they are: `onstart` for the built-in groups, `true` for what definitions add.
pub(super) const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Upstream's priorities of the built-in groups, the higher the earlier in discovery.
const GROUPS: [(&str, i64); 23] = [
    ("", 18000),
    ("apiregistration.k8s.io", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("admissionregistration.k8s.io", 16700),
    ("apiextensions.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("resource.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("internal.apiserver.k8s.io", 16000),
    ("storagemigration.k8s.io", 16000),
];

/// What definitions add comes after the built-in groups.
const CUSTOM_GROUP: i64 = 1000;
const CUSTOM_VERSION: i64 = 100;

/// The priority of a group that this server serves itself.
#[must_use]
pub(crate) fn group_priority(group: &str) -> i64 {
    GROUPS.iter().find(|(name, _)| *name == group).map_or(CUSTOM_GROUP, |(_, priority)| *priority)
}

/// Upstream's priorities of versions of built-in groups.
fn version_priority(gv: &GroupVersion) -> i64 {
    match (gv.group.as_str(), gv.version.as_str()) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        (_, version) if version.contains("alpha") => 1,
        (_, version) if version.contains("beta") => 9,
        _ => 15,
    }
}

/// The APIService of a group and version that this server serves.
#[must_use]
pub(super) fn api_service(gv: &GroupVersion) -> Value {
    let builtin = is_builtin_group(&gv.group);
    let (group_priority, version_priority) =
        if builtin { (group_priority(&gv.group), version_priority(gv)) } else { (CUSTOM_GROUP, CUSTOM_VERSION) };
    let mut spec = Value::from([
        ("version", gv.version.as_str().into()),
        ("groupPriorityMinimum", group_priority.into()),
        ("versionPriority", version_priority.into()),
    ]);
    if !gv.group.is_empty() {
        spec.set(&["group"], gv.group.as_str());
    }
    let mut service = Value::from([
        ("apiVersion", "apiregistration.k8s.io/v1".into()),
        ("kind", "APIService".into()),
        ("metadata", Value::from([("name", format!("{}.{}", gv.version, gv.group).into())])),
        ("spec", spec),
    ]);
    service.set(&["metadata", "labels", MANAGED], if builtin { "onstart" } else { "true" });
    service
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_groups_come_first() {
        let gv = |group: &str, version: &str| GroupVersion { group: group.into(), version: version.into() };
        let core = api_service(&gv("", "v1"));
        assert_eq!((core.name(), core.label(MANAGED)), ("v1.", Some("onstart")));
        let custom = api_service(&gv("example.com", "v1"));
        assert_eq!((custom.name(), custom.label(MANAGED)), ("v1.example.com", Some("true")));
        let priority = |s: &Value| s.at(&["spec", "groupPriorityMinimum"]).as_i64();
        assert!(priority(&core) > priority(&custom));
        for def in api::resources() {
            assert_ne!(group_priority(&def.gvr.group), CUSTOM_GROUP, "{}", def.gvr.group);
        }
    }
}
