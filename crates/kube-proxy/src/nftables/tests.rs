//! Packets followed through rendered tables, and the commands that changes take.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value as Json, json};

use super::render::{self, HOOKS, skeleton};
use super::syntax::{Action, Destination, Key, Match, Rule, Value};
use super::*;
use crate::behaviour::{self, End, Packet, Passing};
use crate::local::LocalTraffic;
use crate::model::{Family, Protocol, fixture};
use crate::proxier::ServiceId;

fn around(family: Family) -> Surroundings {
    Surroundings {
        family,
        masquerade_all: false,
        pods: Some(behaviour::pods(family)),
        node_port_ips: Some(behaviour::node_port_ips(family)),
        localhost: false,
    }
}

/// What the kernel does with a table, as far as our rules need it.
struct Machine {
    chains: HashMap<String, Vec<Rule>>,
    elements: HashMap<Key, Value>,
    /// Which set remembers which client.
    remembered: HashSet<(String, IpAddr)>,
    choice: usize,
}

/// What a chain says when it is through.
enum Flow {
    /// On with the rule after the jump, or the chain's policy.
    On,
    Translated,
    End(End),
}

impl Machine {
    fn new(around: &Surroundings, rules: &ServiceRules, choice: usize) -> Self {
        let mut table = Table::new(Mark(0x4000), around.clone());
        table.update(&[Change { id: ServiceId(1), key: "prod/web", old: None, new: Some(rules) }]);
        Machine::of(&table, choice)
    }

    fn of(table: &Table, choice: usize) -> Self {
        let own = table.chains.iter().map(|(name, rules)| (name.clone(), rules.as_ref().clone()));
        let elements = table.elements.iter().map(|(key, value)| (*key, value.clone()));
        let ips = table.around.node_port_ips.iter().flatten().map(|ip| (Key::NodePortIp(*ip), Value::Present));
        Machine {
            chains: skeleton(&table.around).into_iter().chain(own).collect(),
            elements: elements.chain(ips).collect(),
            remembered: HashSet::new(),
            choice,
        }
    }

    fn follow(&mut self, packet: &Packet) -> End {
        let mut passing = Passing::new(packet);
        let first = if behaviour::is_nodes(packet.from) { "output" } else { "prerouting" };
        if let Some(end) = self.hook(first, &mut passing) {
            return end;
        }
        if first == "prerouting" {
            let next = if behaviour::is_nodes(passing.to.ip()) { "input" } else { "forward" };
            if let Some(end) = self.hook(next, &mut passing) {
                return end;
            }
        }
        if let Some(end) = self.hook("postrouting", &mut passing) {
            return end;
        }
        passing.end()
    }

    fn hook(&mut self, name: &str, passing: &mut Passing) -> Option<End> {
        let mut hooks: Vec<_> = HOOKS.iter().filter(|hook| hook.hook == name).collect();
        hooks.sort_by_key(|hook| hook.priority);
        hooks.into_iter().find_map(|hook| match self.chain(hook.chain, passing) {
            Flow::End(end) => Some(end),
            Flow::On | Flow::Translated => None,
        })
    }

    fn chain(&mut self, name: &str, passing: &mut Passing) -> Flow {
        let rules = self.chains.get(name).unwrap_or_else(|| panic!("no chain {name}")).clone();
        for rule in &rules {
            if !rule.matches.iter().all(|m| self.matches(m, passing)) {
                continue;
            }
            let flow = match &rule.action {
                Action::Return => return Flow::On,
                Action::Goto(chain) => return self.chain(chain, passing),
                Action::Jump(chain) => self.chain(chain, passing),
                Action::LookUp(map) => {
                    let address = (map.by() == syntax::By::Address).then_some(passing.to.ip());
                    let key = Key::Verdict(*map, destination(address, passing));
                    match self.elements.get(&key).cloned() {
                        Some(Value::Goto(chain)) => return self.chain(&chain, passing),
                        Some(Value::Drop) => Flow::End(End::Dropped),
                        other => {
                            assert_eq!(other, None);
                            Flow::On
                        }
                    }
                }
                other => self.act(other, passing),
            };
            if !matches!(flow, Flow::On) {
                return flow;
            }
        }
        Flow::On
    }

