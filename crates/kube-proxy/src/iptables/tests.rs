//! Packets followed through rendered chains, and what changes make of them.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::json;

use super::*;
use crate::behaviour::{self, End, Packet, Passing};
use crate::local::LocalTraffic;
use crate::model::{ServiceRules, fixture};
use crate::proxier::ServiceId;

pub(crate) fn around(family: Family) -> Surroundings {
    Surroundings {
        family,
        masquerade_all: false,
        pods: Some(behaviour::pods(family)),
        node_port_ips: Some(behaviour::node_port_ips(family)),
        localhost: false,
    }
}

fn chains(around: &Surroundings, rules: &ServiceRules) -> Chains {
    chains_of(around, rules, Balancer::Chains)
}

pub(crate) fn chains_of(around: &Surroundings, rules: &ServiceRules, balancer: Balancer) -> Chains {
    let (around, services, counted) = (around.clone(), BTreeMap::new(), BTreeMap::new());
    let mut all = Rules { around, mark: 0x4000, balancer, services, written: None, counted };
    all.take(&[Change { id: ServiceId(1), key: "prod/web", old: None, new: Some(rules) }]);
    all.wanted()
}

/// What the kernel does with chains, as far as our rules need it.
pub(crate) struct Machine {
    chains: Chains,
    remembered: HashSet<(String, IpAddr)>,
    choice: usize,
}

enum Flow {
    On,
    Return,
    Done,
    End(End),
}

impl Machine {
    pub(crate) fn new(chains: Chains, choice: usize) -> Self {
        Machine { chains, remembered: HashSet::new(), choice }
    }

    fn follow(&mut self, packet: &Packet) -> End {
        self.follow_past(packet, |_| None)
    }

    /// Follows a packet past `servers`, which have addresses on the node and say where they send it on to.
    pub(crate) fn follow_past(
        &mut self,
        packet: &Packet,
        servers: impl Fn(SocketAddr) -> Option<Option<SocketAddr>>,
    ) -> End {
        let mut passing = Passing::new(packet);
        let from_node = behaviour::is_nodes(packet.from);
        let first = if from_node { "OUTPUT" } else { "PREROUTING" };
        let hooks = [("nat", first), ("filter", ""), ("nat", "POSTROUTING")];
        for (table, hook) in hooks {
            if hook == "POSTROUTING"
                && let Some(Some(endpoint)) = servers(passing.to)
            {
                passing.to = endpoint;
            }
            let hook = match hook {
                "" if from_node => "OUTPUT",
                "" if behaviour::is_nodes(passing.to.ip()) || servers(passing.to).is_some() => "INPUT",
                "" => "FORWARD",
                hook => hook,
            };
            let is_there =
                |chain: &str| self.chains.contains_key(&(table, chain.to_owned())) || chain != LOCALHOST_GUARD;
            let jumps = JUMPS.iter().filter(|(t, from, to, ..)| *t == table && *from == hook && is_there(to));
            for (_, _, chain, _, _) in jumps.collect::<Vec<_>>() {
                match self.chain(table, chain, &mut passing) {
                    Flow::On | Flow::Return => {}
                    Flow::Done => break,
                    Flow::End(end) => return end,
                }
            }
        }
        passing.end()
    }

    fn chain(&mut self, table: &'static str, name: &str, passing: &mut Passing) -> Flow {
        let rules = self.chains.get(&(table, name.to_owned())).unwrap_or_else(|| panic!("no chain {name}")).clone();
        // Rules that leave it to chance or to what is left: one of them is chosen.
        let is_choice = |rule: &String| rule.contains("-j KUBE-SEP-") && !rule.contains("--rcheck");
        let choices = rules.iter().filter(|rule| is_choice(rule)).count();
        let mut chance = 0;
        for rule in &rules {
            if is_choice(rule) {
                chance += 1;
                if chance - 1 != self.choice % choices {
                    continue;
                }
            }
            let flow = self.rule(table, rule, passing);
            match flow {
                Flow::On => {}
                Flow::Return => return Flow::On,
                other => return other,
            }
        }
        Flow::On
    }

