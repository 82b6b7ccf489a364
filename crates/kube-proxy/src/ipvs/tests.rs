//! Packets followed past virtual servers, and what changes make of them.

use serde_json::json;

use super::*;
use crate::behaviour::{self, End, Packet};
use crate::iptables::tests::{Machine, around, chains_of};
use crate::model::{Family, fixture};

fn both() -> [Surroundings; 2] {
    Family::BOTH.map(around)
}

fn state_of(rules: &ServiceRules) -> State {
    state(std::iter::once(rules), &both(), &[])
}

#[test]
fn packets_go_where_the_model_says() {
    let follow = |rules: &ServiceRules, packet: &Packet, choice: usize| -> End {
        let state = state_of(rules);
        let chains = chains_of(&around(packet.family()), rules, Balancer::VirtualServers);
        let servers = |to: SocketAddr| {
            let server = state.servers.get(&Virtual { protocol: packet.protocol, at: to });
            let chosen = server.and_then(|s| s.endpoints.iter().nth(choice % s.endpoints.len()).copied());
            // At an address of the device the packet arrives at the node, with a server or without.
            (chosen.is_some() || state.addresses.contains(&to.ip())).then_some(chosen)
        };
        Machine::new(chains, choice).follow_past(packet, servers)
    };
    let first = "a cluster IP leads pods to any endpoint, and others with the node's address";
    let local = "external traffic of policy Local stays here and keeps its source; pods and the node go anywhere";
    let elsewhere = "external traffic of policy Local is dropped where there is no endpoint";
    behaviour::check(
        follow,
        &[
            // What a Service does not have, the node refuses or not like any port of its own.
            (first, "10.244.0.5 > 10.96.0.9:80/udp", "untouched"),
            (first, "10.244.0.5 > 10.96.0.9:81/tcp", "untouched"),
            ("IPv6 is as IPv4", "fd00:244::5 > [fd00:96::9]:81/tcp", "untouched"),
            // A virtual server has one list of endpoints.
            (local, "10.244.0.5 > 198.51.100.8:80/tcp", "10.244.0.2:8080"),
            (local, "192.0.2.1 > 198.51.100.8:80/tcp", "10.244.0.2:8080 masqueraded"),
            (elsewhere, "10.244.0.5 > 198.51.100.8:80/tcp", "dropped"),
            (elsewhere, "192.0.2.1 > 198.51.100.8:80/tcp", "dropped"),
        ],
    );
}

fn sticky(seconds: u64, endpoints: &[&str]) -> State {
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    let endpoints = endpoints.iter().map(|ip| json!({"addresses": [ip]})).collect();
    state_of(&fixture::rules(spec, &endpoints).unwrap())
}

#[test]
fn only_what_changed_is_written() {
    let one = sticky(60, &["10.244.0.2"]);
    let (before, servers, after) = difference(&State::default(), &one, "rr");
    assert_eq!((before.as_str(), after.as_str()), ("addr add 10.96.0.9/32 dev kube-ipvs0\n", ""));
    let want = "-A -t 10.96.0.9:80 -s rr -p 60\n-a -t 10.96.0.9:80 -r 10.244.0.2:8080 -m -w 1\n\
        -A -t 192.0.2.1:30080 -s rr -p 60\n-a -t 192.0.2.1:30080 -r 10.244.0.2:8080 -m -w 1\n";
    assert_eq!(servers, want);
    assert_eq!(difference(&one, &one, "rr"), Default::default());
    let (_, servers, _) = difference(&one, &sticky(90, &["10.244.0.3"]), "rr");
    let first: Vec<&str> = servers.lines().take(3).collect();
    let want = [
        "-E -t 10.96.0.9:80 -s rr -p 90",
        "-a -t 10.96.0.9:80 -r 10.244.0.3:8080 -m -w 1",
        "-d -t 10.96.0.9:80 -r 10.244.0.2:8080",
    ];
    assert_eq!(first, want);
    let (before, servers, after) = difference(&one, &State::default(), "rr");
    assert_eq!((before.as_str(), after.as_str()), ("", "addr del 10.96.0.9/32 dev kube-ipvs0\n"));
    assert_eq!(servers, "-D -t 10.96.0.9:80\n-D -t 192.0.2.1:30080\n");
}

#[test]
fn what_is_written_is_read_again() {
    let one = sticky(60, &["10.244.0.2", "10.244.0.3"]);
    let (_, servers, _) = difference(&State::default(), &one, "rr");
    assert_eq!(read_servers(&servers), one.servers);
    // What is somebody else's is not seen, and so stays.
    let excluded = ["10.96.0.0/12".parse().unwrap()];
    let left = without_others(one.servers.clone(), &excluded, &Servers::new());
    assert_eq!(left.keys().map(ToString::to_string).collect::<Vec<_>>(), ["-t 192.0.2.1:30080"]);
    assert_eq!(without_others(one.servers.clone(), &excluded, &one.servers), one.servers);
    let said = r#"[{"ifname": "kube-ipvs0", "addr_info": [{"local": "10.96.0.9", "scope": "global"},
        {"local": "fe80::1", "scope": "link"}]}]"#;
    assert_eq!(read_addresses(said), one.addresses);
}

#[test]
fn a_family_without_rules_has_no_virtual_servers() {
    let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"], "ports": [{"port": 80}]});
    let rules = fixture::rules(spec, &json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["fd00:244::2"]}])).unwrap();
    let state = state(std::iter::once(&rules), &both()[..1], &[]);
    assert_eq!(state.addresses, ["10.96.0.9".parse().unwrap()].into());
    assert_eq!(state.servers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["-t 10.96.0.9:80"]);
}
