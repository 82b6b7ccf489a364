//! Endpoints.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::net::{ip_warning, legacy_ip, port, special_ip};
use crate::validation::{Checks, text};

pub(crate) struct EndpointsStrategy;

const ADDRESSES: [&str; 2] = ["addresses", "notReadyAddresses"];

fn addresses(endpoints: &Value) -> impl Iterator<Item = &Value> {
    let subsets = endpoints["subsets"].items().iter();
    subsets.flat_map(|subset| ADDRESSES.into_iter().flat_map(|field| subset[field].items()))
}

fn validate(endpoints: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let known: Vec<&str> = addresses(old).map(|a| a.str_at(&["ip"])).collect();
    for subset in Cursor::root(endpoints).field("subsets").elements() {
        if ADDRESSES.iter().all(|field| subset[field].items().is_empty()) {
            errs.required(&subset.path, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ADDRESSES.into_iter().flat_map(|field| subset.field(field).elements().collect::<Vec<_>>()) {
            validate_address(&address, &known, old, &mut errs);
        }
        let ports = subset.field("ports");
        let several = ports.items().len() > 1;
        for at in ports.elements() {
            let name = at.field("name");
            match text(&name) {
                "" if several => errs.required(&name.path, ""),
                "" => {}
                given => errs.each(&name, dns_label(given)),
            }
            port(&mut errs, &at.field("port"));
            errs.one_of(&at.field("protocol"), &["SCTP", "TCP", "UDP"]);
        }
    }
    errs
}

fn validate_address(address: &Cursor<'_>, known: &[&str], old: &Value, errs: &mut FieldErrors) {
    let before = errs.0.len();
    let (ip, host, node) = (address.field("ip"), address.field("hostname"), address.field("nodeName"));
    legacy_ip(errs, &ip, known);
    if !text(&host).is_empty() {
        errs.each(&host, dns_label(text(&host)));
    }
    if !node.is_absent() {
        errs.each(&node, dns_subdomain(text(&node)));
        let was = addresses(old).filter(|a| a["ip"] == *ip.value).find_map(|a| a["nodeName"].as_str());
        if was.is_some_and(|was| was != text(&node)) {
            errs.forbidden(&node.path, format!("Cannot change NodeName for {} to {}", text(&ip), text(&node)));
        }
    }
    if errs.0.len() == before {
        errs.each(&ip, special_ip(text(&ip)));
    }
}

impl Strategy for EndpointsStrategy {
    fn default(&self, endpoints: &mut Value) {
        let Some(subsets) = endpoints.get_mut("subsets") else { return };
        for subset in subsets.items_mut() {
            if let Some(ports) = subset.get_mut("ports") {
                for port in ports.items_mut() {
                    port.set_default(&["protocol"], "TCP");
                }
            }
        }
    }

    fn validate(&self, endpoints: &Value) -> FieldErrors {
        validate(endpoints, &Value::Null)
    }

    fn validate_update(&self, endpoints: &Value, old: &Value) -> FieldErrors {
        validate(endpoints, old)
    }

    fn row(&self, endpoints: &Value, now: Now) -> Option<Vec<Cell>> {
        let shown = table_cells::few(&ready(endpoints), 3, "<none>");
        Some(vec![endpoints.name().into(), shown.into(), table_cells::created(endpoints, now)])
    }

    fn warnings(&self, endpoints: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        for subset in Cursor::root(endpoints).field("subsets").elements() {
            for address in ADDRESSES.into_iter().flat_map(|field| subset.field(field).elements().collect::<Vec<_>>()) {
                let ip = address.field("ip");
                warnings.extend(ip_warning(&ip.path, text(&ip)));
            }
        }
        warnings
    }
}

/// `ip:port` of everything that is ready.
fn ready(endpoints: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for subset in endpoints["subsets"].items() {
        let ips: Vec<&str> = subset["addresses"].items().iter().map(|a| a.str_at(&["ip"])).collect();
        let ports = subset["ports"].items();
        if ports.is_empty() {
            all.extend(ips.iter().map(ToString::to_string));
        }
        for port in ports.iter().filter_map(|p| p["port"].as_i64()) {
            all.extend(
                ips.iter().map(|ip| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }),
            );
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn endpoints_have_sensible_addresses() {
        let endpoints = serde_json::from_str(
            r#"{"subsets":[{},{"addresses":[{"ip":"127.0.0.1"}],"ports":[{"port":0,"protocol":"X"}]}]}"#,
        )
        .unwrap();
        assert_findings(
            &EndpointsStrategy.validate(&endpoints),
            &[
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                r#"subsets[1].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#,
                "subsets[1].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                r#"subsets[1].ports[0].protocol: Unsupported value: "X": supported values: "SCTP", "TCP", "UDP""#,
            ],
        );
    }
}
