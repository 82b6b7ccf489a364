//! Ingress.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::typed_reference;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_label, dns_subdomain, port_name, wildcard_subdomain};
use crate::validation::net::{BAD_PORT, ip_warning, legacy_ip, parse_ip_sloppy};
use crate::validation::{Checks, int, text};

pub(crate) struct IngressStrategy;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const BAD_PARTS: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
const BAD_ENDS: &[&str] = &["/..", "/."];

/// What an old object already breaks, it may go on breaking.
#[derive(Clone, Copy, Default)]
struct Lenient {
    secret_names: bool,
    wildcard_rules: bool,
}

fn host_findings(host: &str) -> Vec<String> {
    if host.contains('*') { wildcard_subdomain(host) } else { dns_subdomain(host) }
}

fn validate_backend(backend: &Cursor<'_>, errs: &mut FieldErrors) {
    let (resource, service) = (backend.field("resource"), backend.field("service"));
    match (resource.is_absent(), service.is_absent()) {
        (false, false) => errs.invalid_value(&backend.path, "", "cannot set both resource and service backends"),
        (false, true) => typed_reference(&resource, errs),
        (true, true) => errs.invalid_value(&backend.path, "", "resource or service backend is required"),
        (true, false) => {
            let name = service.field("name");
            if errs.present(&name, "") {
                errs.each(&name, dns_label(text(&name)));
            }
            let (port, number) = (service.fields(&["port", "name"]), service.fields(&["port", "number"]));
            match (text(&port), int(&number)) {
                ("", 0) => errs.required(&backend.path, "port name or number is required"),
                ("", given) => {
                    if !(1..=65535).contains(&given) {
                        errs.invalid(&number, BAD_PORT);
                    }
                }
                (given, 0) => errs.each(&port, port_name(given)),
                _ => errs.invalid_value(&backend.path, "", "cannot set both port name & port number"),
            }
        }
    }
}

