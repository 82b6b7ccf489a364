//! Service. Addresses and node ports are allocated by the apiserver.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct ServiceStrategy;

impl Strategy for ServiceStrategy {
    fn default(&self, service: &mut Value) {
        let spec = service.entry(&["spec"]);
        spec.set_default(&["type"], "ClusterIP");
        spec.set_default(&["sessionAffinity"], "None");
        if spec.str_at(&["sessionAffinity"]) == "ClientIP" {
            spec.set_default(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"], 10800i64);
        }
        let kind = spec.str_at(&["type"]).to_owned();
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            spec.set_default(&["externalTrafficPolicy"], "Cluster");
        }
        if kind != "ExternalName" {
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
    }

    fn prepare_for_create(&self, service: &mut Value) {
        service.set(&["status"], Value::from([("loadBalancer", Value::object())]));
    }

    fn validate(&self, service: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(service).field("spec");
        let ports = spec.field("ports");
        let headless = spec.str_at(&["clusterIP"]) == "None";
        if ports.items().is_empty() && !headless && spec.str_at(&["type"]) != "ExternalName" {
            errs.required(&ports.path, "");
        }
        let several = ports.items().len() > 1;
        for port in ports.elements() {
            if several && port.str_at(&["name"]).is_empty() {
                errs.required(&port.path.child("name"), "");
            }
            let number = port.field("port");
            if !(1..=65535).contains(&number.as_i64().unwrap_or_default()) {
                errs.invalid(&number, "must be between 1 and 65535, inclusive");
            }
            let protocol = port.field("protocol");
            if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str().unwrap_or_default()) {
                errs.not_supported(&protocol, &["SCTP", "TCP", "UDP"]);
            }
        }
        if spec.str_at(&["type"]) == "ExternalName" && spec.str_at(&["externalName"]).is_empty() {
            errs.required(&spec.path.child("externalName"), "");
        }
        errs
    }

    fn validate_update(&self, service: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(service);
        let (spec, was) = (Cursor::root(service).field("spec"), &old["spec"]);
        let external = |s: &Value| s.str_at(&["type"]) == "ExternalName";
        let (new_ips, old_ips) = (spec["clusterIPs"].items(), was["clusterIPs"].items());
        if !external(spec.value)
            && !external(was)
            && let (Some(new), Some(old)) = (new_ips.first(), old_ips.first())
            && new != old
        {
            let path = spec.field("clusterIPs").path.index(0);
            errs.invalid_value(&path, new_ips.to_vec(), "may not change once set");
        }
        errs
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
