//! Packets followed through the rendered table, without a kernel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Value, json};

use super::model::{Direction, PodFacts, World, namespace_labels};
use super::render;
use crate::nft::Table;

/// A packet as a table of the inet family sees it.
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: String,
    port: u16,
    is_answer: bool,
}

/// Whether the table lets the packet through.
fn passes(table: &Table, packet: &Packet) -> bool {
    ["egress", "ingress"].iter().all(|hook| verdict(table, hook, packet).unwrap_or(true))
}

/// What a chain says; `None` when it says nothing.
fn verdict(table: &Table, chain: &str, packet: &Packet) -> Option<bool> {
    for rule in &table.chains[chain].rules {
        let mut rest = rule.as_str();
        loop {
            let (matched, after) = step(table, rest, packet);
            if !matched {
                break;
            }
            rest = after.trim_start();
            if let Some(to) = rest.strip_prefix("jump ") {
                match verdict(table, to, packet) {
                    Some(decided) => return Some(decided),
                    None => break,
                }
            }
            if let Some(to) = rest.strip_prefix("goto ") {
                return verdict(table, to, packet);
            }
            match rest {
                "accept" => return Some(true),
                "drop" => return Some(false),
                _ => {}
            }
        }
    }
    None
}

/// Whether the first match of a rule takes the packet, and what follows it.
fn step<'a>(table: &'a Table, rule: &'a str, packet: &Packet) -> (bool, &'a str) {
    if ["accept", "drop"].contains(&rule) || rule.starts_with("jump ") || rule.starts_with("goto ") {
        return (true, rule);
    }
    if let Some(rest) = rule.strip_prefix("ct state established,related") {
        return (packet.is_answer, rest);
    }
    if let Some((types, rest)) = rule.strip_prefix("icmpv6 type { ").and_then(|rest| rest.split_once(" }")) {
        return (types.split(", ").any(|name| name == packet.protocol), rest);
    }
    let word = |rest: &'a str| rest.split_once(' ').unwrap_or((rest, ""));
    if let Some(rest) = rule.strip_prefix("meta nfproto ") {
        let (family, rest) = word(rest);
        return ((family == "ipv4") == packet.from.is_ipv4(), rest);
    }
    if let Some(rest) = rule.strip_prefix("meta l4proto ") {
        let (protocol, rest) = word(rest);
        return (protocol == packet.protocol, rest);
    }
    for (prefix, v4) in [("ip ", true), ("ip6 ", false)] {
        let Some(rest) = rule.strip_prefix(prefix) else { continue };
        if packet.from.is_ipv4() != v4 {
            return (false, "");
        }
        if let Some(rest) = rest.strip_prefix("daddr . meta l4proto . th dport @") {
            let (set, rest) = word(rest);
            let key = format!("{} . {} . {}", packet.to, packet.protocol, packet.port);
            return (table.sets[set].elements.contains(&key), rest);
        }
        let (which, rest) = word(rest);
        let address = if which == "saddr" { packet.from } else { packet.to };
        if let Some(map) = rest.strip_prefix("vmap @") {
            let found = table.sets[map].elements.iter().find_map(|e| e.strip_prefix(&format!("{address} : ")));
            return (found.is_some(), found.unwrap_or_default());
        }
        let (set, rest) = word(rest.strip_prefix('@').unwrap());
        return (table.sets[set].elements.iter().any(|element| holds(element, address)), rest);
    }
    let (protocol, rest) = word(rule);
    let (ports, rest) = word(rest.strip_prefix("dport ").unwrap_or_else(|| panic!("what is {rule:?}?")));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let within = (first.parse().unwrap()..=last.parse().unwrap()).contains(&packet.port);
    (protocol == packet.protocol && within, rest)
}

fn holds(element: &str, address: IpAddr) -> bool {
    let (first, last) = element.split_once('-').unwrap_or((element, element));
    (first.parse::<IpAddr>().unwrap()..=last.parse().unwrap()).contains(&address)
}

