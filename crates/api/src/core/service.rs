//! Service. Addresses and node ports are allocated by the apiserver.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::service_rules as rules;
use super::service_update as transitions;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_label, or_prefix};
use crate::validation::net::{cidr_warnings, ip_warning};

pub(crate) struct ServiceStrategy;

/// Affinity to a client lasts three hours unless told otherwise.
const AFFINITY_SECONDS: i64 = 10800;

const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

fn warnings(service: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let spec = Cursor::root(service).field("spec");
    let mut warn = |bad: bool, text: &str| {
        if bad {
            warnings.push(text.to_owned());
        }
    };
    let kind = spec.str_at(&["type"]);
    let headless = kind == "ClusterIP" && spec.str_at(&["clusterIP"]) == "None";
    let external_name = kind == "ExternalName";
    let (balancer, external) = (spec.field("loadBalancerIP"), spec.field("externalIPs"));
    let has_external = !external.items().is_empty();
    warn(
        service.annotation(TOPOLOGY_HINTS).is_some(),
        &format!("annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"),
    );
    warn(headless && !balancer.is_empty_value(), "spec.loadBalancerIP is ignored for headless services");
    warn(headless && has_external, "spec.externalIPs is ignored for headless services");
    let affine = spec.str_at(&["sessionAffinity"]) != "None";
    warn(headless && affine, "spec.SessionAffinity is ignored for headless services");
    for ip in spec.field("clusterIPs").elements().chain(external.elements()) {
        warnings.extend(ip_warning(&ip.path, ip.as_str().unwrap_or_default()));
    }
    if has_external && !headless && !external_name {
        warnings.push("spec.externalIPs is deprecated".to_owned());
    }
    warnings.extend(ip_warning(&balancer.path, balancer.as_str().unwrap_or_default()));
    for cidr in spec.field("loadBalancerSourceRanges").elements() {
        warnings.extend(cidr_warnings(&cidr.path, cidr.as_str().unwrap_or_default()));
    }
    if external_name && has_external {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external_name && !spec["externalName"].is_empty_value() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.str_at(&["trafficDistribution"]) == "PreferClose" {
        let text = "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"";
        warnings.push(text.to_owned());
    }
    warnings
}

impl Strategy for ServiceStrategy {
    fn default(&self, service: &mut Value) {
        let spec = service.entry(&["spec"]);
        spec.set_default(&["type"], "ClusterIP");
        spec.set_default(&["sessionAffinity"], "None");
        match spec.str_at(&["sessionAffinity"]) {
            "None" => {
                spec.remove(&["sessionAffinityConfig"]);
            }
            "ClientIP" => spec.set_default(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"], AFFINITY_SECONDS),
            _ => {}
        }
        if rules::is_reached_from_outside(spec) && spec.str_at(&["externalTrafficPolicy"]).is_empty() {
            spec.set(&["externalTrafficPolicy"], "Cluster");
        }
        let kind = spec.str_at(&["type"]).to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
            spec.set_default(&["internalTrafficPolicy"], "Cluster");
        }
        if kind == "LoadBalancer" {
            spec.set_default(&["allocateLoadBalancerNodePorts"], true);
        }
        if let Some(ports) = spec.get_mut("ports") {
            for port in ports.items_mut() {
                port.set_default(&["protocol"], "TCP");
                let target = &port["targetPort"];
                if target.is_null() || target.as_i64() == Some(0) || target.as_str() == Some("") {
                    let number = port["port"].clone();
                    port.set(&["targetPort"], number);
                }
            }
        }
        if kind == "LoadBalancer" && !service.at(&["status", "loadBalancer", "ingress"]).items().is_empty() {
            for ingress in service.entry(&["status", "loadBalancer", "ingress"]).items_mut() {
                if !ingress.str_at(&["ip"]).is_empty() {
                    ingress.set_default(&["ipMode"], "VIP");
                }
            }
        }
    }

    fn prepare_for_create(&self, service: &mut Value) {
        service.set(&["status"], Value::from([("loadBalancer", Value::object())]));
    }

    fn prepare_for_update(&self, service: &mut Value, old: &Value) {
        transitions::drop_what_no_longer_applies(service, old);
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        or_prefix(dns_label, name, prefix)
    }

    fn validate(&self, service: &Value) -> FieldErrors {
        rules::validate(service, &Value::Null)
    }

    fn validate_update(&self, service: &Value, old: &Value) -> FieldErrors {
        let mut errs = transitions::validate(service, old);
        errs.extend(rules::validate(service, old));
        errs
    }

    fn validate_status_update(&self, service: &Value, old: &Value) -> FieldErrors {
        rules::validate_status(service, old)
    }

    fn warnings(&self, service: &Value, _: Option<&Value>) -> Vec<String> {
        warnings(service)
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("spec.clusterIP", &["spec", "clusterIP"]), ("spec.type", &["spec", "type"])]
    }

    fn row(&self, service: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &service["spec"];
        let kind = spec.str_at(&["type"]);
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        let given: Vec<&str> = spec["externalIPs"].items().iter().filter_map(Value::as_str).collect();
        let balanced: Vec<&str> = service
            .at(&["status", "loadBalancer", "ingress"])
            .items()
            .iter()
            .map(|i| if i.str_at(&["ip"]).is_empty() { i.str_at(&["hostname"]) } else { i.str_at(&["ip"]) })
            .collect();
        let external = match kind {
            "ExternalName" => or(spec.str_at(&["externalName"]), "<none>"),
            "LoadBalancer" => or(&[balanced, given].concat().join(","), "<pending>"),
            _ => or(&given.join(","), "<none>"),
        };
        let ports: Vec<String> = spec["ports"]
            .items()
            .iter()
            .map(|p| {
                let (port, protocol) = (p["port"].as_i64().unwrap_or_default(), p.str_at(&["protocol"]));
                match p["nodePort"].as_i64().filter(|n| *n > 0) {
                    Some(node) => format!("{port}:{node}/{protocol}"),
                    None => format!("{port}/{protocol}"),
                }
            })
            .collect();
        Some(vec![
            service.name().into(),
            kind.into(),
            or(spec.str_at(&["clusterIP"]), "<none>").into(),
            external.into(),
            or(&ports.join(","), "<none>").into(),
            table_cells::created(service, now),
            table_cells::labels(&spec["selector"]).into(),
        ])
    }
}
