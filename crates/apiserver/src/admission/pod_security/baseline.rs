//! The baseline level: what lets a pod out of its container.

use std::collections::BTreeSet;

use apimachinery::Value;

use super::checks::{
    Finding, Pod, finding, named_containers, plural, quoted, quoted_set, setters, unless_mapped, where_container,
};
use crate::admission::pod::containers;

const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Each with the minor version since which it is safe.
const SYSCTLS: &[(&str, u32)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
pub(super) const SECCOMP_POD_ANNOTATION: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub(super) const SECCOMP_CONTAINER_ANNOTATION: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// The pod's own and each container's setting of a field of the security context, where there is one.
struct Settings<'a> {
    pod: Option<&'a Value>,
    containers: Vec<(&'a str, &'a Value)>,
}

fn settings<'a>(spec: &'a Value, field: &str) -> Settings<'a> {
    let set = |at: &'a Value| at.at(&["securityContext", field]);
    let of_containers = containers(spec).map(|c| (c.str_at(&["name"]), set(c))).filter(|(_, v)| !v.is_null());
    Settings { pod: Some(set(spec)).filter(|v| !v.is_null()), containers: of_containers.collect() }
}

impl<'a> Settings<'a> {
    /// Whether the pod, and which containers, have a setting that is bad.
    fn bad(&self, mut is_bad: impl FnMut(&'a Value) -> bool) -> (bool, Vec<&'a str>) {
        let pod = self.pod.is_some_and(&mut is_bad);
        (pod, self.containers.iter().filter(|(_, v)| is_bad(v)).map(|(name, _)| *name).collect())
    }
}

pub(super) fn app_armor(pod: Pod<'_>) -> Option<Finding> {
    let mut values = BTreeSet::new();
    let (of_pod, names) = settings(pod.spec, "appArmorProfile").bad(|profile| {
        let kind = profile.str_at(&["type"]);
        let bad = !matches!(kind, "RuntimeDefault" | "Localhost");
        bad && {
            values.insert(kind);
            true
        }
    });
    let annotations: Vec<String> = pod.metadata["annotations"]
        .entries()
        .iter()
        .filter(|(key, _)| key.starts_with(APP_ARMOR_ANNOTATION))
        .map(|(key, value)| (key, value.as_str().unwrap_or_default()))
        .filter(|(_, value)| !(value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/")))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut who: Vec<String> = setters(of_pod, &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<&str> = values.into_iter().chain(annotations.iter().map(String::as_str)).collect();
    finding(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len()),
        format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)),
    )
}

pub(super) fn capabilities_baseline(pod: Pod<'_>) -> Option<Finding> {
    let mut added = BTreeSet::new();
    let names = settings(pod.spec, "capabilities").bad(|capabilities| {
        let bad: Vec<_> = strings(&capabilities["add"]).filter(|c| !DEFAULT_CAPABILITIES.contains(c)).collect();
        added.extend(bad.iter().copied());
        !bad.is_empty()
    });
    told_capabilities(&names.1, &added).and_then(|detail| finding("non-default capabilities", detail))
}

/// Who adds which capabilities.
pub(super) fn told_capabilities(names: &[&str], added: &BTreeSet<&str>) -> Option<String> {
    (!names.is_empty()).then(|| {
        let who = named_containers(names);
        format!("{who} must not include {} in securityContext.capabilities.add", quoted_set(added))
    })
}

pub(super) fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.items().iter().filter_map(Value::as_str)
}

pub(super) fn host_namespaces(pod: Pod<'_>) -> Option<Finding> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|f| pod.spec[**f].as_bool() == Some(true));
    let shared: Vec<_> = shared.map(|field| format!("{field}=true")).collect();
    if shared.is_empty() { None } else { finding("host namespaces", shared.join(", ")) }
}

pub(super) fn host_path_volumes(pod: Pod<'_>) -> Option<Finding> {
    let volumes = pod.spec["volumes"].items().iter().filter(|v| !v["hostPath"].is_null());
    let names: Vec<_> = volumes.map(|v| v.str_at(&["name"])).collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} {}", plural("volume", "volumes", names.len()), quoted(names.iter().copied()));
    finding("hostPath volumes", detail)
}

pub(super) fn host_ports(pod: Pod<'_>) -> Option<Finding> {
    let mut ports = BTreeSet::new();
    let names = where_container(pod.spec, |_| true);
    let names: Vec<_> = containers(pod.spec)
        .zip(names)
        .filter(|(container, _)| {
            let used: Vec<_> =
                container["ports"].items().iter().filter_map(|p| p["hostPort"].as_i64()).filter(|p| *p != 0).collect();
            ports.extend(used.iter().map(ToString::to_string));
            !used.is_empty()
        })
        .map(|(_, name)| name)
        .collect();
    if names.is_empty() {
        return None;
    }
    let ports: Vec<_> = ports.into_iter().collect();
    let (who, count) = (named_containers(&names), ports.len());
    let (uses, what) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", count));
    finding("hostPort", format!("{who} {uses} {what} {}", ports.join(", ")))
}

