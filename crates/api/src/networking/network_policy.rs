//! NetworkPolicy.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::labels::{label_selector, selector_is_valid};
use crate::validation::names::port_name;
use crate::validation::net::{BAD_PORT, cidr_warnings, legacy_cidr, network_of};
use crate::validation::{Checks, int, text};

pub(crate) struct NetworkPolicyStrategy;

/// Each direction, and where its peers stand.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

fn validate_port(port: &Cursor<'_>, errs: &mut FieldErrors) {
    let (protocol, number, end) = (port.field("protocol"), port.field("port"), port.field("endPort"));
    if !protocol.is_absent() {
        errs.one_of(&protocol, &["TCP", "UDP", "SCTP"]);
    }
    match number.value {
        Value::Int(first) => {
            if !(1..=65535).contains(first) {
                errs.invalid(&number, BAD_PORT);
            }
            if !end.is_absent() {
                if int(&end) < *first {
                    errs.invalid(&end, "must be greater than or equal to `port`");
                }
                if !(1..=65535).contains(&int(&end)) {
                    errs.invalid(&end, BAD_PORT);
                }
            }
        }
        Value::String(name) => {
            if !end.is_absent() {
                errs.invalid(&end, "may not be specified when `port` is non-numeric");
            }
            errs.each(&number, port_name(name));
        }
        _ => {
            if !end.is_absent() {
                errs.invalid(&end, "may not be specified when `port` is not specified");
            }
        }
    }
}

fn validate_block(block: &Cursor<'_>, known: &[&str], errs: &mut FieldErrors) {
    let cidr = block.field("cidr");
    if !errs.present(&cidr, "") {
        return;
    }
    legacy_cidr(errs, &cidr, known);
    let Some(net) = network_of(text(&cidr)) else { return };
    for except in block.field("except").elements() {
        legacy_cidr(errs, &except, known);
        let Some(inner) = network_of(text(&except)) else { continue };
        if !net.contains(&inner.network()) || net.prefix_len() >= inner.prefix_len() {
            errs.invalid(&except, "must be a strict subset of `cidr`");
        }
    }
}

fn validate_peer(peer: &Cursor<'_>, check_values: bool, known: &[&str], errs: &mut FieldErrors) {
    let mut peers = 0;
    for field in ["podSelector", "namespaceSelector"] {
        let selector = peer.field(field);
        if !selector.is_absent() {
            peers += 1;
            label_selector(errs, &selector, check_values);
        }
    }
    let block = peer.field("ipBlock");
    if !block.is_absent() {
        peers += 1;
        validate_block(&block, known, errs);
    }
    if peers == 0 {
        errs.required(&peer.path, "must specify a peer");
    } else if peers > 1 && !block.is_absent() {
        errs.forbidden(&peer.path, "may not specify both ipBlock and another peer");
    }
}

/// All blocks of a policy.
fn blocks<'a>(policy: &'a Value) -> impl Iterator<Item = Cursor<'a>> {
    DIRECTIONS.into_iter().flat_map(move |(direction, peers)| {
        let rules = Cursor::root(policy).field("spec").field(direction);
        rules.elements().flat_map(move |rule| rule.field(peers).elements().map(|peer| peer.field("ipBlock")))
    })
}

fn validate(policy: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(policy).field("spec");
    let check_values = old.is_null() || selector_is_valid(&Cursor::root(old).fields(&["spec", "podSelector"]));
    let held: Vec<Cursor<'_>> = blocks(old).collect();
    let known: Vec<&str> = held
        .iter()
        .flat_map(|b| {
            b.value["cidr"].as_str().into_iter().chain(b.value["except"].items().iter().filter_map(Value::as_str))
        })
        .collect();
    label_selector(&mut errs, &spec.field("podSelector"), check_values);
    for (direction, peers) in DIRECTIONS {
        for rule in spec.field(direction).elements() {
            for port in rule.field("ports").elements() {
                validate_port(&port, &mut errs);
            }
            for peer in rule.field(peers).elements() {
                validate_peer(&peer, check_values, &known, &mut errs);
            }
        }
    }
    let types = spec.field("policyTypes");
    if types.items().len() > 2 {
        errs.invalid(&types, "may not specify more than two policyTypes");
        return errs;
    }
    for kind in types.elements() {
        errs.one_of(&kind, &["Ingress", "Egress"]);
    }
    errs
}

impl Strategy for NetworkPolicyStrategy {
    fn default(&self, policy: &mut Value) {
        let spec = policy.entry(&["spec"]);
        for (direction, _) in DIRECTIONS {
            if let Some(rules) = spec.get_mut(direction) {
                for rule in rules.items_mut() {
                    if let Some(ports) = rule.get_mut("ports") {
                        ports.items_mut().iter_mut().for_each(|port| port.set_default(&["protocol"], "TCP"));
                    }
                }
            }
        }
        if spec["policyTypes"].items().is_empty() {
            let mut types = vec![Value::from("Ingress")];
            if !spec["egress"].items().is_empty() {
                types.push("Egress".into());
            }
            spec.set(&["policyTypes"], types);
        }
    }

    fn validate(&self, policy: &Value) -> FieldErrors {
        validate(policy, &Value::Null)
    }

    fn validate_update(&self, policy: &Value, old: &Value) -> FieldErrors {
        validate(policy, old)
    }

    fn warnings(&self, policy: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        for block in blocks(policy).filter(|b| !b.is_absent()) {
            for cidr in std::iter::once(block.field("cidr")).chain(block.field("except").elements()) {
                warnings.extend(cidr_warnings(&cidr.path, text(&cidr)));
            }
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, policy: &Value, now: Now) -> Option<Vec<Cell>> {
        let selector = table_cells::selector(policy.at(&["spec", "podSelector"]));
        Some(vec![policy.name().into(), selector.into(), table_cells::created(policy, now)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn peers_and_ports_are_checked() {
        let policy = serde_json::from_str(
            r#"{"spec":{"podSelector":{},"ingress":[{"ports":[{"port":80,"endPort":70},{"endPort":1}],"from":[{},{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.0.0.0/8"]}}]}],"policyTypes":["X"]}}"#,
        )
        .unwrap();
        assert_findings(
            &NetworkPolicyStrategy.validate(&policy),
            &[
                "spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`",
                "spec.ingress[0].ports[1].endPort: Invalid value: 1: may not be specified when `port` is not specified",
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                r#"spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: "10.0.0.0/8": must be a strict subset of `cidr`"#,
                r#"spec.policyTypes[0]: Unsupported value: "X": supported values: "Ingress", "Egress""#,
            ],
        );
    }
}
