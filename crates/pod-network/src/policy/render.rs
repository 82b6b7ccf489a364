//! From who may reach whom to a table of the packet filter. Pure.
//!
//! A packet is looked up by the address of this node's pod; pods that the same policies select share a chain. Traffic that
//! leaves one pod of the node for another is asked about twice: on leaving, and on arriving.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::model::{Direction, Isolation, Ports, Protocol, Rule};
use super::ranges::ranges;
use crate::nft::{Chain, Set, Table};

pub(crate) const TABLE: &str = "inet kelson-network-policy";

/// Neighbours on one bridge find each other by packets (RFC 4861) that the kernel lets pass here where it filters bridges, and
/// that belong to no connection. Policies are about what comes after them.
const NEIGHBOURS_PASS: &str =
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect } accept";

/// Short, unique and allowed in names.
fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// A family's words: the selector of addresses, their type, and what names of sets end in.
const FAMILIES: [(&str, &str, &str, bool); 2] = [("ip", "ipv4_addr", "4", true), ("ip6", "ipv6_addr", "6", false)];

pub(crate) fn table(ingress: &Isolation, egress: &Isolation) -> Table {
    let mut table = Table::default();
    for (direction, isolation) in [(Direction::Egress, egress), (Direction::Ingress, ingress)] {
        add(&mut table, direction, isolation);
    }
    table
}

fn add(table: &mut Table, direction: Direction, isolation: &Isolation) {
    let name = direction.name();
    // The pods that policies are about are where ingress goes to and where egress comes from.
    let own = if direction == Direction::Ingress { "daddr" } else { "saddr" };
    // Egress is looked at first; what it accepts goes on to ingress.
    let priority = if direction == Direction::Egress { 0 } else { 1 };
    // Answers pass, and so does what belongs to a connection that was let through.
    let mut rules = vec!["ct state established,related accept".to_owned(), NEIGHBOURS_PASS.to_owned()];
    for (ip, kind, number, v4) in FAMILIES {
        let elements = isolation.pods.iter().filter(|(address, _)| address.is_ipv4() == v4);
        let elements =
            elements.map(|(address, policies)| format!("{address} : goto {}", pods_chain(direction, policies)));
        let map = Set { is_map: true, declaration: format!("type {kind} : verdict ;"), elements: elements.collect() };
        table.sets.insert(format!("{name}-pods{number}"), map);
        rules.push(format!("{ip} {own} vmap @{name}-pods{number}"));
    }
    let hook = format!("type filter hook forward priority {priority} ;");
    table.chains.insert(name.to_owned(), Chain { hook, rules });
    for policies in isolation.pods.values().collect::<BTreeSet<_>>() {
        let mut rules: Vec<String> = policies.iter().map(|p| format!("jump {}", policy_chain(direction, p))).collect();
        rules.push("drop".to_owned());
        table.chains.insert(pods_chain(direction, policies), Chain { hook: String::new(), rules });
    }
    for (policy, rules) in &isolation.policies {
        let chain = policy_chain(direction, policy);
        let all =
            rules.iter().enumerate().flat_map(|(i, rule)| self::rules(table, direction, &format!("{chain}-{i}"), rule));
        let rules = all.collect();
        table.chains.insert(chain, Chain { hook: String::new(), rules });
    }
}

/// The chain of all pods that exactly these policies select.
fn pods_chain(direction: Direction, policies: &BTreeSet<String>) -> String {
    let all = policies.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    format!("pods-{}-{}", direction.name(), hash(&all))
}

fn policy_chain(direction: Direction, policy: &str) -> String {
    format!("policy-{}-{}", direction.name(), hash(policy))
}

/// The packet filter's rules for one rule of a policy, whose sets begin with `id`.
fn rules(table: &mut Table, direction: Direction, id: &str, rule: &Rule) -> Vec<String> {
    let mut written = Vec::new();
    let other = if direction == Direction::Ingress { "saddr" } else { "daddr" };
    for (ip, kind, number, v4) in FAMILIES {
        let ports = port_matches(table, id, rule.ports.as_ref(), (ip, kind, number, v4));
        let family = if v4 { "ipv4" } else { "ipv6" };
        let from: Vec<String> = match &rule.peers {
            None => vec![format!("meta nfproto {family}")],
            Some(peers) => {
                let own = |address: &&IpAddr| address.is_ipv4() == v4;
                let pods: BTreeSet<String> = peers.pods.iter().filter(own).map(ToString::to_string).collect();
                let blocks: BTreeSet<String> = ranges(&peers.blocks, v4).into_iter().collect();
                let mut matches = Vec::new();
                for (what, flags, elements) in [("pods", "", pods), ("blocks", " flags interval ;", blocks)] {
                    if !elements.is_empty() {
                        let set = format!("{id}-{what}{number}");
                        matches.push(format!("{ip} {other} @{set}"));
                        let declaration = format!("type {kind} ;{flags}");
                        table.sets.insert(set, Set { is_map: false, declaration, elements });
                    }
                }
                matches
            }
        };
        for from in &from {
            written.extend(ports.iter().map(|ports| format!("{from}{ports} accept")));
        }
        let dns = targets(table, &format!("{id}-dns{number}"), &rule.dns, (ip, kind, v4));
        written.extend(dns.map(|dns| format!("{} accept", dns.trim_start())));
    }
    written
}

/// What a rule of one family says about ports: nothing, or one match for each kind.
fn port_matches(
    table: &mut Table,
    id: &str,
    ports: Option<&Ports>,
    (ip, kind, number, v4): (&str, &str, &str, bool),
) -> Vec<String> {
    let Some(ports) = ports else { return vec![String::new()] };
    let mut matches: Vec<String> = ports
        .ranges
        .iter()
        .map(|(protocol, first, last)| match (protocol.name(), first, last) {
            (name, 0, &u16::MAX) => format!(" meta l4proto {name}"),
            (name, first, last) if first == last => format!(" {name} dport {first}"),
            (name, first, last) => format!(" {name} dport {first}-{last}"),
        })
        .collect();
    matches.extend(targets(table, &format!("{id}-ports{number}"), &ports.named, (ip, kind, v4)));
    matches
}

/// The match of these ports of these addresses, as far as they are of one family and there are any.
fn targets(
    table: &mut Table,
    set: &str,
    targets: &BTreeSet<(IpAddr, Protocol, u16)>,
    (ip, kind, v4): (&str, &str, bool),
) -> Option<String> {
    let own = targets.iter().filter(|(address, ..)| address.is_ipv4() == v4);
    let elements: BTreeSet<String> =
        own.map(|(address, protocol, port)| format!("{address} . {} . {port}", protocol.name())).collect();
    if elements.is_empty() {
        return None;
    }
    let declaration = format!("type {kind} . inet_proto . inet_service ;");
    table.sets.insert(set.to_owned(), Set { is_map: false, declaration, elements });
    Some(format!(" {ip} daddr . meta l4proto . th dport @{set}"))
}