pub(super) fn host_probes(pod: Pod<'_>) -> Option<Finding> {
    const HANDLERS: &[&[&str]] = &[
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
    for container in containers(pod.spec) {
        for handler in HANDLERS.iter().map(|path| container.at(path)) {
            for host in ["httpGet", "tcpSocket"].iter().map(|kind| handler.str_at(&[kind, "host"])) {
                if !host.is_empty() {
                    names.insert(container.str_at(&["name"]));
                    hosts.insert(host);
                }
            }
        }
    }
    if names.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", names.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    let who = named_containers(&names.into_iter().collect::<Vec<_>>());
    finding("probe or lifecycle host", format!("{who} {uses} {what} {}", quoted_set(&hosts)))
}

pub(super) fn privileged(pod: Pod<'_>) -> Option<Finding> {
    let names = where_container(pod.spec, |c| c.at(&["securityContext", "privileged"]).as_bool() == Some(true));
    if names.is_empty() {
        return None;
    }
    finding("privileged", format!("{} must not set securityContext.privileged=true", named_containers(&names)))
}

pub(super) fn proc_mount(pod: Pod<'_>) -> Option<Finding> {
    let mut values = BTreeSet::new();
    let (_, names) = settings(pod.spec, "procMount").bad(|value| {
        let kind = value.as_str().unwrap_or_default();
        let bad = kind != "Default";
        bad && {
            values.insert(kind);
            true
        }
    });
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not set securityContext.procMount to {}", named_containers(&names), quoted_set(&values));
    finding("procMount", detail)
}

pub(super) fn proc_mount_unless_mapped(pod: Pod<'_>) -> Option<Finding> {
    unless_mapped(pod, proc_mount)
}

pub(super) fn se_linux_1_0(pod: Pod<'_>) -> Option<Finding> {
    se_linux(pod, &["", "container_t", "container_init_t", "container_kvm_t"])
}

pub(super) fn se_linux_1_31(pod: Pod<'_>) -> Option<Finding> {
    se_linux(pod, &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"])
}

fn se_linux(pod: Pod<'_>, allowed: &[&str]) -> Option<Finding> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let (of_pod, names) = settings(pod.spec, "seLinuxOptions").bad(|options| {
        let kind = options.str_at(&["type"]);
        let bad_type = !allowed.contains(&kind);
        if bad_type {
            types.insert(kind);
        }
        let (has_user, has_role) = (!options.str_at(&["user"]).is_empty(), !options.str_at(&["role"]).is_empty());
        user |= has_user;
        role |= has_role;
        bad_type || has_user || has_role
    });
    let who = setters(of_pod, &names)?;
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural("type", "types", types.len()), quoted_set(&types)));
    }
    if user {
        what.push("user may not be set".to_owned());
    }
    if role {
        what.push("role may not be set".to_owned());
    }
    finding("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")))
}

pub(super) fn seccomp_annotations(pod: Pod<'_>) -> Option<Finding> {
    let keys = std::iter::once(SECCOMP_POD_ANNOTATION.to_owned())
        .chain(containers(pod.spec).map(|c| format!("{SECCOMP_CONTAINER_ANNOTATION}{}", c.str_at(&["name"]))));
    let annotations = &pod.metadata["annotations"];
    let bad: BTreeSet<String> = keys
        .filter_map(|key| annotations[key.as_str()].as_str().map(|value| (key, value)))
        .filter(|(_, v)| !(matches!(*v, "runtime/default" | "docker/default") || v.starts_with("localhost/")))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", bad.len());
    finding("seccompProfile", format!("forbidden {word} {}", bad.into_iter().collect::<Vec<_>>().join(", ")))
}

pub(super) fn seccomp_baseline(pod: Pod<'_>) -> Option<Finding> {
    bad_seccomp(pod).and_then(|detail| finding("seccompProfile", detail))
}

pub(super) fn is_safe_seccomp(profile: &Value) -> bool {
    matches!(profile.str_at(&["type"]), "RuntimeDefault" | "Localhost")
}

/// Who asks for no profile.
pub(super) fn bad_seccomp(pod: Pod<'_>) -> Option<String> {
    let mut values = BTreeSet::new();
    let (of_pod, names) = settings(pod.spec, "seccompProfile").bad(|profile| {
        let bad = !is_safe_seccomp(profile);
        bad && {
            values.insert(profile.str_at(&["type"]));
            true
        }
    });
    let who = setters(of_pod, &names)?;
    Some(format!("{who} must not set securityContext.seccompProfile.type to {}", quoted_set(&values)))
}

pub(super) fn sysctls_1_0(pod: Pod<'_>) -> Option<Finding> {
    sysctls(pod, 0)
}

pub(super) fn sysctls_1_27(pod: Pod<'_>) -> Option<Finding> {
    sysctls(pod, 27)
}

pub(super) fn sysctls_1_29(pod: Pod<'_>) -> Option<Finding> {
    sysctls(pod, 29)
}

pub(super) fn sysctls_1_32(pod: Pod<'_>) -> Option<Finding> {
    sysctls(pod, 32)
}

fn sysctls(pod: Pod<'_>, minor: u32) -> Option<Finding> {
    let is_safe = |name: &str| SYSCTLS.iter().any(|(safe, since)| *safe == name && *since <= minor);
    let set = pod.spec.at(&["securityContext", "sysctls"]).items().iter().map(|s| s.str_at(&["name"]));
    let bad: Vec<_> = set.filter(|name| !is_safe(name)).collect();
    if bad.is_empty() { None } else { finding("forbidden sysctls", bad.join(", ")) }
}

pub(super) fn windows_host_process(pod: Pod<'_>) -> Option<Finding> {
    let (of_pod, names) =
        settings(pod.spec, "windowsOptions").bad(|options| options["hostProcess"].as_bool() == Some(true));
    let who = setters(of_pod, &names)?;
    finding("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
