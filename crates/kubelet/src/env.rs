//! The environment of a container: its sources in order, Service variables, and `$(VAR)` references. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Service};

use crate::env_file::EnvFiles;

/// What a container's environment draws from besides the pod itself.
pub(crate) struct Sources<'a> {
    pub config_maps: &'a BTreeMap<String, BTreeMap<String, String>>,
    pub secrets: &'a BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Files of variables in the pod's volumes; they are read for one container at a time.
    pub files: &'a EnvFiles,
    pub services: &'a [std::sync::Arc<Service>],
    pub host_ips: &'a [String],
    pub pod_ips: &'a [String],
    pub node_name: &'a str,
    /// cpu (milli), memory and ephemeral storage (bytes) that stand for limits which are not set.
    pub node_cpu_milli: i64,
    pub node_memory: i64,
    pub node_storage: i64,
}

/// A container that cannot be made as it stands; the text is the message of `CreateContainerConfigError`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct EnvError(pub String);

type Vars = Vec<(String, String)>;

/// All variables, later ones of a name replacing earlier ones in place.
pub(crate) fn environment(pod: &Pod, container: &Container, from: &Sources<'_>) -> Result<Vars, EnvError> {
    let enable_links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let services = service_variables(from.services, namespace, enable_links);
    let mut vars: Vars = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match from.config_maps.get(&reference.name) {
                Some(data) => data.iter().for_each(|(k, v)| set(&mut vars, format!("{prefix}{k}"), v.clone())),
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError(format!("configmap \"{}\" not found", reference.name))),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match from.secrets.get(&reference.name) {
                Some(data) => {
                    for (k, v) in data {
                        set(&mut vars, format!("{prefix}{k}"), String::from_utf8_lossy(v).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError(format!("secret \"{}\" not found", reference.name))),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), None) => Some(expand(text, |name| lookup(&vars, &services, name))),
            (_, Some(source)) => value_from(pod, container, source, from)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut vars, var.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !vars.iter().any(|(n, _)| *n == name) {
            vars.push((name, value));
        }
    }
    Ok(vars)
}

fn set(vars: &mut Vars, name: String, value: String) {
    match vars.iter_mut().find(|(n, _)| *n == name) {
        Some(var) => var.1 = value,
        None => vars.push((name, value)),
    }
}

fn lookup<'a>(vars: &'a Vars, services: &'a Vars, name: &str) -> Option<&'a str> {
    vars.iter().chain(services).find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

fn value_from(
    pod: &Pod,
    container: &Container,
    source: &k8s_openapi::api::core::v1::EnvVarSource,
    from: &Sources<'_>,
) -> Result<Option<String>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, from).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        let named = resource.container_name.as_deref().filter(|n| !n.is_empty());
        let all = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        let container = named.map_or(Some(container), |n| all.into_iter().find(|c| c.name == n));
        let container =
            container.ok_or_else(|| EnvError(format!("container {} not found", named.unwrap_or_default())))?;
        let divisor = resource.divisor.as_ref().map_or("0", |q| q.0.as_str());
        return resource_value(container, &resource.resource, divisor, from).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(data) = from.config_maps.get(&key.name) else {
            return if optional { Ok(None) } else { Err(EnvError(format!("configmap \"{}\" not found", key.name))) };
        };
        return match data.get(&key.key) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name))),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(data) = from.secrets.get(&key.name) else {
            return if optional { Ok(None) } else { Err(EnvError(format!("secret \"{}\" not found", key.name))) };
        };
        return match data.get(&key.key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(EnvError(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name))),
        };
    }
    if let Some(file) = &source.file_key_ref {
        let optional = file.optional == Some(true);
        let read = from.files.get(&(file.volume_name.clone(), file.path.clone()));
        return match read.map(|r| r.as_ref().map(|vars| vars.get(&file.key))) {
            Some(Ok(Some(value))) => Ok(Some(value.clone())),
            _ if optional => Ok(None),
            Some(Err(why)) => Err(EnvError(why.clone())),
            _ => Err(EnvError(format!("environment variable key {:?} not found in file {:?}", file.key, file.path))),
        };
    }
    Ok(None)
}

/// A field of the pod, for variables and downward API volumes.
pub(crate) fn field_value(pod: &Pod, path: &str, from: &Sources<'_>) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    if let Some((field, key)) = path.split_once("['").and_then(|(f, k)| Some((f, k.strip_suffix("']")?))) {
        let map = match field {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(EnvError(format!("unsupported fieldPath: {path}"))),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => map_lines(meta.labels.as_ref()),
        "metadata.annotations" => map_lines(meta.annotations.as_ref()),
        "spec.nodeName" => from.node_name.to_owned(),
        "spec.serviceAccountName" => spec.map(|s| text(&s.service_account_name)).unwrap_or_default(),
        "status.hostIP" => from.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => from.host_ips.join(","),
        "status.podIP" => from.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => from.pod_ips.join(","),
        _ => return Err(EnvError(format!("unsupported fieldPath: {path}"))),
    })
}

