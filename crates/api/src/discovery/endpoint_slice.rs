//! EndpointSlice.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::labels::label_map;
use crate::validation::names::{dns_label, dns_subdomain, qualified_name};
use crate::validation::net::{family, ip_warning, legacy_ip, port, special_ip};
use crate::validation::{Checks, text};

pub(crate) struct EndpointSliceStrategy;

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_TOPOLOGY: usize = 16;
const MAX_HINTS: usize = 8;

fn fqdn(name: &str) -> Vec<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut wrong = dns_subdomain(name);
    if wrong.is_empty() && name.split('.').count() < 2 {
        wrong.push("should be a domain with at least two segments separated by dots".to_owned());
    }
    wrong
}

fn validate_address(address: &Cursor<'_>, kind: &str, known: &[&str], errs: &mut FieldErrors) {
    match kind {
        "IPv4" | "IPv6" => {
            let before = errs.0.len();
            legacy_ip(errs, address, known);
            if errs.0.len() == before && family(text(address)) != kind {
                errs.invalid(address, format!("must be an {kind} address"));
            }
            errs.each(address, special_ip(text(address)));
        }
        "FQDN" => errs.each(address, fqdn(text(address))),
        _ => {}
    }
}

fn validate_endpoint(endpoint: &Cursor<'_>, kind: &str, known: &[&str], errs: &mut FieldErrors) {
    let addresses = endpoint.field("addresses");
    match addresses.items().len() {
        0 => errs.required(&addresses.path, "must contain at least 1 address"),
        count if count > MAX_ADDRESSES => errs.too_many(&addresses.path, count, MAX_ADDRESSES),
        _ => {}
    }
    for address in addresses.elements() {
        validate_address(&address, kind, known, errs);
    }
    let (node, host) = (endpoint.field("nodeName"), endpoint.field("hostname"));
    if !node.is_absent() {
        errs.each(&node, dns_subdomain(text(&node)));
    }
    let topology = endpoint.field("deprecatedTopology");
    if topology.entries().len() > MAX_TOPOLOGY {
        errs.too_many(&topology.path, topology.entries().len(), MAX_TOPOLOGY);
    }
    label_map(errs, &topology);
    if topology.get("topology.kubernetes.io/zone").is_some() {
        errs.invalid_value(
            &topology.path.key("topology.kubernetes.io/zone"),
            topology.str_at(&["topology.kubernetes.io/zone"]),
            "reserved key cannot be set, use `zone` field instead",
        );
    }
    if !host.is_absent() {
        errs.each(&host, dns_label(text(&host)));
    }
    for field in ["forZones", "forNodes"] {
        hints(&endpoint.field("hints").field(field), errs);
    }
}