    fn act(&mut self, action: &Action, passing: &mut Passing) -> Flow {
        match action {
            Action::Drop => return Flow::End(End::Dropped),
            Action::Reset if passing.packet.protocol != Protocol::Tcp => {}
            Action::Reset | Action::Reject => return Flow::End(End::Rejected),
            Action::Mark => passing.marked = true,
            Action::Unmark => passing.marked = false,
            Action::Masquerade => {
                passing.masqueraded = true;
                return Flow::Translated;
            }
            Action::Pick { by, protocol, first, count } => {
                assert_eq!(*protocol, passing.packet.protocol);
                let address = (*by == syntax::By::Address).then_some(passing.to.ip());
                let index = first + u16::try_from(self.choice).unwrap() % count;
                let key = Key::Endpoint(destination(address, passing), index);
                let Some(Value::To(to)) = self.elements.get(&key) else { panic!("no {key}") };
                passing.to = *to;
                return Flow::Translated;
            }
            Action::Choose(chains) => {
                let chain = chains[self.choice % chains.len()].clone();
                return self.chain(&chain, passing);
            }
            Action::Remember(set) => {
                self.remembered.insert((set.clone(), passing.packet.from));
            }
            Action::To { endpoint, .. } => {
                passing.to = *endpoint;
                return Flow::Translated;
            }
            Action::Jump(_) | Action::Goto(_) | Action::Return | Action::LookUp(_) => unreachable!(),
        }
        Flow::On
    }

    fn matches(&self, part: &Match, passing: &Passing) -> bool {
        let from = passing.packet.from;
        match part {
            Match::NewConnection => true,
            Match::From { nets, not } => nets.iter().any(|net| net.contains(&from)) != *not,
            Match::FromInterface { name, not } => {
                name.strip_suffix('*').is_some_and(|name| passing.is_from_interface(name)) != *not
            }
            Match::FromNode => behaviour::is_nodes(from),
            Match::ToNodePortIp { any: true } => behaviour::is_nodes(passing.to.ip()) && !passing.to.ip().is_loopback(),
            Match::ToNodePortIp { any: false } => self.elements.contains_key(&Key::NodePortIp(passing.to.ip())),
            Match::ToClusterIp => self.elements.contains_key(&Key::ClusterIp(passing.to.ip())),
            Match::ToItself => from == passing.to.ip() && self.elements.contains_key(&Key::Hairpin(from)),
            Match::Unmarked => !passing.marked,
            Match::RememberedIn(set) => self.remembered.contains(&(set.clone(), from)),
        }
    }
}

fn destination(address: Option<IpAddr>, passing: &Passing) -> Destination {
    Destination { address, protocol: passing.packet.protocol, port: passing.to.port() }
}

fn follow(rules: &ServiceRules, packet: &Packet, choice: usize) -> End {
    Machine::new(&around(packet.family()), rules, choice).follow(packet)
}

#[test]
fn packets_go_where_the_model_says() {
    behaviour::check(follow, &[]);
}

#[test]
fn clients_stay_with_their_endpoint() {
    let spec = json!({"clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "ports": [{"port": 80, "nodePort": 30080}]});
    let endpoints =
        json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}, {"addresses": ["10.244.0.4"]}]);
    let rules = fixture::rules(spec, &endpoints).unwrap();
    let mut machine = Machine::new(&around(Family::V4), &rules, 1);
    let packet = Packet::parse("10.244.0.9 > 10.96.0.9:80/tcp");
    let first = machine.follow(&packet);
    machine.choice = 2;
    assert_eq!(machine.follow(&packet), first);
    let other = machine.follow(&Packet::parse("10.244.0.10 > 10.96.0.9:80/tcp"));
    assert_ne!(other, first);
    // Through the node's port, the same client is the same.
    let node_port = machine.follow(&Packet::parse("10.244.0.9 > 192.0.2.1:30080/tcp"));
    let End::Endpoint { to, .. } = first else { panic!("{first:?}") };
    assert_eq!(node_port, End::Endpoint { to, masqueraded: true });
    let sets = render::fragment("prod/web", &rules, &around(Family::V4)).sets;
    assert_eq!(sets.into_values().collect::<Vec<_>>(), [60, 60, 60]);
}

