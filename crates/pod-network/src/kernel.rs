//! Tunnels, routes and policies in the kernel: network namespaces as nodes and pods, with no way out.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use client::events::{Dialect, Recorder};
use futures::StreamExt;
use kube::runtime::watcher;
use serde_json::json;
use testing::netns::{Namespaces, ip};
use testing::wait::holds_within;
use tokio_util::sync::CancellationToken;

use crate::nft::{Table, Writer};
use crate::plan::{Backend, NodeNetwork, Nodes, plan};
use crate::policy::tests::table;
use crate::{Config, Error, Network, clean_up, routes, tunnel};

/// A new link may lose the first packet, which is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(1500);

/// For what happens at once, on a machine that has much else to do.
const PLENTY: Duration = Duration::from_secs(60);

/// Does a caller get through to a server there?
fn reaches(net: &Namespaces, from: &str, to: &str) -> bool {
    net.call(from, to, PATIENCE).parse::<IpAddr>().is_ok()
}

/// Two nodes on one network, each with an address of a pod.
fn two_nodes() -> (Namespaces, Nodes) {
    let net = Namespaces::new("pods", &["a", "b"]);
    let (a, b) = (net.ns("a"), net.ns("b"));
    ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"));
    let mut nodes = Nodes::new();
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        for address in [format!("192.0.2.{}/24", i + 1), format!("2001:db8::{}/64", i + 1)] {
            net.ip(name, &format!("addr add {address} dev eth0 nodad"));
        }
        net.ip(name, "link set eth0 up");
        for pod in [format!("10.244.{i}.5/32"), format!("fd00:{i}::5/128")] {
            net.ip(name, &format!("addr add {pod} dev lo nodad"));
        }
        net.serve(name, &format!("10.244.{i}.5:8080"));
        net.serve(name, &format!("[fd00:{i}::5]:8080"));
        let parse = |texts: [String; 2]| texts.map(|t| t.parse().unwrap()).to_vec();
        nodes.insert(
            name.to_owned(),
            NodeNetwork {
                pod_cidrs: [format!("10.244.{i}.0/24"), format!("fd00:{i}::/64")].map(|c| c.parse().unwrap()).to_vec(),
                addresses: parse([format!("192.0.2.{}", i + 1), format!("2001:db8::{}", i + 1)]),
                created: None,
            },
        );
    }
    (net, nodes)
}

fn sync(net: &Namespaces, name: &str, nodes: &Nodes, backend: Backend) {
    let wanted = plan(name, nodes, backend);
    net.block_on(name, async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let connection = tokio::spawn(connection);
        let device = tunnel::sync(&handle, wanted.tunnel.as_ref(), 1450).await.unwrap();
        routes::sync(&handle, &wanted.routes, device).await.unwrap();
        connection.abort();
    });
}

#[test]
fn nodes_reach_each_others_pods_by_either_back_end_and_a_change_leaves_nothing() {
    let (net, nodes) = two_nodes();
    let reaches = || [reaches(&net, "a", "10.244.1.5:8080"), reaches(&net, "b", "[fd00:0::5]:8080")];
    assert_eq!(reaches(), [false, false]);
    for _ in 0..2 {
        for name in ["a", "b"] {
            sync(&net, name, &nodes, Backend::Vxlan);
        }
        assert_eq!(reaches(), [true, true]);
    }
    assert!(net.ip("a", "route get 10.244.1.5").contains("dev kelson-vxlan"));
    assert!(net.ip("a", "link show kelson-vxlan").contains("mtu 1450"));
    for name in ["a", "b"] {
        sync(&net, name, &nodes, Backend::HostGateway);
    }
    assert_eq!(reaches(), [true, true]);
    assert!(!net.ip("a", "link").contains("kelson-vxlan"));
    // A node that leaves is no longer led to.
    let mut alone = nodes.clone();
    alone.remove("b");
    sync(&net, "a", &alone, Backend::HostGateway);
    assert!(!net.ip("a", "route").contains("10.244.1.0"));
}

