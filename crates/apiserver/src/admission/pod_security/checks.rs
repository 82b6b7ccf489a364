//! The checks of the Pod Security Standards: which exist, from which version on, and how their findings are told.

use std::collections::BTreeSet;

use apimachinery::Value;

use super::baseline::{
    app_armor, capabilities_baseline, host_namespaces, host_path_volumes, host_ports, host_probes, privileged,
    proc_mount, proc_mount_unless_mapped, se_linux_1_0, se_linux_1_31, seccomp_annotations, seccomp_baseline,
    sysctls_1_0, sysctls_1_27, sysctls_1_29, sysctls_1_32, windows_host_process,
};
use super::policy::{Level, LevelVersion, Version};
use super::restricted::{
    allow_privilege_escalation, capabilities_restricted, restricted_volumes, run_as_non_root, run_as_user,
    seccomp_restricted,
};
use crate::admission::pod::containers;

/// A pod, or what a workload would make one of.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a> {
    pub metadata: &'a Value,
    pub spec: &'a Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub reason: &'static str,
    pub detail: String,
}

pub(super) type CheckPod = fn(Pod<'_>) -> Option<Finding>;

struct Check {
    level: Level,
    /// From which minor version on, ascending.
    versions: &'static [(u32, CheckPod)],
    /// The check of the baseline level that this one is stricter than.
    overrides: Option<&'static str>,
    id: &'static str,
}

const fn baseline(id: &'static str, versions: &'static [(u32, CheckPod)]) -> Check {
    Check { level: Level::Baseline, versions, overrides: None, id }
}

const fn restricted(id: &'static str, overrides: Option<&'static str>, versions: &'static [(u32, CheckPod)]) -> Check {
    Check { level: Level::Restricted, versions, overrides, id }
}

/// In the order of their findings: by level, then by id, in the order of bytes.
const CHECKS: &[Check] = &[
    baseline("appArmorProfile", &[(0, app_armor)]),
    baseline("capabilities_baseline", &[(0, capabilities_baseline)]),
    baseline("hostNamespaces", &[(0, host_namespaces)]),
    baseline("hostPathVolumes", &[(0, host_path_volumes)]),
    baseline("hostPorts", &[(0, host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[(34, host_probes)]),
    baseline("privileged", &[(0, privileged)]),
    baseline("procMount", &[(0, proc_mount), (35, proc_mount_unless_mapped)]),
    baseline("seLinuxOptions", &[(0, se_linux_1_0), (31, se_linux_1_31)]),
    baseline("seccompProfile_baseline", &[(0, seccomp_annotations), (19, seccomp_baseline)]),
    baseline("sysctls", &[(0, sysctls_1_0), (27, sysctls_1_27), (29, sysctls_1_29), (32, sysctls_1_32)]),
    baseline("windowsHostProcess", &[(0, windows_host_process)]),
    restricted(
        "allowPrivilegeEscalation",
        None,
        &[(8, allow_privilege_escalation), (25, |pod| unless_windows(pod, allow_privilege_escalation))],
    ),
    restricted(
        "capabilities_restricted",
        Some("capabilities_baseline"),
        &[(22, capabilities_restricted), (25, |pod| unless_windows(pod, capabilities_restricted))],
    ),
    restricted("procMount_restricted", Some("procMount"), &[(35, proc_mount)]),
    restricted("restrictedVolumes", Some("hostPathVolumes"), &[(0, restricted_volumes)]),
    restricted("runAsNonRoot", None, &[(0, run_as_non_root), (35, |pod| unless_mapped(pod, run_as_non_root))]),
    restricted("runAsUser", None, &[(23, run_as_user), (35, |pod| unless_mapped(pod, run_as_user))]),
    restricted(
        "seccompProfile_restricted",
        Some("seccompProfile_baseline"),
        &[(19, seccomp_restricted), (25, |pod| unless_windows(pod, seccomp_restricted))],
    ),
];

/// What a pod does that a level forbids. A version of the future means the newest rules there are.
pub(super) fn evaluate(at: LevelVersion, pod: Pod<'_>) -> Vec<Finding> {
    let minor = match at.version {
        Version::Minor(minor) => minor,
        Version::Latest => u32::MAX,
    };
    let in_force = |check: &&Check| check.level <= at.level && check.versions[0].0 <= minor;
    let overridden: Vec<_> = CHECKS.iter().filter(in_force).filter_map(|check| check.overrides).collect();
    let runs = CHECKS.iter().filter(in_force).filter(|check| !overridden.contains(&check.id));
    runs.filter_map(|check| {
        let (_, run) = check.versions.iter().rev().find(|(since, _)| *since <= minor)?;
        run(pod)
    })
    .collect()
}

/// `reason (detail), reason (detail)`.
pub(super) fn details(findings: &[Finding]) -> String {
    let told = findings
        .iter()
        .map(|f| if f.detail.is_empty() { f.reason.to_owned() } else { format!("{} ({})", f.reason, f.detail) });
    told.collect::<Vec<_>>().join(", ")
}

pub(super) fn reasons(findings: &[Finding]) -> String {
    findings.iter().map(|f| f.reason).collect::<Vec<_>>().join(", ")
}

pub(super) fn finding(reason: &'static str, detail: String) -> Option<Finding> {
    Some(Finding { reason, detail })
}

/// Fields that mean nothing to Windows are refused by validation.
fn unless_windows(pod: Pod<'_>, check: CheckPod) -> Option<Finding> {
    if pod.spec.str_at(&["os", "name"]) == "windows" { None } else { check(pod) }
}

/// Root of a user namespace of its own is nobody outside it (KEP-127).
pub(super) fn unless_mapped(pod: Pod<'_>, check: CheckPod) -> Option<Finding> {
    if pod.spec["hostUsers"].as_bool() == Some(false) { None } else { check(pod) }
}

// === words ===

pub(super) fn plural(one: &'static str, many: &'static str, count: usize) -> &'static str {
    if count == 1 { one } else { many }
}

/// `"a", "b"`; nothing is escaped, as upstream has it.
pub(super) fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    if names.is_empty() { String::new() } else { format!("\"{}\"", names.join("\", \"")) }
}

pub(super) fn quoted_set(names: &BTreeSet<&str>) -> String {
    quoted(names.iter().copied())
}

/// `container "a"`, `containers "a", "b"`.
pub(super) fn named_containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names.iter().copied()))
}

/// Who did it: the pod, its containers, or both.
pub(super) fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".to_owned()),
        (false, false) => Some(named_containers(names)),
        (true, false) => Some(format!("pod and {}", named_containers(names))),
    }
}

/// The names of the containers of which something is so.
pub(super) fn where_container<'a>(spec: &'a Value, is: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
    containers(spec).filter(|c| is(c)).map(|c| c.str_at(&["name"])).collect()
}