/// `key="value"` lines with Go's quoting, as downward API volumes hold maps.
fn map_lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// A request or limit of a container in units of `divisor`, rounded up; the node's capacity for a limit that is not set.
pub(crate) fn resource_value(
    container: &Container,
    resource: &str,
    divisor: &str,
    from: &Sources<'_>,
) -> Result<String, EnvError> {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let (which, name) = resource.split_once('.').unwrap_or(("", resource));
    let r = container.resources.as_ref();
    let list = match which {
        "limits" => r.and_then(|r| r.limits.as_ref()),
        "requests" => r.and_then(|r| r.requests.as_ref()),
        _ => return Err(EnvError(format!("unsupported container resource : {resource}"))),
    };
    let set = list.and_then(|l| l.get(name));
    let milli = match set {
        Some(q) => crate::cgroups::milli(q).unwrap_or_default(),
        None => match (which, name) {
            ("limits", "cpu") => from.node_cpu_milli,
            ("limits", "memory") => from.node_memory.saturating_mul(1000),
            ("limits", "ephemeral-storage") => from.node_storage.saturating_mul(1000),
            _ => 0,
        },
    };
    let unit = match divisor {
        "" | "0" => 1000,
        d => crate::cgroups::milli(&Quantity(d.to_owned())).filter(|d| *d > 0).unwrap_or(1000),
    };
    Ok((milli.saturating_add(unit - 1) / unit).to_string())
}

/// `WEB_SERVICE_HOST` and its like for the Services of the namespace, and always for `kubernetes` of `default`.
fn service_variables(services: &[std::sync::Arc<Service>], namespace: &str, links: bool) -> Vars {
    let mut vars = Vec::new();
    for service in services {
        let meta = &service.metadata;
        let (name, ns) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
        let is_master = ns == "default" && name == "kubernetes";
        if !(is_master || links && ns == namespace) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let Some(first) = spec.ports.iter().flatten().next() else { continue };
        let prefix = name.to_uppercase().replace('-', "_");
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        vars.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        vars.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in spec.ports.iter().flatten() {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                let port_name = port_name.to_uppercase().replace('-', "_");
                vars.push((format!("{prefix}_SERVICE_PORT_{port_name}"), port.port.to_string()));
            }
        }
        let protocol =
            |p: &k8s_openapi::api::core::v1::ServicePort| p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        vars.push((format!("{prefix}_PORT"), format!("{}://{host}:{}", protocol(first).to_lowercase(), first.port)));
        for port in spec.ports.iter().flatten() {
            let base = format!("{prefix}_PORT_{}_{}", port.port, protocol(port).to_uppercase());
            vars.push((base.clone(), format!("{}://{host}:{}", protocol(port).to_lowercase(), port.port)));
            vars.push((format!("{base}_PROTO"), protocol(port).to_lowercase()));
            vars.push((format!("{base}_PORT"), port.port.to_string()));
            vars.push((format!("{base}_ADDR"), ip.to_owned()));
        }
    }
    vars
}

/// Replaces `$(NAME)` where NAME is known; `$$` is a dollar; everything else stays.
pub(crate) fn expand<'a>(text: &str, known: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|r| r.split_once(')')) {
            match known(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(container: serde_json::Value) -> Result<Vars, EnvError> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "prod", "labels": {"app": "web"}}, "spec": {"containers": []}}))
        .unwrap();
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-db", "namespace": "prod"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "sql", "port": 5432}]}}))
        .unwrap();
        let config_maps = BTreeMap::from([("cm".to_owned(), BTreeMap::from([("k".to_owned(), "v".to_owned())]))]);
        environment(
            &pod,
            &serde_json::from_value(container).unwrap(),
            &Sources {
                config_maps: &config_maps,
                secrets: &BTreeMap::new(),
                files: &EnvFiles::from([(
                    ("v".to_owned(), "env".to_owned()),
                    Ok(BTreeMap::from([("K".to_owned(), "from a file".to_owned())])),
                )]),
                services: &[service.into()],
                host_ips: &["192.0.2.1".to_owned()],
                pod_ips: &["10.244.0.2".to_owned()],
                node_name: "n1",
                node_cpu_milli: 2000,
                node_memory: 1 << 30,
                node_storage: 5 << 30,
            },
        )
    }

    fn get(container: serde_json::Value, name: &str) -> Option<String> {
        env(container).unwrap().into_iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    #[test]
    fn values_come_from_all_sources_and_later_ones_win() {
        let container = serde_json::json!({"name": "c",
            "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "cm"}}],
            "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2$(NONE)$$(A)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                {"name": "DISK", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage", "divisor": "1Gi"}}},
                {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "K"}}},
                {"name": "URL", "value": "$(MY_DB_SERVICE_HOST):$(MY_DB_SERVICE_PORT)"}]});
        let check = |name: &str, want: &str| assert_eq!(get(container.clone(), name).as_deref(), Some(want));
        check("CM_k", "v");
        check("A", "12$(NONE)$(A)");
        check("IP", "10.244.0.2");
        check("APP", "web");
        check("CPU", "2000");
        check("DISK", "5");
        check("FILE", "from a file");
        check("URL", "10.96.0.9:5432");
        check("MY_DB_PORT_5432_TCP_ADDR", "10.96.0.9");
    }

    #[test]
    fn what_is_missing_is_named_unless_it_is_optional() {
        let with = |optional: bool| {
            env(serde_json::json!({"name": "c", "env": [{"name": "A", "valueFrom":
                {"configMapKeyRef": {"name": "cm", "key": "none", "optional": optional}}}]}))
        };
        assert_eq!(with(false), Err(EnvError("couldn't find key none in ConfigMap prod/cm".into())));
        assert!(with(true).unwrap().iter().all(|(n, _)| n != "A"));
        let file = env(serde_json::json!({"name": "c", "env": [{"name": "A", "valueFrom":
            {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "none"}}}]}));
        assert_eq!(file, Err(EnvError("environment variable key \"none\" not found in file \"env\"".into())));
        let secret = env(serde_json::json!({"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}));
        assert_eq!(secret, Err(EnvError("secret \"s\" not found".into())));
    }
}