#[test]
fn a_clean_up_leaves_nothing_of_ours_and_everything_of_others() {
    let (net, nodes) = two_nodes();
    sync(&net, "a", &nodes, Backend::Vxlan);
    let nft = |words: &str| {
        let done = Command::new("ip").args(["netns", "exec", &net.ns("a"), "nft"]).args(words.split(' ')).output();
        String::from_utf8_lossy(&done.unwrap().stdout).into_owned()
    };
    nft("add table inet others");
    nft("add table inet kelson-pod-network");
    nft("add table inet kelson-network-policy");
    for words in ["link add cni0 type bridge", "link add theirs type bridge", "route add 203.0.113.0/24 via 192.0.2.2"]
    {
        net.ip("a", words);
    }
    let before = [net.ip("a", "route"), net.ip("a", "link"), nft("list tables")].concat();
    let all_ours = ["10.244.1.0/24", "kelson-vxlan", "cni0", "kelson-pod-network", "kelson-network-policy"];
    for ours in all_ours {
        assert!(before.contains(ours), "{ours}: {before}");
    }
    for _ in 0..2 {
        net.block_on("a", clean_up("cni0")).unwrap();
        let after = [net.ip("a", "route"), net.ip("a", "link"), nft("list tables")].concat();
        for ours in all_ours {
            assert!(!after.contains(ours), "{ours}: {after}");
        }
        for others in ["203.0.113.0/24", "theirs", "table inet others"] {
            assert!(after.contains(others), "{others}: {after}");
        }
    }
    // A bridge that somebody else's links are on is not ours alone.
    for words in ["link add cni0 type bridge", "link add other type veth peer name rehto", "link set other master cni0"]
    {
        net.ip("a", words);
    }
    let kept = net.block_on("a", clean_up("cni0")).unwrap_err();
    assert_eq!(kept.to_string(), "the bridge cni0 is used by somebody else and stays");
}

#[test]
fn a_node_that_leaves_is_forgotten_by_the_tunnel() {
    let (net, nodes) = two_nodes();
    sync(&net, "a", &nodes, Backend::Vxlan);
    let known = || {
        let said =
            Command::new("bridge").args(["-n", &net.ns("a"), "fdb", "show", "dev", "kelson-vxlan"]).output().unwrap();
        let neighbours = net.ip("a", "neigh show dev kelson-vxlan nud permanent");
        (String::from_utf8_lossy(&said.stdout).contains("192.0.2.2"), neighbours.contains("10.244.1.0"))
    };
    assert_eq!(known(), (true, true));
    let mut alone = nodes.clone();
    alone.remove("b");
    sync(&net, "a", &alone, Backend::Vxlan);
    assert_eq!(known(), (false, false));
}

