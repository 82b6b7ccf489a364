//! Defaults of a pod's spec and of the template that workloads hold: shared, so that a Pod and its template agree.

use apimachinery::Value;

/// Fills what a pod's spec leaves out.
pub(crate) fn default_spec(spec: &mut Value) {
    spec.set_default(&["restartPolicy"], "Always");
    spec.set_default(&["terminationGracePeriodSeconds"], 30i64);
    spec.set_default(&["dnsPolicy"], "ClusterFirst");
    spec.set_default(&["schedulerName"], "default-scheduler");
    spec.set_default(&["securityContext"], Value::object());
    let host_network = spec["hostNetwork"].as_bool() == Some(true);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let Some(containers) = spec.get_mut(list) else { continue };
        for container in containers.items_mut() {
            default_container(container, host_network);
        }
    }
    if let Some(volumes) = spec.get_mut("volumes") {
        volumes.items_mut().iter_mut().for_each(default_volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    container.set_default(&["terminationMessagePath"], "/dev/termination-log");
    container.set_default(&["terminationMessagePolicy"], "File");
    if container["imagePullPolicy"].is_null() {
        let policy = if is_latest(container.str_at(&["image"])) { "Always" } else { "IfNotPresent" };
        container.set(&["imagePullPolicy"], policy);
    }
    container.set_default(&["resources"], Value::object());
    if let Some(ports) = container.get_mut("ports") {
        for port in ports.items_mut() {
            port.set_default(&["protocol"], "TCP");
            if host_network && port["hostPort"].is_null() {
                let number = port["containerPort"].clone();
                port.set(&["hostPort"], number);
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container.get(probe).is_some_and(|p| !p.is_null()) {
            default_probe(container.entry(&[probe]));
        }
    }
    for hook in ["postStart", "preStop"] {
        if !container.at(&["lifecycle", hook, "httpGet"]).is_null() {
            default_http_get(container.entry(&["lifecycle", hook, "httpGet"]));
        }
    }
    if let Some(env) = container.get_mut("env") {
        for var in env.items_mut() {
            if !var.at(&["valueFrom", "fieldRef"]).is_null() {
                var.set_default(&["valueFrom", "fieldRef", "apiVersion"], "v1");
            }
            if !var.at(&["valueFrom", "resourceFieldRef"]).is_null() {
                var.set_default(&["valueFrom", "resourceFieldRef", "divisor"], "0");
            }
        }
    }
    // What is limited but not requested is requested to that limit.
    let limits = container.at(&["resources", "limits"]).clone();
    for (name, limit) in &limits.entries().clone() {
        container.set_default(&["resources", "requests", name], limit.clone());
    }
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
    const MODE: i64 = 0o644;
    let sources = volume.entries().len();
    if sources <= 1 && volume.get("emptyDir").is_none() {
        volume.set(&["emptyDir"], Value::object()); // a volume without a source is an empty directory
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if volume.get(source).is_some_and(|s| !s.is_null()) {
            volume.set_default(&[source, "defaultMode"], MODE);
        }
    }
    if !volume["hostPath"].is_null() {
        volume.set_default(&["hostPath", "type"], "");
    }
    if !volume["iscsi"].is_null() {
        volume.set_default(&["iscsi", "iscsiInterface"], "default");
    }
    let field_refs = |items: &mut Value| {
        for item in items.items_mut() {
            if !item["fieldRef"].is_null() {
                item.set_default(&["fieldRef", "apiVersion"], "v1");
            }
            if !item["resourceFieldRef"].is_null() {
                item.set_default(&["resourceFieldRef", "divisor"], "0");
            }
        }
    };
    if let Some(items) = volume.get_mut("downwardAPI").and_then(|d| d.get_mut("items")) {
        field_refs(items);
    }
    if let Some(sources) = volume.get_mut("projected").and_then(|p| p.get_mut("sources")) {
        for source in sources.items_mut() {
            if !source["serviceAccountToken"].is_null() {
                source.set_default(&["serviceAccountToken", "expirationSeconds"], 3600i64);
            }
            if let Some(items) = source.get_mut("downwardAPI").and_then(|d| d.get_mut("items")) {
                field_refs(items);
            }
        }
    }
    if !volume.at(&["ephemeral", "volumeClaimTemplate"]).is_null() {
        volume.set_default(&["ephemeral", "volumeClaimTemplate", "spec", "volumeMode"], "Filesystem");
    }
}

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
        assert_eq!(container.str_at(&["resources", "requests", "cpu"]), "1");
        assert_eq!(container["livenessProbe"]["periodSeconds"].as_i64(), Some(10));
        assert_eq!(container.str_at(&["livenessProbe", "httpGet", "path"]), "/");
        assert!(spec["volumes"].items()[0]["emptyDir"].as_object().is_some());
        assert_eq!(spec["volumes"].items()[1]["configMap"]["defaultMode"].as_i64(), Some(420));
        let once = spec.clone();
        default_spec(&mut spec);
        assert_eq!(spec, once);
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
