//! Kernel parameters of pods: those that are safe to give to anybody, and those that a node must have been told to allow.
//! Pure.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Upstream's list of parameters that bound nothing but their own pod.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// What the namespaces of IPC and of the network hold.
const IPC: &[&str] = &["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."];
const NETWORK: &[&str] = &["net."];

/// `net/ipv4/conf/eth0.1/x` in the form with dots. Which separator comes first decides, as for sysctl(8).
pub(crate) fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Why the node does not take a pod with these parameters. `allowed` has names, and beginnings of names with `*`.
pub(super) fn forbidden(pod: &Pod, allowed: &[String]) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let all = spec.security_context.as_ref()?.sysctls.iter().flatten();
    all.map(|s| dotted(&s.name)).find_map(|name| objection(spec, &name, allowed))
}

fn objection(spec: &PodSpec, name: &str, allowed: &[String]) -> Option<String> {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    if !SAFE.contains(&name) && !allowed.iter().any(|pattern| matches(&dotted(pattern))) {
        return Some(format!("forbidden sysctl: {name:?} not allowlisted"));
    }
    let within = |names: &[&str]| names.iter().any(|start| name.starts_with(start));
    if within(NETWORK) && spec.host_network == Some(true) {
        return Some(format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
    }
    if within(IPC) && spec.host_ipc == Some(true) {
        return Some(format!("forbidden sysctl: {name:?} not allowed with host ipc enabled"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_and_allowed_parameters_are_taken() {
        let check = |spec: serde_json::Value, name: &str, want: Option<&str>| {
            let mut spec = spec;
            spec["containers"] = serde_json::json!([]);
            spec["securityContext"] = serde_json::json!({"sysctls": [{"name": name, "value": "1"}]});
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
            let allowed = ["kernel.msg*".to_owned(), "net/core/somaxconn".to_owned()];
            assert_eq!(forbidden(&pod, &allowed).as_deref(), want, "{name}");
        };
        let plain = || serde_json::json!({});
        check(plain(), "kernel.shm_rmid_forced", None);
        check(plain(), "kernel/shm_rmid_forced", None);
        check(plain(), "kernel.msgmax", None);
        check(plain(), "net.core.somaxconn", None);
        check(plain(), "kernel.sem", Some("forbidden sysctl: \"kernel.sem\" not allowlisted"));
        let host = serde_json::json!({"hostNetwork": true, "hostIPC": true});
        let words = "forbidden sysctl: \"kernel.msgmax\" not allowed with host ipc enabled";
        check(host.clone(), "kernel.msgmax", Some(words));
        let words = "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled";
        check(host, "net.ipv4.tcp_syncookies", Some(words));
        assert_eq!(dotted("net/ipv4/conf/eth0.1/x"), "net.ipv4.conf.eth0/1.x");
    }
}