/// Pods on the node `n1` unless said otherwise: name, namespace, label `app`, node, address, and as a second address
/// `fd00::` with the last number of the first.
fn world(policies: &[Value]) -> World {
    let pod = |namespace: &str, app: &str, node: &str, last: u8| {
        let port = |name: &str, protocol: &str, number: u16| json!({"name": name, "protocol": protocol, "containerPort": number});
        // Each pod has its own number for the port that is called web.
        let ports = [port("web", "TCP", 8000 + u16::from(last)), port("dns", "UDP", 53)];
        let ips = [json!({"ip": format!("10.244.0.{last}")}), json!({"ip": format!("fd00::{last}")})];
        let pod = json!({"metadata": {"name": app, "namespace": namespace, "labels": {"app": app}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]}, "status": {"podIPs": ips}});
        PodFacts::of(&serde_json::from_value(pod).unwrap()).unwrap()
    };
    let namespace = |name: &str, team: &str| {
        namespace_labels(
            &serde_json::from_value(json!({"metadata": {"name": name, "labels": {"team": team}}})).unwrap(),
        )
    };
    let policy = |(i, spec): (usize, &Value)| {
        let policy = json!({"metadata": {"name": format!("p{i}"), "namespace": "prod"}, "spec": spec});
        Arc::new(serde_json::from_value(policy).unwrap())
    };
    World {
        node: "n1".to_owned(),
        policies: policies.iter().enumerate().map(policy).collect(),
        namespaces: [namespace("prod", "red"), namespace("test", "blue"), namespace("kube-system", "ops")].into(),
        pods: vec![
            pod("prod", "web", "n1", 1),
            pod("prod", "db", "n1", 2),
            pod("prod", "cache", "n2", 3),
            pod("test", "web", "n2", 4),
            pod("test", "tool", "n1", 5),
        ],
        dns: [("IPv4", "192.0.2.1"), ("IPv6", "2001:db8::1")].map(|(kind, ip)| dns_server(kind, ip)).into(),
    }
}

/// Cluster DNS at an address of the node that it runs on.
fn dns_server(kind: &str, ip: &str) -> PodFacts {
    let slice = json!({"metadata": {"name": "kube-dns", "namespace": "kube-system"}, "addressType": kind,
        "endpoints": [{"addresses": [ip]}, {"addresses": ["192.0.2.99"], "targetRef": {"kind": "Pod"}}],
        "ports": [{"name": "dns", "port": 10053, "protocol": "UDP"}, {"name": "dns-tcp", "port": 10053, "protocol": "TCP"}]});
    super::dns_facts(&serde_json::from_value(slice).unwrap())
}

/// What policies of `prod` come to.
pub(crate) fn table(policies: &[Value]) -> Table {
    let world = world(policies);
    render::table(&world.isolation(Direction::Ingress), &world.isolation(Direction::Egress))
}

/// Checks which packets pass, each written as `FROM > TO:PORT/PROTOCOL`; a number alone is the last of a pod's address. What
/// ICMPv6 says is a protocol of its own.
#[track_caller]
fn check(policies: &[Value], pass: &[&str], stop: &[&str]) {
    let table = table(policies);
    for (packets, want) in [(pass, true), (stop, false)] {
        for text in packets {
            for v6 in [false, true] {
                if let Some(packet) = parse(text, v6) {
                    assert_eq!(passes(&table, &packet), want, "{text} (IPv6: {v6}) through {table:#?}");
                    let answer = Packet { from: packet.to, to: packet.from, is_answer: true, ..packet };
                    assert!(passes(&table, &answer), "the answer to {text}");
                }
            }
        }
    }
}

/// `None`: the packet is not of this family.
fn parse(text: &str, v6: bool) -> Option<Packet> {
    let (from, rest) = text.split_once(" > ").unwrap();
    let (to, protocol) = rest.split_once('/').unwrap();
    let (to, port) = to.rsplit_once(':').unwrap();
    let address = |text: &str| -> Option<IpAddr> {
        if text.parse::<u8>().is_ok() {
            return format!("{}{text}", if v6 { "fd00::" } else { "10.244.0." }).parse().ok();
        }
        text.trim_matches(['[', ']']).parse().ok().filter(|ip: &IpAddr| ip.is_ipv6() == v6)
    };
    let to = SocketAddr::new(address(to)?, port.parse().unwrap());
    Some(Packet { from: address(from)?, to: to.ip(), protocol: protocol.to_owned(), port: to.port(), is_answer: false })
}

fn to_web(ingress: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": ingress})
}

#[test]
fn without_a_policy_everything_passes() {
    check(&[], &["4 > 1:80/tcp", "1 > 4:80/udp", "192.0.2.9 > 1:80/tcp"], &[]);
}

#[test]
fn a_policy_without_rules_denies_what_it_is_about() {
    let nobody_in = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    check(
        std::slice::from_ref(&nobody_in),
        &["1 > 4:80/tcp", "3 > 5:80/tcp"],
        &["4 > 1:80/tcp", "1 > 2:80/tcp", "192.0.2.9 > 2:80/tcp"],
    );
    let nobody_out = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    check(
        std::slice::from_ref(&nobody_out),
        &["4 > 1:80/tcp"],
        &["1 > 4:80/tcp", "1 > 2:80/tcp", "2 > 192.0.2.9:443/tcp"],
    );
    check(&[nobody_in, nobody_out], &["5 > 4:80/tcp"], &["4 > 1:80/tcp", "1 > 4:80/tcp"]);
    // A policy selects pods of its own namespace only, whatever their labels.
    check(&[to_web(json!([]))], &["1 > 4:80/tcp", "1 > 2:80/tcp"], &["2 > 1:80/tcp"]);
}

