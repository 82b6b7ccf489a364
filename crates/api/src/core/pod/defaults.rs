//! Defaults of a pod's spec and of the template that workloads hold: shared, so that a Pod and its template agree.

use apimachinery::Value;

use super::resources::aggregate;
use crate::validation::resources::may_overcommit;

/// Fills what a pod leaves out: what a template does too, and what only a pod needs to be complete.
pub(super) fn default_pod(pod: &mut Value) {
    let spec = pod.entry(&["spec"]);
    default_spec(spec);
    spec.set_default(&["enableServiceLinks"], true);
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list) else { continue };
        containers.items_mut().iter_mut().for_each(request_limits);
    }
    request_limits_of_pod(spec);
    if spec["hostNetwork"].as_bool() == Some(true) {
        for list in ["initContainers", "containers"] {
            let Some(containers) = spec.get_mut(list) else { continue };
            let ports = containers.items_mut().iter_mut().filter_map(|c| c.get_mut("ports"));
            ports.flat_map(|p| p.items_mut().iter_mut()).filter(|p| p["hostPort"].is_empty_value()).for_each(|port| {
                let number = port["containerPort"].clone();
                port.set(&["hostPort"], number);
            });
        }
    }
}

/// What is limited but not requested is requested to that limit.
fn request_limits(container: &mut Value) {
    let limits = container.at(&["resources", "limits"]).clone();
    for (name, limit) in &limits.entries().clone() {
        container.set_default(&["resources", "requests", name], limit.clone());
    }
}

/// For the pod as a whole: what its containers request together, else the limit.
fn request_limits_of_pod(spec: &mut Value) {
    let limits = spec.at(&["resources", "limits"]).clone();
    if limits.entries().is_empty() {
        return;
    }
    for name in ["cpu", "memory"] {
        let sum = aggregate(spec, "requests", name);
        if spec.at(&["resources", "requests", name]).is_null() && !sum.is_zero() && may_overcommit(name) {
            spec.set(&["resources", "requests", name], sum.to_string());
        }
    }
    for (name, limit) in
        limits.entries().iter().filter(|(n, _)| matches!(n.as_str(), "cpu" | "memory") || n.starts_with("hugepages-"))
    {
        spec.set_default(&["resources", "requests", name], limit.clone());
    }
}

/// Fills what a pod's spec leaves out, wherever it stands.
pub(crate) fn default_spec(spec: &mut Value) {
    for (field, value) in
        [("restartPolicy", "Always"), ("dnsPolicy", "ClusterFirst"), ("schedulerName", "default-scheduler")]
    {
        if spec.str_at(&[field]).is_empty() {
            spec.set(&[field], value);
        }
    }
    spec.set_default(&["terminationGracePeriodSeconds"], 30i64);
    spec.set_default(&["securityContext"], Value::object());
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let Some(containers) = spec.get_mut(list) else { continue };
        containers.items_mut().iter_mut().for_each(default_container);
    }
    if let Some(volumes) = spec.get_mut("volumes") {
        volumes.items_mut().iter_mut().for_each(default_volume);
    }
}

fn default_container(container: &mut Value) {
    for (field, value) in [("terminationMessagePath", "/dev/termination-log"), ("terminationMessagePolicy", "File")] {
        if container.str_at(&[field]).is_empty() {
            container.set(&[field], value);
        }
    }
    if container.str_at(&["imagePullPolicy"]).is_empty() {
        let policy = pull_policy(container.str_at(&["image"]));
        container.set(&["imagePullPolicy"], policy);
    }
    container.set_default(&["resources"], Value::object());
    if let Some(ports) = container.get_mut("ports") {
        for port in ports.items_mut().iter_mut().filter(|p| p.str_at(&["protocol"]).is_empty()) {
            port.set(&["protocol"], "TCP");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !container[probe].is_null() {
            default_probe(container.entry(&[probe]));
        }
    }
    for hook in ["postStart", "preStop"] {
        if !container.at(&["lifecycle", hook, "httpGet"]).is_null() {
            default_http_get(container.entry(&["lifecycle", hook, "httpGet"]));
        }
    }
    if let Some(env) = container.get_mut("env") {
        for source in env.items_mut().iter_mut().filter_map(|v| v.get_mut("valueFrom")) {
            default_reference(source);
        }
    }
}

/// References to fields of the pod and to amounts of its resources.
fn default_reference(source: &mut Value) {
    if !source["fieldRef"].is_null() && source.str_at(&["fieldRef", "apiVersion"]).is_empty() {
        source.set(&["fieldRef", "apiVersion"], "v1");
    }
    if !source["resourceFieldRef"].is_null() {
        source.set_default(&["resourceFieldRef", "divisor"], "0");
    }
}

fn pull_policy(image: &str) -> &'static str {
    if is_latest(image) { "Always" } else { "IfNotPresent" }
}

/// No tag, or the tag `latest`; a digest is neither.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn default_probe(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1i64), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe[field].as_i64().unwrap_or_default() == 0 {
            probe.set(&[field], value);
        }
    }
    if !probe["httpGet"].is_null() {
        default_http_get(probe.entry(&["httpGet"]));
    }
    if !probe["grpc"].is_null() {
        probe.set_default(&["grpc", "service"], "");
    }
}