fn hints(list: &Cursor<'_>, errs: &mut FieldErrors) {
    if list.items().len() > MAX_HINTS {
        errs.too_many(&list.path, list.items().len(), MAX_HINTS);
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for hint in list.elements() {
        let name = hint.field("name");
        if seen.contains(&text(&name)) {
            errs.duplicate(&name.path, text(&name));
        }
        seen.push(text(&name));
        let wrong = if list.path.as_str().ends_with("forZones") {
            crate::validation::names::label_value(text(&name))
        } else {
            dns_subdomain(text(&name))
        };
        if text(&name).is_empty() {
            errs.required(&name.path, "");
        } else {
            errs.each(&name, wrong);
        }
    }
}

fn validate_ports(ports: &Cursor<'_>, errs: &mut FieldErrors) {
    if ports.items().len() > MAX_PORTS {
        errs.too_many(&ports.path, ports.items().len(), MAX_PORTS);
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for at in ports.elements() {
        let name = at.field("name");
        if !text(&name).is_empty() {
            errs.each(&name, dns_label(text(&name)));
        }
        if seen.contains(&text(&name)) {
            errs.duplicate(&name.path, text(&name));
        }
        seen.push(text(&name));
        let number = at.field("port");
        if !number.is_absent() {
            port(errs, &number);
        }
        errs.one_of(&at.field("protocol"), &["SCTP", "TCP", "UDP"]);
        let application = at.field("appProtocol");
        if !application.is_absent() {
            errs.each(&application, qualified_name(text(&application)));
        }
    }
}

fn validate(slice: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let root = Cursor::root(slice);
    let kind = root.field("addressType");
    if errs.present(&kind, "") {
        let known: &[&str] = if old.is_null() { &["FQDN", "IPv4", "IPv6"] } else { &["FQDN", "IP", "IPv4", "IPv6"] };
        errs.one_of(&kind, known);
    }
    let known: Vec<&str> =
        old["endpoints"].items().iter().flat_map(|e| e["addresses"].items().iter().filter_map(Value::as_str)).collect();
    let endpoints = root.field("endpoints");
    if endpoints.items().len() > MAX_ENDPOINTS {
        errs.too_many(&endpoints.path, endpoints.items().len(), MAX_ENDPOINTS);
    } else {
        for endpoint in endpoints.elements() {
            validate_endpoint(&endpoint, text(&kind), &known, &mut errs);
        }
    }
    validate_ports(&root.field("ports"), &mut errs);
    errs
}

impl Strategy for EndpointSliceStrategy {
    fn default(&self, slice: &mut Value) {
        if let Some(ports) = slice.get_mut("ports") {
            for port in ports.items_mut() {
                port.set_default(&["name"], "");
                port.set_default(&["protocol"], "TCP");
            }
        }
    }

    fn validate(&self, slice: &Value) -> FieldErrors {
        validate(slice, &Value::Null)
    }

    fn validate_update(&self, slice: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate(slice, old);
        errs.immutable(&Cursor::root(slice).field("addressType"), &Cursor::root(old).field("addressType"));
        errs
    }

    fn warnings(&self, slice: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if slice.str_at(&["addressType"]) == "FQDN" {
            warnings.push("EndpointSlice addressType FQDN is deprecated".to_owned());
            return warnings;
        }
        for endpoint in Cursor::root(slice).field("endpoints").elements() {
            for address in endpoint.field("addresses").elements() {
                warnings.extend(ip_warning(&address.path, text(&address)));
            }
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        let labels = |v: &Value| v.meta("labels").clone();
        ["endpoints", "ports", "addressType"].iter().any(|f| new[*f] != old[*f]) || labels(new) != labels(old)
    }

    fn row(&self, slice: &Value, now: Now) -> Option<Vec<Cell>> {
        let ports: Vec<String> = slice["ports"]
            .items()
            .iter()
            .map(|p| p["port"].as_i64().map_or_else(|| p.str_at(&["name"]).to_owned(), |n| n.to_string()))
            .collect();
        let addresses: Vec<String> = slice["endpoints"]
            .items()
            .iter()
            .flat_map(|e| e["addresses"].items())
            .map(|a| a.as_str().unwrap_or_default().to_owned())
            .collect();
        Some(vec![
            slice.name().into(),
            slice.str_at(&["addressType"]).into(),
            table_cells::few(&ports, 3, "<unset>").into(),
            table_cells::few(&addresses, 3, "<unset>").into(),
            table_cells::created(slice, now),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(slice: &str, want: &[&str]) {
        assert_findings(&EndpointSliceStrategy.validate(&serde_json::from_str(slice).unwrap()), want);
    }

    #[test]
    fn addresses_are_of_the_slices_type() {
        check(
            r#"{"endpoints":[{"addresses":[]}]}"#,
            &["addressType: Required value", "endpoints[0].addresses: Required value: must contain at least 1 address"],
        );
        check(
            r#"{"addressType":"IPv4","endpoints":[{"addresses":["2001:db8::1"]}]}"#,
            &[r#"endpoints[0].addresses[0]: Invalid value: "2001:db8::1": must be an IPv4 address"#],
        );
        check(
            r#"{"addressType":"FQDN","endpoints":[{"addresses":["a"]}],"ports":[{"name":"x","protocol":"TCP"},{"name":"x","protocol":"TCP"}]}"#,
            &[
                r#"endpoints[0].addresses[0]: Invalid value: "a": should be a domain with at least two segments separated by dots"#,
                r#"ports[1].name: Duplicate value: "x""#,
            ],
        );
    }
}