#[test]
fn the_kernel_lets_through_what_policies_allow() {
    let net = Namespaces::new("pods", &["node", "web", "db"]);
    let node = net.ns("node");
    for (name, last) in [("web", 1), ("db", 2)] {
        let pod = net.ns(name);
        ip(&format!("-n {node} link add to-{name} type veth peer name eth0 netns {pod}"));
        net.ip("node", &format!("addr add 10.244.0.254/32 dev to-{name}"));
        net.ip("node", &format!("link set to-{name} up"));
        net.ip("node", &format!("route add 10.244.0.{last} dev to-{name}"));
        net.ip(name, &format!("addr add 10.244.0.{last}/32 dev eth0"));
        net.ip(name, "link set eth0 up");
        net.ip(name, "route add 10.244.0.254 dev eth0");
        net.ip(name, "route add default via 10.244.0.254");
    }
    for port in [8001, 9000] {
        net.serve("web", &format!("10.244.0.1:{port}"));
    }
    let mut writer = Writer::new(crate::policy::TABLE);
    let mut write = |table: Table| net.block_on("node", writer.write(table)).unwrap();
    let to_web = |ingress| json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": ingress});
    let db = json!({"podSelector": {"matchLabels": {"app": "db"}}});
    let check = |named: bool, other: bool| {
        let got = (reaches(&net, "db", "10.244.0.1:8001"), reaches(&net, "db", "10.244.0.1:9000"));
        assert_eq!(got, (named, other));
        assert!(reaches(&net, "node", "10.244.0.1:8001"), "the node reaches its pods");
    };
    check(true, true);
    write(table(&[to_web(json!([]))]));
    check(false, false);
    write(table(&[to_web(json!([{"from": [db], "ports": [{"port": "web"}]}]))]));
    check(true, false);
    write(table(&[to_web(json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.2/32"]}}]}]))]));
    check(false, false);
    write(table(&[to_web(
        json!([{"from": [{"ipBlock": {"cidr": "10.244.0.0/30"}}], "ports": [{"port": 8990, "endPort": 9010}]}]),
    )]));
    check(false, true);
    let nobody_out = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    write(table(&[nobody_out]));
    check(false, false);
    write(table(&[]));
    check(true, true);
    let left = Command::new("ip").args(["netns", "exec", &node, "nft", "list", "tables"]).output().unwrap();
    // Of two isolations without pods, chains without effect are left until there is no policy.
    assert!(String::from_utf8_lossy(&left.stdout).lines().count() <= 1);
    write(Table::default());
    let left = Command::new("ip").args(["netns", "exec", &node, "nft", "list", "tables"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[test]
fn policies_do_not_keep_pods_of_one_bridge_from_finding_each_other() {
    let net = Namespaces::new("pods", &["node", "web", "db"]);
    let node = net.ns("node");
    net.ip("node", "link add cni0 type bridge");
    net.ip("node", "link set cni0 up");
    for (name, last) in [("web", 1), ("db", 2)] {
        ip(&format!("-n {node} link add to-{name} type veth peer name eth0 netns {}", net.ns(name)));
        net.ip("node", &format!("link set to-{name} master cni0 up"));
        net.ip(name, &format!("addr add 10.244.0.{last}/24 dev eth0"));
        net.ip(name, &format!("addr add fd00::{last}/64 dev eth0 nodad"));
        net.ip(name, "link set eth0 up");
    }
    // Whether the kernel asks about packets that pass a bridge; one that cannot has no such files.
    let is_asked = ["ip", "ip6"].map(|family| {
        let setting = format!("net.bridge.bridge-nf-call-{family}tables=1");
        let set = Command::new("ip").args(["netns", "exec", &node, "sysctl", "-qw", &setting]).output().unwrap();
        set.status.success()
    });
    let mut writer = Writer::new(crate::policy::TABLE);
    let all = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"ports": [{"port": 8001}]}],
        "egress": [{"ports": [{"port": 8001}]}]});
    net.block_on("node", writer.write(table(&[all]))).unwrap();
    for (address, is_asked) in ["10.244.0.1", "[fd00::1]"].into_iter().zip(is_asked) {
        for port in [8001, 9000] {
            net.serve("web", &format!("{address}:{port}"));
        }
        assert!(reaches(&net, "db", &format!("{address}:8001")), "{address}");
        assert_eq!(reaches(&net, "db", &format!("{address}:9000")), !is_asked, "{address}");
    }
}

#[test]
fn what_somebody_removes_comes_back_and_an_end_of_policies_is_an_error() {
    let (net, nodes) = two_nodes();
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        node_name: "a".into(),
        cni_conf_dir: dir.path().into(),
        ipam_dir: dir.path().into(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        bridge: "cni0".into(),
        mtu: None,
        backend: Backend::HostGateway,
    };
    let node = |(name, network): (&String, &NodeNetwork)| {
        let addresses: Vec<_> =
            network.addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        let cidrs: Vec<_> = network.pod_cidrs.iter().map(ToString::to_string).collect();
        let node = json!({"metadata": {"name": name}, "spec": {"podCIDRs": cidrs}, "status": {"addresses": addresses}});
        Ok(watcher::Event::InitApply(serde_json::from_value(node).unwrap()))
    };
    let events: Vec<_> = nodes.iter().map(node).chain([Ok(watcher::Event::InitDone)]).collect();
    let end_of_policies = CancellationToken::new();
    let keep = async {
        let stop = CancellationToken::new();
        // Nobody answers there, and nobody has to.
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let recorder = Recorder::start(client, Dialect::Core, "pod-network", "a", stop.clone());
        let (connection, netlink, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let ended = end_of_policies.clone();
        let policies = tokio::spawn(async move {
            ended.cancelled().await;
            panic!("as a mistake would");
        });
        let events = futures::stream::iter(events).chain(futures::stream::pending());
        let looks = (Duration::from_millis(50), Duration::from_millis(50));
        Network::new(config, netlink, recorder).keep(events, policies, looks, stop).await
    };
    std::thread::scope(|scope| {
        let kept = scope.spawn(|| net.block_on("a", keep));
        // Also when an assertion fails.
        let guard = end_of_policies.clone().drop_guard();
        let nft = |words: &str| {
            let done = Command::new("ip").args(["netns", "exec", &net.ns("a"), "nft"]).args(words.split(' ')).output();
            String::from_utf8_lossy(&done.unwrap().stdout).into_owned()
        };
        let is_whole = || {
            let rules = nft("list ruleset");
            rules.contains("ip saddr 10.244.0.0/24") && net.ip("a", "route").contains("10.244.1.0/24 via 192.0.2.2")
        };
        for damage in ["nothing", "rules", "routes"] {
            match damage {
                "rules" => drop(nft("flush ruleset")),
                "routes" => drop(net.ip("a", "route del 10.244.1.0/24")),
                _ => {}
            }
            assert!(holds_within(PLENTY, is_whole), "{damage} removed");
        }
        drop(guard);
        assert!(matches!(kept.join().unwrap(), Err(Error::Policies(_))));
    });
}