fn default_http_get(get: &mut Value) {
    if get.str_at(&["path"]).is_empty() {
        get.set(&["path"], "/");
    }
    if get.str_at(&["scheme"]).is_empty() {
        get.set(&["scheme"], "HTTP");
    }
}

fn default_volume(volume: &mut Value) {
    if !volume.entries().iter().any(|(field, source)| field != "name" && !source.is_null()) {
        volume.set(&["emptyDir"], Value::object()); // a volume without a source is an empty directory
    }
    for (source, field, value) in VOLUME_DEFAULTS {
        if !volume[*source].is_null() && volume.at(&[*source, *field]).is_null() {
            let value: Value = match *value {
                Default::Text(text) => text.into(),
                Default::Number(number) => number.into(),
                Default::No => false.into(),
            };
            volume.set(&[*source, *field], value);
        }
    }
    if !volume["image"].is_null() && volume.str_at(&["image", "pullPolicy"]).is_empty() {
        let policy = pull_policy(volume.str_at(&["image", "reference"]));
        volume.set(&["image", "pullPolicy"], policy);
    }
    if let Some(items) = volume.get_mut("downwardAPI").and_then(|d| d.get_mut("items")) {
        items.items_mut().iter_mut().for_each(default_reference);
    }
    if let Some(sources) = volume.get_mut("projected").and_then(|p| p.get_mut("sources")) {
        for source in sources.items_mut() {
            if !source["serviceAccountToken"].is_null() {
                source.set_default(&["serviceAccountToken", "expirationSeconds"], 3600i64);
            }
            if !source["podCertificate"].is_null() {
                source.set_default(&["podCertificate", "maxExpirationSeconds"], 86400i64);
            }
            if let Some(items) = source.get_mut("downwardAPI").and_then(|d| d.get_mut("items")) {
                items.items_mut().iter_mut().for_each(default_reference);
            }
        }
    }
    if !volume.at(&["ephemeral", "volumeClaimTemplate"]).is_null() {
        volume.set_default(&["ephemeral", "volumeClaimTemplate", "spec", "volumeMode"], "Filesystem");
    }
}

enum Default {
    Text(&'static str),
    Number(i64),
    No,
}

const MODE: Default = Default::Number(0o644);

/// Source, field, and what the field is when it is left out.
const VOLUME_DEFAULTS: &[(&str, &str, Default)] = &[
    ("secret", "defaultMode", MODE),
    ("configMap", "defaultMode", MODE),
    ("downwardAPI", "defaultMode", MODE),
    ("projected", "defaultMode", MODE),
    ("hostPath", "type", Default::Text("")),
    ("iscsi", "iscsiInterface", Default::Text("default")),
    ("rbd", "pool", Default::Text("rbd")),
    ("rbd", "user", Default::Text("admin")),
    ("rbd", "keyring", Default::Text("/etc/ceph/keyring")),
    ("azureDisk", "cachingMode", Default::Text("ReadWrite")),
    ("azureDisk", "kind", Default::Text("Shared")),
    ("azureDisk", "fsType", Default::Text("ext4")),
    ("azureDisk", "readOnly", Default::No),
    ("scaleIO", "storageMode", Default::Text("ThinProvisioned")),
    ("scaleIO", "fsType", Default::Text("xfs")),
];

/// The template at a path of a workload.
pub(crate) fn default_template(object: &mut Value, path: &[&str]) {
    let template = object.entry(path);
    if !template["spec"].is_null() {
        default_spec(template.entry(&["spec"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_completed_as_upstream_does() {
        let mut spec: Value = serde_json::from_str(
            r#"{"containers":[{"name":"a","image":"web","ports":[{"containerPort":80}],
                "livenessProbe":{"httpGet":{"port":80}},"resources":{"limits":{"cpu":"1"}}}],
                "volumes":[{"name":"v"},{"name":"c","configMap":{"name":"x"}}]}"#,
        )
        .unwrap();
        default_spec(&mut spec);
        assert_eq!(spec.str_at(&["restartPolicy"]), "Always");
        let container = &spec["containers"].items()[0];
        assert_eq!(container.str_at(&["imagePullPolicy"]), "Always");
        assert_eq!(container["ports"].items()[0].str_at(&["protocol"]), "TCP");
        assert!(container.at(&["resources", "requests"]).is_null());
        assert_eq!(container["livenessProbe"]["periodSeconds"].as_i64(), Some(10));
        assert_eq!(container.str_at(&["livenessProbe", "httpGet", "path"]), "/");
        assert!(spec["volumes"].items()[0]["emptyDir"].as_object().is_some());
        assert_eq!(spec["volumes"].items()[1]["configMap"]["defaultMode"].as_i64(), Some(420));
        let once = spec.clone();
        default_spec(&mut spec);
        assert_eq!(spec, once);
        let mut pod = Value::from([("spec", spec)]);
        default_pod(&mut pod);
        assert_eq!(pod["spec"]["containers"].items()[0].str_at(&["resources", "requests", "cpu"]), "1");
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, latest) in
            [("a", true), ("a:latest", true), ("r:5000/a", true), ("a:1", false), ("a@sha256:1", false)]
        {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