    fn rule(&mut self, table: &'static str, rule: &str, passing: &mut Passing) -> Flow {
        let words = words(rule);
        let mut words = words.iter().map(String::as_str);
        let mut not = false;
        let mut recent = String::new();
        let from = passing.packet.from;
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap();
            let matched = match word {
                "!" => {
                    not = true;
                    continue;
                }
                "-m" | "--comment" | "--mode" | "--probability" | "--seconds" => {
                    value();
                    continue;
                }
                "--reap" => continue,
                "-s" => holds(value(), from),
                "-d" => holds(value(), passing.to.ip()),
                "-i" => value().strip_suffix('+').is_some_and(|name| passing.is_from_interface(name)),
                "-p" => value() == passing.packet.protocol.name(),
                "--dport" => value() == passing.to.port().to_string(),
                "--src-type" => value() == "LOCAL" && behaviour::is_nodes(from),
                "--dst-type" => value() == "LOCAL" && behaviour::is_nodes(passing.to.ip()),
                // The first packet of a connection.
                "--ctstate" => {
                    let states = value();
                    let is_translated = passing.to != SocketAddr::new(passing.packet.to, passing.packet.port);
                    states == "NEW" || states.ends_with("DNAT") && is_translated
                }
                "--mark" => value() == "0x00004000/0x00004000" && passing.marked,
                "--name" => {
                    value().clone_into(&mut recent);
                    continue;
                }
                "--rcheck" => self.remembered.contains(&(recent.clone(), from)),
                "--set" => {
                    self.remembered.insert((recent.clone(), from));
                    true
                }
                "-j" => return self.target(table, value(), words.next().zip(words.next()), passing),
                other => panic!("what is {other} in {rule}?"),
            };
            if matched == std::mem::take(&mut not) {
                return Flow::On;
            }
        }
        panic!("{rule} has no target");
    }

    fn target(
        &mut self,
        table: &'static str,
        target: &str,
        option: Option<(&str, &str)>,
        passing: &mut Passing,
    ) -> Flow {
        match (target, option) {
            ("DROP", _) => Flow::End(End::Dropped),
            ("REJECT", _) => Flow::End(End::Rejected),
            ("ACCEPT", _) => Flow::Done,
            ("RETURN", _) => Flow::Return,
            ("MARK", Some(("--or-mark", _))) => {
                passing.marked = true;
                Flow::On
            }
            ("MARK", Some(("--xor-mark", _))) => {
                passing.marked = false;
                Flow::On
            }
            ("MASQUERADE", _) => {
                passing.masqueraded = true;
                Flow::Done
            }
            ("DNAT", Some((_, to))) => {
                passing.to = to.parse().unwrap();
                Flow::Done
            }
            (chain, None) => self.chain(table, chain, passing),
            other => panic!("what is {other:?}?"),
        }
    }
}

fn holds(net: &str, ip: IpAddr) -> bool {
    net.parse::<IpNet>().map_or_else(|_| net.parse::<IpAddr>().unwrap() == ip, |net| net.contains(&ip))
}

/// Split at spaces outside of quotes.
fn words(rule: &str) -> Vec<String> {
    let mut quoted = false;
    let parts = rule.split(|c: char| {
        if c == '"' {
            quoted = !quoted;
        }
        c == ' ' && !quoted
    });
    parts.map(str::to_owned).collect()
}

#[test]
fn packets_go_where_the_model_says() {
    let follow = |rules: &ServiceRules, packet: &Packet, choice: usize| {
        let chains = chains(&around(packet.family()), rules);
        Machine::new(chains, choice).follow(packet)
    };
    // Upstream's chains say nothing of ports that a Service does not have.
    let first = "a cluster IP leads pods to any endpoint, and others with the node's address";
    behaviour::check(
        follow,
        &[
            (first, "10.244.0.5 > 10.96.0.9:80/udp", "untouched"),
            (first, "10.244.0.5 > 10.96.0.9:81/tcp", "untouched"),
            ("IPv6 is as IPv4", "fd00:244::5 > [fd00:96::9]:81/tcp", "untouched"),
        ],
    );
}

#[test]
fn clients_stay_with_their_endpoint() {
    let spec = json!({"clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    let endpoints = json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}]);
    let rules = fixture::rules(spec, &endpoints).unwrap();
    let mut machine = Machine { chains: chains(&around(Family::V4), &rules), remembered: HashSet::new(), choice: 1 };
    let packet = Packet::parse("10.244.0.9 > 10.96.0.9:80/tcp");
    let first = machine.follow(&packet);
    machine.choice = 0;
    assert_eq!(machine.follow(&packet), first);
    assert_ne!(machine.follow(&Packet::parse("10.244.0.10 > 10.96.0.9:80/tcp")), first);
}

#[test]
fn pods_may_be_told_by_their_interface() {
    let rules = fixture::rules(
        json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}),
        &json!([{"addresses": ["10.244.0.2"]}]),
    )
    .unwrap();
    let pods = Some(LocalTraffic::Interface("veth*".to_owned()));
    let chains = chains(&Surroundings { pods, node_port_ips: None, ..around(Family::V4) }, &rules);
    let mut machine = Machine { chains, remembered: HashSet::new(), choice: 0 };
    let to: SocketAddr = "10.244.0.2:8080".parse().unwrap();
    for (packet, masqueraded) in [("10.244.0.5 > 10.96.0.9:80/tcp", false), ("192.0.2.7 > 10.96.0.9:80/tcp", true)] {
        assert_eq!(machine.follow(&Packet::parse(packet)), End::Endpoint { to, masqueraded });
    }
}