#[test]
fn neighbours_of_one_link_find_each_other_whatever_policies_say() {
    let nobody = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    check(
        &[nobody],
        &[
            "[fd00::2] > [ff02::1:ff00:1]:0/nd-neighbor-solicit",
            "[fd00::1] > [fd00::2]:0/nd-neighbor-advert",
            "[fd00::1] > [fd00::2]:0/nd-redirect",
            "[fd00::1] > [ff02::2]:0/nd-router-solicit",
            "[fe80::1] > [fd00::1]:0/nd-router-advert",
        ],
        &["[fd00::2] > [fd00::1]:0/echo-request"],
    );
}

#[test]
fn empty_rules_allow_everything() {
    check(&[to_web(json!([{}]))], &["4 > 1:80/tcp", "192.0.2.9 > 1:53/udp", "2001:db8::9 > 1:7/sctp"], &[]);
    let out = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]});
    check(&[out], &["1 > 4:80/tcp", "1 > 192.0.2.9:1/udp"], &[]);
}

#[test]
fn peers_are_pods_of_selected_namespaces() {
    let from = |peer: Value| [to_web(json!([{"from": [peer]}]))];
    check(&from(json!({"podSelector": {}})), &["2 > 1:80/tcp", "3 > 1:80/tcp"], &["4 > 1:80/tcp", "5 > 1:80/tcp"]);
    check(&from(json!({"podSelector": {"matchLabels": {"app": "cache"}}})), &["3 > 1:80/tcp"], &["2 > 1:80/tcp"]);
    check(&from(json!({"namespaceSelector": {}})), &["2 > 1:80/tcp", "4 > 1:80/tcp"], &["192.0.2.9 > 1:80/tcp"]);
    let blue = json!({"matchLabels": {"team": "blue"}});
    check(&from(json!({"namespaceSelector": blue})), &["4 > 1:80/tcp", "5 > 1:80/tcp"], &["2 > 1:80/tcp"]);
    let tool = json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]});
    check(
        &from(json!({"namespaceSelector": blue, "podSelector": tool})),
        &["5 > 1:80/tcp"],
        &["4 > 1:80/tcp", "2 > 1:80/tcp"],
    );
    let labelled = |operator: &str| json!({"matchExpressions": [{"key": "app", "operator": operator}]});
    check(&from(json!({"podSelector": labelled("Exists")})), &["2 > 1:80/tcp"], &["4 > 1:80/tcp"]);
    check(&from(json!({"podSelector": labelled("DoesNotExist")})), &[], &["2 > 1:80/tcp"]);
    check(&from(json!({"podSelector": labelled("MayExist")})), &[], &["2 > 1:80/tcp", "192.0.2.9 > 1:80/tcp"]);
    let by_name = json!({"matchLabels": {"kubernetes.io/metadata.name": "test"}});
    check(&from(json!({"namespaceSelector": by_name})), &["4 > 1:80/tcp"], &["3 > 1:80/tcp"]);
    let two =
        [to_web(json!([{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}, {"namespaceSelector": blue}]}]))];
    check(&two, &["2 > 1:80/tcp", "4 > 1:80/tcp"], &["3 > 1:80/tcp"]);
}

#[test]
fn blocks_have_holes() {
    let block = json!({"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25", "192.0.2.5/32"]}});
    check(
        &[to_web(json!([{"from": [block]}]))],
        &["192.0.2.4 > 1:80/tcp", "192.0.2.127 > 1:80/udp"],
        &[
            "192.0.2.5 > 1:80/tcp",
            "192.0.2.128 > 1:80/tcp",
            "198.51.100.1 > 1:80/tcp",
            "2001:db8::9 > 1:80/tcp",
            "2 > 1:80/tcp",
        ],
    );
    let everywhere = json!({"podSelector": {}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:1::/48"]}}]}]});
    check(
        &[everywhere],
        &["1 > [2001:db8::9]:443/tcp"],
        &["1 > [2001:db8:1::9]:443/tcp", "1 > 192.0.2.9:443/tcp", "1 > 4:80/tcp"],
    );
}

#[test]
fn ports_are_numbers_ranges_and_names() {
    let at = |ports: Value| [to_web(json!([{"ports": ports}]))];
    check(&at(json!([{"port": 80}])), &["2 > 1:80/tcp", "192.0.2.9 > 1:80/tcp"], &["2 > 1:81/tcp", "2 > 1:80/udp"]);
    check(
        &at(json!([{"port": 53, "protocol": "UDP"}, {"port": 7, "protocol": "SCTP"}])),
        &["2 > 1:53/udp", "2 > 1:7/sctp"],
        &["2 > 1:53/tcp"],
    );
    check(
        &at(json!([{"port": 80, "endPort": 90}])),
        &["2 > 1:80/tcp", "2 > 1:90/tcp"],
        &["2 > 1:79/tcp", "2 > 1:91/tcp"],
    );
    check(&at(json!([{"protocol": "UDP"}])), &["2 > 1:9/udp"], &["2 > 1:9/tcp"]);
    check(&at(json!([{"port": "web"}])), &["2 > 1:8001/tcp"], &["2 > 1:8002/tcp", "2 > 1:8001/udp", "2 > 1:80/tcp"]);
    check(&at(json!([{"port": "web", "protocol": "UDP"}])), &[], &["2 > 1:8001/udp"]);
    // On the way out, a name is what the pod that is reached calls it.
    let out = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "web"}]}]});
    check(&[out], &["1 > 2:8002/tcp"], &["1 > 2:8001/tcp", "1 > 3:8003/tcp"]);
}