#[test]
fn pods_may_be_told_by_their_interface_and_node_ports_served_everywhere() {
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]});
    let rules = fixture::rules(spec, &json!([{"addresses": ["10.244.0.2"]}])).unwrap();
    let pods = Some(LocalTraffic::Interface("veth*".to_owned()));
    let around = Surroundings { pods, node_port_ips: None, ..around(Family::V4) };
    let end = |packet: &str| Machine::new(&around, &rules, 0).follow(&Packet::parse(packet));
    let to: SocketAddr = "10.244.0.2:8080".parse().unwrap();
    assert_eq!(end("10.244.0.5 > 10.96.0.9:80/tcp"), End::Endpoint { to, masqueraded: false });
    assert_eq!(end("192.0.2.77 > 10.96.0.9:80/tcp"), End::Endpoint { to, masqueraded: true });
    assert_eq!(end("192.0.2.77 > 203.0.113.1:30080/tcp"), End::Endpoint { to, masqueraded: true });
    assert_eq!(end("127.0.0.1 > 127.0.0.1:30080/tcp"), End::Untouched);
}

/// A table that takes in one Service's changes.
struct Script {
    table: Table,
    before: Option<ServiceRules>,
}

impl Script {
    fn new() -> Self {
        let mut table = Table::new(Mark(0x4000), around(Family::V4));
        table.start(None, &[]);
        Script { table, before: None }
    }

    fn becomes(&mut self, spec: &str, endpoints: &Json) -> Vec<String> {
        let spec: Json = serde_json::from_str(spec).unwrap();
        let now = fixture::rules(spec, endpoints);
        let before = std::mem::replace(&mut self.before, now.clone());
        let change = Change { id: ServiceId(1), key: "prod/web", old: before.as_ref(), new: now.as_ref() };
        self.table.update(&[change]).lines().map(str::to_owned).collect()
    }
}

const WEB: &str = r#"{"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}"#;

#[test]
fn a_change_costs_what_it_changes() {
    let mut script = Script::new();
    let one = json!([{"addresses": ["10.244.0.2"], "nodeName": "n2"}]);
    assert_eq!(
        script.becomes(WEB, &one),
        [
            "add chain ip kube-proxy endpoints-tcp-1",
            "add rule ip kube-proxy endpoints-tcp-1 meta l4proto tcp dnat ip to ip daddr . tcp dport . numgen random mod 1 map @endpoints-tcp",
            "add element ip kube-proxy cluster-ips { 10.96.0.9 }",
            "add element ip kube-proxy endpoints-tcp { 10.96.0.9 . 80 . 0 : 10.244.0.2 . 8080 }",
            "add element ip kube-proxy service-ips { 10.96.0.9 . tcp . 80 : goto endpoints-tcp-1 }",
        ]
    );
    assert!(script.becomes(WEB, &one).is_empty());
    // As many endpoints as before: one element is another.
    assert_eq!(
        script.becomes(WEB, &json!([{"addresses": ["10.244.0.3"], "nodeName": "n2"}])),
        [
            "delete element ip kube-proxy endpoints-tcp { 10.96.0.9 . 80 . 0 }",
            "add element ip kube-proxy endpoints-tcp { 10.96.0.9 . 80 . 0 : 10.244.0.3 . 8080 }",
        ]
    );
    assert_eq!(
        script.becomes(WEB, &json!([])),
        [
            "flush chain ip kube-proxy endpoints-tcp-1",
            "delete element ip kube-proxy endpoints-tcp { 10.96.0.9 . 80 . 0 }",
            "delete element ip kube-proxy service-ips { 10.96.0.9 . tcp . 80 }",
            "add element ip kube-proxy no-endpoint-services { 10.96.0.9 . tcp . 80 : goto reject-chain }",
            "delete chain ip kube-proxy endpoints-tcp-1",
        ]
    );
}