#[test]
fn localhost_has_node_ports_where_packets_of_it_are_routed() {
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]});
    let rules = fixture::rules(spec, &json!([{"addresses": ["10.244.0.2"]}])).unwrap();
    let end = |localhost, ips: Option<&str>, packet: &str| {
        let node_port_ips = ips.map(|ips| ips.split(' ').map(|ip| ip.parse().unwrap()).collect());
        let around = Surroundings { localhost, node_port_ips, ..around(Family::V4) };
        Machine::new(chains(&around, &rules), 0).follow(&Packet::parse(packet))
    };
    let local = "127.0.0.1 > 127.0.0.1:30080/tcp";
    let led = End::Endpoint { to: "10.244.0.2:8080".parse().unwrap(), masqueraded: true };
    assert_eq!(end(true, None, local), led);
    assert_eq!(end(true, Some("127.0.0.1"), local), led);
    assert_eq!(end(false, None, local), End::Untouched);
    // What others send to loopback addresses is let in no more than it was.
    assert_eq!(end(true, None, "192.0.2.77 > 127.0.0.1:22/tcp"), End::Dropped);
    assert_eq!(end(true, None, "127.0.0.1 > 127.0.0.1:22/tcp"), End::Untouched);
    assert_eq!(end(true, None, "192.0.2.77 > 192.0.2.1:22/tcp"), End::Untouched);
}

#[test]
fn chains_have_upstreams_names() {
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"name": "p80", "port": 80}]});
    let mut rules = fixture::rules(spec, &json!([])).unwrap();
    rules.ports[0].cluster = vec!["10.180.0.1:80".parse().unwrap()];
    let fragment = render::fragment("ns1/svc1", &rules, &around(Family::V4), Balancer::Chains);
    let names: Vec<&str> = fragment.own.keys().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["KUBE-SEP-SXIVWICOYRO3J4NJ", "KUBE-SVC-XPGD46QRK7WJZT7O"]);
}

#[test]
fn only_chains_that_changed_are_written() {
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]});
    let of = |endpoints| chains(&around(Family::V4), &fixture::rules(spec.clone(), &endpoints).unwrap());
    let one = of(json!([{"addresses": ["10.244.0.2"]}]));
    assert_eq!(difference(&one, &one), "");
    assert_eq!(count(&one, &one)["nat"].written, 0);
    let two = of(json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}]));
    let script = difference(&one, &two);
    let declared: Vec<&str> = script.lines().filter(|line| line.starts_with(':')).collect();
    assert!(
        declared.len() == 2 && declared[0].starts_with(":KUBE-SEP-") && declared[1].starts_with(":KUBE-SVC-"),
        "{script}"
    );
    // Both endpoints' chains have two rules; the Service's has one for each of them and one for what comes from elsewhere.
    assert_eq!((count(&one, &two)["nat"].written, count(&one, &two)["filter"].written), (5, 0));
    let none = difference(&two, &of(json!([])));
    assert_eq!(none.lines().filter(|line| line.starts_with("-X KUBE-S")).count(), 3, "{none}");
    assert!(none.contains("has no endpoints") && none.contains("-j REJECT"), "{none}");
}

#[test]
fn what_is_there_is_read() {
    let mut present = Present::default();
    let said = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
        -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        -A KUBE-SERVICES -j KUBE-NODEPORTS\nCOMMIT\n";
    present.read("nat", said);
    assert_eq!(present.rules, [(("nat", "KUBE-SERVICES".to_owned()), 1)].into());
    assert_eq!(present.jumps.len(), 1);
    // What upstream's kubelet needs too stays with it.
    present.read("filter", "*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n");
    assert_eq!((present.rules.len(), present.jumps.len()), (2, 2));
    let present = present.without_kubelets();
    assert_eq!((present.rules.len(), present.jumps.len()), (1, 1));
    let words = jump_words(*present.jumps.first().unwrap(), "-D").join(" ");
    assert_eq!(words, "--wait=5 -t nat -D PREROUTING -m comment --comment kubernetes service portals -j KUBE-SERVICES");
}

#[test]
fn a_family_that_the_host_has_no_rules_for_is_left_out() {
    let families = |found: [Result<(), Failed>; 2]| {
        let mut iptables = Iptables::new(0x4000, Family::BOTH.map(around), Balancer::Chains);
        iptables.keep_usable(&found);
        iptables.surround(Family::BOTH.map(|family| Surroundings { pods: None, ..around(family) }), &[]);
        assert!(iptables.families.iter().all(|rules| rules.around.pods.is_none()));
        Family::BOTH.map(|family| iptables.has(family))
    };
    let refused = || Err(Failed::Refused { program: "ip6tables-save".into(), said: "no such table".into() });
    assert_eq!(families([Ok(()), Ok(())]), [true, true]);
    assert_eq!(families([Ok(()), refused()]), [true, false]);
    assert_eq!(families([refused(), Ok(())]), [false, true]);
    assert_eq!(families([refused(), refused()]), [true, true]);
}