#[test]
fn who_may_ask_at_port_53_may_ask_cluster_dns_and_nothing_else_of_its_node() {
    let out = |rule: Value| [json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]})];
    let (udp, tcp) = (json!({"port": 53, "protocol": "UDP"}), json!({"port": 53, "protocol": "TCP"}));
    let (ask_udp, ask_tcp) = (
        ["1 > 192.0.2.1:10053/udp", "1 > [2001:db8::1]:10053/udp"],
        ["1 > 192.0.2.1:10053/tcp", "1 > [2001:db8::1]:10053/tcp"],
    );
    let ask = [ask_udp, ask_tcp].concat();
    let others =
        ["1 > 192.0.2.1:6443/tcp", "1 > 192.0.2.1:53/udp", "1 > 192.0.2.2:10053/udp", "1 > 192.0.2.99:10053/udp"];
    let system = json!({"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}});
    let server = json!({"namespaceSelector": system, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    for to in [json!([server]), json!([{"namespaceSelector": {}}]), json!([{"podSelector": {}}, server])] {
        check(&out(json!({"to": to, "ports": [udp, tcp]})), &ask, &others);
        check(&out(json!({"to": to})), &ask, &others);
        check(&out(json!({"to": to, "ports": [udp]})), &ask_udp, &[&ask_tcp[..], &others].concat());
        let names = json!([{"port": "dns", "protocol": "UDP"}, {"port": "dns-tcp"}]);
        check(&out(json!({"to": to, "ports": names})), &ask, &others);
        check(
            &out(json!({"to": to, "ports": [{"port": 80}, {"protocol": "SCTP"}]})),
            &[],
            &[&ask[..], &others].concat(),
        );
    }
    // Wherever port 53 may be asked at, or in a network that holds the server.
    let elsewhere = ["1 > 192.0.2.1:6443/tcp", "1 > 192.0.2.2:10053/udp"];
    check(&out(json!({"ports": [udp, tcp]})), &ask, &elsewhere);
    check(&out(json!({"ports": [{"port": 1, "endPort": 1023, "protocol": "UDP"}]})), &ask_udp, &elsewhere);
    let everywhere = json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]);
    check(&out(json!({"to": everywhere, "ports": [udp]})), &ask_udp, &elsewhere);
    let but = json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}}]);
    check(&out(json!({"to": but, "ports": [udp]})), &["1 > 198.51.100.53:53/udp"], &ask);
    // Others are not meant.
    for to in [json!([{"podSelector": {}}]), json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}}])] {
        check(&out(json!({"to": to, "ports": [udp]})), &[], &ask);
    }
    // Nor is the server's node a pod that may come in.
    check(&[to_web(json!([{"from": [{"namespaceSelector": {}}]}]))], &[], &["192.0.2.1 > 1:80/tcp"]);
}

#[test]
fn several_policies_allow_together_what_each_allows() {
    let from = |app: &str| to_web(json!([{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]));
    let nobody = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    check(&[from("db"), from("cache"), nobody], &["2 > 1:80/tcp", "3 > 1:80/tcp"], &["4 > 1:80/tcp", "1 > 2:80/tcp"]);
}

#[test]
fn what_may_leave_must_also_arrive() {
    let out = json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
    let closed = to_web(json!([]));
    check(std::slice::from_ref(&out), &["2 > 1:80/tcp"], &["2 > 3:80/tcp"]);
    check(&[out, closed], &[], &["2 > 1:80/tcp"]);
}

#[test]
fn pods_that_ended_or_use_the_hosts_network_are_no_peers() {
    for (spec, status) in [
        (json!({"hostNetwork": true, "containers": []}), json!({"podIP": "192.0.2.1"})),
        (json!({"containers": []}), json!({"podIP": "10.244.0.9", "phase": "Succeeded"})),
        (json!({"containers": []}), json!({})),
    ] {
        let pod = serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": spec, "status": status})).unwrap();
        assert_eq!(PodFacts::of(&pod), None);
    }
}