#[test]
fn of_two_services_with_one_address_only_one_is_reached_there() {
    let web = |cluster_ip: &str, net: u8, count: u8| {
        let spec = json!({"clusterIP": cluster_ip, "ports": [{"port": 80}], "externalIPs": ["198.51.100.9"]});
        let endpoints = (1..=count).map(|i| json!({"addresses": [format!("10.244.{net}.{i}")]})).collect();
        fixture::rules(spec, &endpoints).unwrap()
    };
    let (one, two, others) = (web("10.96.0.1", 1, 1), web("10.96.0.1", 1, 2), web("10.96.0.2", 2, 3));
    let mut table = Table::new(Mark(0x4000), around(Family::V4));
    table.update(&[
        Change { id: ServiceId(1), key: "prod/a", old: None, new: Some(&one) },
        Change { id: ServiceId(2), key: "prod/b", old: None, new: Some(&others) },
    ]);
    table.update(&[Change { id: ServiceId(1), key: "prod/a", old: Some(&one), new: Some(&two) }]);
    let ends = |table: &Table| -> BTreeSet<String> {
        let packet = Packet::parse("192.0.2.77 > 198.51.100.9:80/tcp");
        let end = |choice| match Machine::of(table, choice).follow(&packet) {
            End::Endpoint { to, .. } => to.ip().to_string(),
            other => panic!("{other:?}"),
        };
        (0..6).map(end).collect()
    };
    assert_eq!(ends(&table), ["10.244.1.1", "10.244.1.2"].map(str::to_owned).into());
    table.update(&[Change { id: ServiceId(1), key: "prod/a", old: Some(&two), new: None }]);
    assert_eq!(ends(&table), ["10.244.2.1", "10.244.2.2", "10.244.2.3"].map(str::to_owned).into());
}

#[test]
fn chains_do_not_grow_with_the_number_of_services() {
    let endpoints = json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}]);
    let mut table = Table::new(Mark(0x4000), around(Family::V4));
    let all: Vec<ServiceRules> = (1..=100)
        .map(|i| {
            fixture::rules(json!({"clusterIP": format!("10.96.1.{i}"), "ports": [{"port": 80}]}), &endpoints).unwrap()
        })
        .collect();
    let change = |i: usize| Change { id: ServiceId(i as u32), key: "", old: None, new: Some(&all[i]) };
    let script = table.start(None, &(0..100).map(change).collect::<Vec<_>>());
    assert_eq!(script.lines().filter(|l| l.starts_with("add chain")).count(), skeleton(&table.around).len() + 1);
    assert_eq!(script.lines().filter(|l| l.starts_with("add element")).count(), 4);
}

#[test]
fn another_timeout_is_another_set() {
    let mut script = Script::new();
    let spec = |seconds: u64| {
        format!(
            r#"{{"clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP", "ports": [{{"port": 80}}],
                "sessionAffinityConfig": {{"clientIP": {{"timeoutSeconds": {seconds}}}}}}}"#
        )
    };
    let one = json!([{"addresses": ["10.244.0.2"]}]);
    let sets = |lines: Vec<String>| lines.into_iter().filter(|l| l.contains(" set ip kube-proxy ")).collect::<Vec<_>>();
    let first = sets(script.becomes(&spec(60), &one));
    assert!(first.len() == 1 && first[0].contains("timeout 60s"), "{first:?}");
    let second = sets(script.becomes(&spec(90), &one));
    assert!(
        second.len() == 2 && second[0].contains("timeout 90s") && second[1].starts_with("delete set"),
        "{second:?}"
    );
    assert!(sets(script.becomes(WEB, &one))[0].starts_with("delete set"));
}

#[test]
fn what_is_there_is_changed_into_what_is_wanted() {
    let said = r#"{"nftables": [{"metainfo": {}}, {"table": {"name": "kube-proxy"}},
        {"map": {"name": "service-ips"}}, {"set": {"name": "affinity-old"}}, {"map": {"name": "other"}},
        {"chain": {"name": "services"}}, {"chain": {"name": "endpoint-old"}}, {"rule": {"chain": "services"}}]}"#;
    let present = Present::parse(said);
    assert_eq!((present.chains["services"], present.chains["endpoint-old"]), (1, 0));
    let script = Table::new(Mark(0x4000), around(Family::V4)).start(Some(&present), &[]);
    for line in [
        "flush table ip kube-proxy",
        "flush map ip kube-proxy service-ips",
        "delete chain ip kube-proxy endpoint-old",
        "delete set ip kube-proxy affinity-old",
        "delete map ip kube-proxy other",
    ] {
        assert!(script.lines().any(|l| l == line), "{line}: {script}");
    }
    assert!(!script.contains("delete table") && !script.contains("flush set ip kube-proxy cluster-ips"));
    assert_eq!(Protocol::ALL.len() * 2, script.lines().filter(|l| l.contains("numgen random mod 65536")).count());
}
