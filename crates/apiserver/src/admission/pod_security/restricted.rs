//! The restricted level: the current practice of hardening pods.

use std::collections::BTreeSet;

use apimachinery::Value;

use super::baseline::{bad_seccomp, is_safe_seccomp, strings, told_capabilities};
use super::checks::{Finding, Pod, finding, named_containers, plural, quoted, quoted_set, setters, where_container};

const ALLOWED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const OTHER_VOLUMES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

pub(super) fn allow_privilege_escalation(pod: Pod<'_>) -> Option<Finding> {
    let path = &["securityContext", "allowPrivilegeEscalation"];
    let names = where_container(pod.spec, |c| c.at(path).as_bool() != Some(false));
    if names.is_empty() {
        return None;
    }
    finding(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", named_containers(&names)),
    )
}

pub(super) fn capabilities_restricted(pod: Pod<'_>) -> Option<Finding> {
    fn of(container: &Value) -> &Value {
        container.at(&["securityContext", "capabilities"])
    }
    fn forbidden(container: &Value) -> impl Iterator<Item = &str> {
        strings(&of(container)["add"]).filter(|c| *c != "NET_BIND_SERVICE")
    }
    let keeps = where_container(pod.spec, |c| !strings(&of(c)["drop"]).any(|d| d == "ALL"));
    let adds = where_container(pod.spec, |c| forbidden(c).next().is_some());
    let added: BTreeSet<&str> = crate::admission::pod::containers(pod.spec).flat_map(forbidden).collect();
    let mut told = Vec::new();
    if !keeps.is_empty() {
        told.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named_containers(&keeps)));
    }
    told.extend(told_capabilities(&adds, &added));
    if told.is_empty() { None } else { finding("unrestricted capabilities", told.join("; ")) }
}

pub(super) fn restricted_volumes(pod: Pod<'_>) -> Option<Finding> {
    let (mut names, mut types) = (Vec::new(), BTreeSet::new());
    for volume in pod.spec["volumes"].items() {
        let has = |kind: &&&str| !volume[**kind].is_null();
        if ALLOWED_VOLUMES.iter().any(|kind| has(&kind)) {
            continue;
        }
        names.push(volume.str_at(&["name"]));
        types.insert(OTHER_VOLUMES.iter().find(has).copied().unwrap_or("unknown"));
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quoted(names.iter().copied()),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quoted_set(&types)
    );
    finding("restricted volume types", detail)
}

pub(super) fn run_as_non_root(pod: Pod<'_>) -> Option<Finding> {
    fn of(at: &Value) -> Option<bool> {
        at.at(&["securityContext", "runAsNonRoot"]).as_bool()
    }
    const REASON: &str = "runAsNonRoot != true";
    let of_pod = of(pod.spec);
    let roots = where_container(pod.spec, |c| of(c) == Some(false));
    if let Some(who) = setters(of_pod == Some(false), &roots) {
        return finding(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = where_container(pod.spec, |c| of(c).is_none());
    if of_pod == Some(true) || silent.is_empty() {
        return None;
    }
    finding(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", named_containers(&silent)))
}

pub(super) fn run_as_user(pod: Pod<'_>) -> Option<Finding> {
    fn is_root(at: &Value) -> bool {
        at.at(&["securityContext", "runAsUser"]).as_i64() == Some(0)
    }
    let who = setters(is_root(pod.spec), &where_container(pod.spec, is_root))?;
    finding("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub(super) fn seccomp_restricted(pod: Pod<'_>) -> Option<Finding> {
    const REASON: &str = "seccompProfile";
    if let Some(detail) = bad_seccomp(pod) {
        return finding(REASON, detail);
    }
    let path = &["securityContext", "seccompProfile"];
    let silent = where_container(pod.spec, |c| c.at(path).is_null());
    if is_safe_seccomp(pod.spec.at(path)) || silent.is_empty() {
        return None;
    }
    let who = named_containers(&silent);
    finding(
        REASON,
        format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""),
    )
}
