//! What a Service must be like.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use crate::validation::labels::label_map;
use crate::validation::names::{dns_label, dns_subdomain, qualified_name};
use crate::validation::net::{family, legacy_cidr, legacy_ip, parse_ip_sloppy, port, port_or_name, special_ip};
use crate::validation::{Checks, int, text};

const KUBELET_PORT: i64 = 10250;
/// The longest that affinity to a client may last, in seconds.
const MAX_AFFINITY: i64 = 86400;
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const LOAD_BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn is_headless(spec: &Value) -> bool {
    matches!(spec["clusterIPs"].items(), [only] if only.as_str() == Some("None"))
}

pub(super) fn is_reached_from_outside(spec: &Value) -> bool {
    match spec.str_at(&["type"]) {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec["externalIPs"].items().is_empty(),
        _ => false,
    }
}

/// Its load balancer must find out on which nodes there are endpoints.
pub(super) fn needs_health_check(spec: &Value) -> bool {
    spec.str_at(&["type"]) == "LoadBalancer" && spec.str_at(&["externalTrafficPolicy"]) == "Local"
}

fn strings(list: &Value) -> Vec<&str> {
    list.items().iter().filter_map(Value::as_str).collect()
}

/// `old` is null for a new Service.
pub(super) fn validate(service: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(service).field("spec");
    topology(service, &mut errs);
    if spec["ports"].items().is_empty() && !is_headless(&spec) && spec.str_at(&["type"]) != "ExternalName" {
        errs.required(&spec.path.child("ports"), "");
    }
    by_type(&spec, &mut errs);
    ports(&spec, &mut errs);
    label_map(&mut errs, &spec.field("selector"));
    affinity(&spec, &mut errs);
    errs.extend(validate_addresses(service, old));
    let known = strings(&old["spec"]["externalIPs"]);
    for ip in spec.field("externalIPs").elements() {
        let before = errs.0.len();
        legacy_ip(&mut errs, &ip, &known);
        if errs.0.len() == before {
            errs.each(&ip, special_ip(text(&ip)));
        }
    }
    let kind = spec.field("type");
    errs.one_of(&kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    repeated_ports(&spec, &mut errs);
    source_ranges(service, old, &mut errs);
    balancer_fields(&spec, &mut errs);
    traffic(&spec, &mut errs);
    errs
}

fn topology(service: &Value, errs: &mut FieldErrors) {
    if let (Some(hints), Some(mode)) = (service.annotation(TOPOLOGY_HINTS), service.annotation(TOPOLOGY_MODE))
        && hints != mode
    {
        let path = Path::new("metadata.annotations").key(TOPOLOGY_MODE);
        errs.invalid_value(&path, mode, format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified"));
    }
}

fn by_type(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let first_ip = spec.path.child("clusterIPs").index(0);
    match spec.str_at(&["type"]) {
        kind @ ("LoadBalancer" | "NodePort") => {
            if kind == "LoadBalancer" {
                for port in spec.field("ports").elements().filter(|p| int(&p["port"]) == KUBELET_PORT) {
                    let why = format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                    errs.invalid_value(&port.path, KUBELET_PORT, why);
                }
            }
            if is_headless(spec) {
                errs.invalid_value(&first_ip, "None", format!("may not be set to 'None' for {kind} services"));
            }
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !spec[field].is_empty_value() {
                    errs.forbidden(&spec.path.child(field), "may not be set for ExternalName services");
                }
            }
            let name = spec.field("externalName");
            let host = text(&name).strip_suffix('.').unwrap_or(text(&name));
            if host.is_empty() {
                errs.required(&name.path, "");
            } else {
                for message in dns_subdomain(host) {
                    errs.invalid_value(&name.path, host, message);
                }
            }
        }
        _ => {}
    }
}

fn ports(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let ports = spec.field("ports");
    let several = ports.items().len() > 1;
    let mut names: Vec<&str> = Vec::new();
    for at in ports.elements() {
        let name = at.field("name");
        match text(&name) {
            "" if several => errs.required(&name.path, ""),
            "" => {}
            given => {
                errs.each(&name, dns_label(given));
                if names.contains(&given) {
                    errs.duplicate(&name.path, given);
                }
                names.push(given);
            }
        }
        port(errs, &at.field("port"));
        let protocol = at.field("protocol");
        errs.one_of(&protocol, PROTOCOLS);
        port_or_name(errs, &at.field("targetPort"));
        let application = at.field("appProtocol");
        if !application.is_absent() {
            errs.each(&application, qualified_name(text(&application)));
        }
    }
}

fn affinity(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let affinity = spec.field("sessionAffinity");
    if !errs.one_of(&affinity, &["ClientIP", "None"]) {
        return;
    }
    let config = spec.field("sessionAffinityConfig");
    if text(&affinity) == "None" {
        if !config.is_absent() {
            errs.forbidden(&config.path, "must not be set when session affinity is None");
        }
        return;
    }
    let seconds = config.fields(&["clientIP", "timeoutSeconds"]);
    if !(1..=MAX_AFFINITY).contains(&int(&seconds)) {
        errs.invalid_int(&seconds, format!("must be greater than 0 and less than {MAX_AFFINITY}"));
    }
}

/// The rules of cluster IPs and their families, which hold before anything is allocated too.
pub(super) fn validate_addresses(service: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(service).field("spec");
    if spec.str_at(&["type"]) == "ExternalName" {
        return errs;
    }
    let (one, many) = (spec.str_at(&["clusterIP"]), spec.field("clusterIPs"));
    let all = strings(&many);
    match (one, all.first()) {
        ("", Some(_)) => errs.invalid(&many, "must be empty when `clusterIP` is not specified"),
        ("", None) => {}
        (_, None) => errs.required(&many.path, ""),
        (one, Some(first)) if *first != one => errs.invalid(&many, "first value must match `clusterIP`"),
        _ => {}
    }
    let families = spec.field("ipFamilies");
    let names = strings(&families);
    for (i, family) in families.elements().enumerate() {
        errs.one_of(&family, &["IPv4", "IPv6"]);
        if names[..i.min(names.len())].contains(&text(&family)) {
            errs.duplicate(&family.path, text(&family));
        }
    }
    let policy = spec.field("ipFamilyPolicy");
    if !policy.is_absent() {
        errs.one_of(&policy, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    }
    let known = strings(&old["spec"]["clusterIPs"]);
    let before = errs.0.len();
    for (i, ip) in many.elements().enumerate() {
        if i == 0 && text(&ip) == "None" {
            if all.len() > 1 {
                errs.invalid(&many, "'None' must be the first and only value");
            }
        } else {
            legacy_ip(&mut errs, &ip, &known);
        }
    }
    let bad_ips = errs.0.len() > before;
    if all.len() > 2 {
        errs.invalid(&many, "may only hold up to 2 values");
    }
    if bad_ips {
        return errs;
    }
    if all.len() > 1 && all.iter().all(|ip| family(ip) == family(all[0])) {
        errs.invalid(&many, "may specify no more than one IP for each IP family");
    }
    if !is_headless(&spec) {
        for (i, (ip, wanted)) in many.elements().zip(&names).enumerate() {
            let actual = family(text(&ip));
            if matches!(*wanted, "IPv4" | "IPv6") && actual != *wanted {
                errs.invalid(&ip, format!("expected an {wanted} value as indicated by `ipFamilies[{i}]`"));
            }
        }
    }
    errs
}

fn repeated_ports(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let ports = spec.field("ports");
    if spec.str_at(&["type"]) == "ClusterIP" {
        for port in ports.elements().filter(|p| int(&p["nodePort"]) != 0) {
            errs.forbidden(&port.path.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    let key = |port: &Value, number: &str| (port.str_at(&["protocol"]).to_owned(), int(&port[number]));
    for (i, port) in ports.elements().enumerate() {
        let before = &ports.items()[..i];
        let node = key(&port, "nodePort");
        if node.1 != 0 && before.iter().any(|p| key(p, "nodePort") == node) {
            errs.duplicate(&port.path.child("nodePort"), node.1);
        }
        let own = key(&port, "port");
        if before.iter().any(|p| key(p, "port") == own) {
            let shown = Value::from([("protocol", own.0.into()), ("port", own.1.into()), ("targetPort", 0.into())]);
            errs.duplicate_struct(&Cursor::new(port.path.clone(), &shown), "");
        }
    }
}

fn source_ranges(service: &Value, old: &Value, errs: &mut FieldErrors) {
    let ranges = service["spec"]["loadBalancerSourceRanges"].items();
    let balanced = service.str_at(&["spec", "type"]) == "LoadBalancer";
    if !ranges.is_empty() {
        let path = Path::new("spec.LoadBalancerSourceRanges");
        if !balanced {
            errs.forbidden(&path, LOAD_BALANCER_ONLY);
        }
        let known = strings(&old["spec"]["loadBalancerSourceRanges"]);
        for (i, range) in ranges.iter().enumerate() {
            let trimmed = Value::from(range.as_str().unwrap_or_default().trim());
            legacy_cidr(errs, &Cursor::new(path.index(i), &trimmed), &known);
        }
    } else if let Some(list) = service.annotation(SOURCE_RANGES) {
        let path = Path::new("metadata.annotations").key(SOURCE_RANGES);
        if !balanced {
            errs.forbidden(&path, LOAD_BALANCER_ONLY);
        }
        if old.annotation(SOURCE_RANGES) != Some(list) && !list.trim().is_empty() {
            for range in list.split(',') {
                legacy_cidr(errs, &Cursor::new(path.clone(), &Value::from(range.trim())), &[]);
            }
        }
    }
}

fn balancer_fields(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let balanced = spec.str_at(&["type"]) == "LoadBalancer";
    let allocate = spec.field("allocateLoadBalancerNodePorts");
    match (balanced, allocate.is_absent()) {
        (true, true) => errs.required(&allocate.path, ""),
        (false, false) => errs.forbidden(&allocate.path, LOAD_BALANCER_ONLY),
        _ => {}
    }
    let class = spec.field("loadBalancerClass");
    if !class.is_absent() {
        if balanced {
            errs.each(&class, qualified_name(text(&class)));
        } else {
            errs.forbidden(&class.path, LOAD_BALANCER_ONLY);
        }
    }
}

fn traffic(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    const POLICIES: &[&str] = &["Cluster", "Local"];
    let external = spec.field("externalTrafficPolicy");
    if is_reached_from_outside(spec) {
        if errs.present(&external, "") {
            errs.one_of(&external, POLICIES);
        }
    } else if !text(&external).is_empty() {
        errs.invalid(&external, "may only be set for externally-accessible services");
    }
    let health = spec.field("healthCheckNodePort");
    if !needs_health_check(spec) {
        if int(&health) != 0 {
            errs.invalid(
                &health,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    } else if errs.present(&health, "") {
        port(errs, &health);
    }
    let internal = spec.field("internalTrafficPolicy");
    let inside = matches!(spec.str_at(&["type"]), "ClusterIP" | "NodePort" | "LoadBalancer");
    if internal.is_absent() {
        if inside {
            errs.required(&internal.path, "");
        }
    } else {
        errs.one_of(&internal, POLICIES);
    }
    let distribution = spec.field("trafficDistribution");
    if !distribution.is_absent() {
        errs.one_of(&distribution, &["PreferClose", "PreferSameNode", "PreferSameZone"]);
    }
}

pub(super) fn validate_status(service: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let balanced = service.str_at(&["spec", "type"]) == "LoadBalancer";
    let ingress = Cursor::root(service).fields(&["status", "loadBalancer", "ingress"]);
    if !balanced && !ingress.items().is_empty() {
        errs.forbidden(&ingress.path, "may only be used when `spec.type` is LoadBalancer");
        return errs;
    }
    let held = old.at(&["status", "loadBalancer", "ingress"]);
    let known: Vec<&str> = held.items().iter().map(|i| i.str_at(&["ip"])).filter(|ip| !ip.is_empty()).collect();
    for point in ingress.elements() {
        let (ip, mode, host) = (point.field("ip"), point.field("ipMode"), point.field("hostname"));
        if !text(&ip).is_empty() {
            legacy_ip(&mut errs, &ip, &known);
        }
        match (mode.is_absent(), text(&ip).is_empty()) {
            (true, false) => errs.required(&mode.path, "must be specified when `ip` is set"),
            (false, true) => errs.forbidden(&mode.path, "may not be specified when `ip` is not set"),
            (false, false) => {
                errs.one_of(&mode, &["Proxy", "VIP"]);
            }
            (true, true) => {}
        }
        if !text(&host).is_empty() {
            errs.each(&host, dns_subdomain(text(&host)));
            if parse_ip_sloppy(text(&host)).is_some() {
                errs.invalid(&host, "must be a DNS name, not an IP address");
            }
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(spec: &str, want: &[&str]) {
        let service = serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap();
        assert_findings(&validate(&service, &Value::Null), want);
    }

    const GOOD: &str = r#""sessionAffinity":"None","internalTrafficPolicy":"Cluster""#;

    #[test]
    fn addresses_fit_their_families() {
        let spec = |ips: &str, families: &str| {
            format!(
                r#"{{"type":"ClusterIP",{GOOD},"ports":[{{"port":1,"targetPort":1,"protocol":"TCP"}}],"clusterIP":"10.0.0.1","clusterIPs":{ips},"ipFamilies":{families}}}"#
            )
        };
        check(&spec(r#"["10.0.0.1"]"#, r#"["IPv4"]"#), &[]);
        check(
            &spec(r#"["10.0.0.1"]"#, r#"["IPv6"]"#),
            &[
                r#"spec.clusterIPs[0]: Invalid value: "10.0.0.1": expected an IPv6 value as indicated by `ipFamilies[0]`"#,
            ],
        );
        check(
            &spec(r#"["10.0.0.1","10.0.0.2"]"#, "[]"),
            &[
                r#"spec.clusterIPs: Invalid value: ["10.0.0.1","10.0.0.2"]: may specify no more than one IP for each IP family"#,
            ],
        );
    }

    #[test]
    fn an_external_name_has_no_addresses() {
        check(
            &format!(r#"{{"type":"ExternalName",{GOOD},"externalName":"a.b.","clusterIPs":["10.0.0.1"]}}"#),
            &["spec.clusterIPs: Forbidden: may not be set for ExternalName services"],
        );
    }

    #[test]
    fn a_load_balancer_has_its_own_fields() {
        check(
            &format!(
                r#"{{"type":"LoadBalancer",{GOOD},"externalTrafficPolicy":"Local","ports":[{{"port":10250,"targetPort":"a","protocol":"TCP"}}]}}"#
            ),
            &[
                "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet",
                "spec.allocateLoadBalancerNodePorts: Required value",
                "spec.healthCheckNodePort: Required value",
            ],
        );
    }
}