fn validate_path(at: &Cursor<'_>, errs: &mut FieldErrors) {
    let (kind, path) = (at.field("pathType"), at.field("path"));
    if kind.is_absent() {
        errs.required(&kind.path, "pathType must be specified");
        return;
    }
    let absolute = text(&path).starts_with('/');
    match text(&kind) {
        "Exact" | "Prefix" => {
            if !absolute {
                errs.invalid_text(&path, "must be an absolute path");
            }
            for part in BAD_PARTS.iter().filter(|part| text(&path).contains(**part)) {
                errs.invalid(&path, format!("must not contain '{part}'"));
            }
            for end in BAD_ENDS.iter().filter(|end| text(&path).ends_with(**end)) {
                errs.invalid(&path, format!("cannot end with '{end}'"));
            }
        }
        "ImplementationSpecific" => {
            if !text(&path).is_empty() && !absolute {
                errs.invalid(&path, "must be an absolute path");
            }
        }
        _ => {
            errs.one_of(&kind, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
    validate_backend(&at.field("backend"), errs);
}

fn validate_rule_value(rule: &Cursor<'_>, errs: &mut FieldErrors) {
    let http = rule.field("http");
    if http.is_absent() {
        return;
    }
    let paths = http.field("paths");
    errs.present(&paths, "");
    for path in paths.elements() {
        validate_path(&path, errs);
    }
}

fn validate(ingress: &Value, lenient: Lenient) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(ingress).field("spec");
    let (rules, backend) = (spec.field("rules"), spec.field("defaultBackend"));
    if rules.items().is_empty() && backend.is_absent() {
        let at = Cursor::new(spec.path.clone(), rules.value);
        errs.invalid(&at, "either `defaultBackend` or `rules` must be specified");
    }
    if !backend.is_absent() {
        validate_backend(&backend, &mut errs);
    }
    for rule in rules.elements() {
        let host = rule.field("host");
        let wildcard = text(&host).contains('*');
        if !text(&host).is_empty() {
            if parse_ip_sloppy(text(&host)).is_some() {
                errs.invalid(&host, "must be a DNS name, not an IP address");
            }
            errs.each(&host, host_findings(text(&host)));
        }
        if !(wildcard && lenient.wildcard_rules) {
            validate_rule_value(&rule, &mut errs);
        }
    }
    for tls in spec.field("tls").elements() {
        for host in tls.field("hosts").elements() {
            errs.each(&host, host_findings(text(&host)));
        }
        let secret = tls.field("secretName");
        if !lenient.secret_names && !text(&secret).is_empty() {
            errs.each(&secret, dns_subdomain(text(&secret)));
        }
    }
    let class = spec.field("ingressClassName");
    if !class.is_absent() {
        errs.each(&class, dns_subdomain(text(&class)));
    }
    errs
}

impl Strategy for IngressStrategy {
    fn prepare_for_create(&self, ingress: &mut Value) {
        ingress.remove(&["status"]);
    }

    fn validate(&self, ingress: &Value) -> FieldErrors {
        let mut errs = validate(ingress, Lenient::default());
        let class = ingress.at(&["spec", "ingressClassName"]).as_str();
        if let (Some(old), Some(class)) = (ingress.annotation(CLASS_ANNOTATION), class)
            && old != class
        {
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            errs.invalid_value(&path, old, "must match `ingressClassName` when both are specified");
        }
        errs
    }

    fn validate_update(&self, ingress: &Value, old: &Value) -> FieldErrors {
        let spec = Cursor::root(old).field("spec");
        let lenient = Lenient {
            secret_names: spec["tls"].items().iter().any(|t| {
                let name = t.str_at(&["secretName"]);
                !name.is_empty() && !dns_subdomain(name).is_empty()
            }),
            wildcard_rules: spec.field("rules").elements().any(|rule| {
                let mut errs = FieldErrors::new();
                validate_rule_value(&rule, &mut errs);
                rule.str_at(&["host"]).contains('*') && !errs.is_empty()
            }),
        };
        validate(ingress, lenient)
    }

    fn validate_status_update(&self, ingress: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let held = old.at(&["status", "loadBalancer", "ingress"]);
        let known: Vec<&str> = held.items().iter().map(|i| i.str_at(&["ip"])).collect();
        for point in Cursor::root(ingress).fields(&["status", "loadBalancer", "ingress"]).elements() {
            let (ip, host) = (point.field("ip"), point.field("hostname"));
            if !text(&ip).is_empty() {
                legacy_ip(&mut errs, &ip, &known);
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

    fn warnings(&self, ingress: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        let class = !ingress.at(&["spec", "ingressClassName"]).is_null();
        if ingress.annotation(CLASS_ANNOTATION).is_some() && !class && old.is_none() {
            warnings.push(format!(
                "annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead"
            ));
        }
        for point in Cursor::root(ingress).fields(&["status", "loadBalancer", "ingress"]).elements() {
            let ip = point.field("ip");
            warnings.extend(ip_warning(&ip.path, text(&ip)));
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, ingress: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &ingress["spec"];
        let class =
            spec["ingressClassName"].as_str().or_else(|| ingress.annotation(CLASS_ANNOTATION)).unwrap_or("<none>");
        let hosts: Vec<String> =
            spec["rules"].items().iter().map(|r| r.str_at(&["host"]).to_owned()).filter(|h| !h.is_empty()).collect();
        let hosts = table_cells::few(&hosts, 3, "*");
        let points = ingress.at(&["status", "loadBalancer", "ingress"]).items();
        let address: Vec<&str> = points
            .iter()
            .map(|p| if p.str_at(&["ip"]).is_empty() { p.str_at(&["hostname"]) } else { p.str_at(&["ip"]) })
            .filter(|a| !a.is_empty())
            .collect();
        let ports = if spec["tls"].items().is_empty() { "80" } else { "80, 443" };
        Some(vec![
            ingress.name().into(),
            class.into(),
            hosts.into(),
            address.join(",").into(),
            ports.into(),
            table_cells::created(ingress, now),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(spec: &str, want: &[&str]) {
        let ingress = serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap();
        assert_findings(&IngressStrategy.validate(&ingress), want);
    }

    #[test]
    fn ingresses_have_rules_and_backends() {
        check("{}", &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]);
        check(
            r#"{"rules":[{"host":"1.2.3.4","http":{"paths":[{"pathType":"Exact","path":"a//b","backend":{"service":{"name":"s","port":{"number":1,"name":"a"}}}},{"path":"/"}]}}]}"#,
            &[
                r#"spec.rules[0].host: Invalid value: "1.2.3.4": must be a DNS name, not an IP address"#,
                r#"spec.rules[0].http.paths[0].path: Invalid value: "a//b": must be an absolute path"#,
                r#"spec.rules[0].http.paths[0].path: Invalid value: "a//b": must not contain '//'"#,
                r#"spec.rules[0].http.paths[0].backend: Invalid value: "": cannot set both port name & port number"#,
                "spec.rules[0].http.paths[1].pathType: Required value: pathType must be specified",
            ],
        );
    }
}
