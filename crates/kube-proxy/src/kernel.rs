//! The rules in the kernel: network namespaces as a node, a pod and a client, with no way out.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use testing::netns::{Namespaces, ip};

use crate::config::VirtualServers;
use crate::conntrack;
use crate::iptables::{self, Balancer, Iptables};
use crate::ipvs::{self, Ipvs};
use crate::local::{self, LocalTraffic, Surroundings};
use crate::model::{Family, ServiceRules, fixture};
use crate::nftables::{self, Mark, Nftables};
use crate::proxier::{self, Change, Mode, ServiceId};

const NODE: &str = "192.0.2.1";
/// A new link may lose the first packet, which is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(2500);

/// A node with a pod behind it and a client before it.
struct Net(Namespaces);

impl std::ops::Deref for Net {
    type Target = Namespaces;

    fn deref(&self) -> &Namespaces {
        &self.0
    }
}

impl Net {
    fn new() -> Self {
        let net = Net(Namespaces::new("proxy", &["node", "pod", "client"]));
        for (name, address, gateway) in [
            ("pod", ["10.244.0.2/24", "fd00:244::2/64"], ["10.244.0.1/24", "fd00:244::1/64"]),
            ("client", ["192.0.2.77/24", "2001:db8::77/64"], ["192.0.2.1/24", "2001:db8::1/64"]),
        ] {
            let (node, other) = (net.ns("node"), net.ns(name));
            ip(&format!("-n {node} link add to-{name} type veth peer name eth0 netns {other}"));
            for (own, theirs) in address.iter().zip(gateway) {
                ip(&format!("-n {other} addr add {own} dev eth0 nodad"));
                ip(&format!("-n {node} addr add {theirs} dev to-{name} nodad"));
            }
            ip(&format!("-n {node} link set to-{name} up"));
            ip(&format!("-n {other} link set eth0 up"));
            for gateway in gateway {
                let via = gateway.split('/').next().unwrap();
                let family = if via.contains(':') { "-6 " } else { "" };
                ip(&format!("{family}-n {other} route add default via {via}"));
            }
        }
        // Service addresses need a route before the packet filter sees them; nobody has the gateway's address.
        ip(&format!("-n {} route add default via 192.0.2.254", net.ns("node")));
        ip(&format!("-6 -n {} route add default via 2001:db8::254", net.ns("node")));
        net
    }

    fn serve(&self, address: &str) {
        self.0.serve("pod", address);
    }

    fn call(&self, from: &str, to: &str) -> String {
        self.0.call(from, to, PATIENCE)
    }

    /// Calls go as is said of each: who calls where, and who answers.
    #[track_caller]
    fn answers(&self, ways: &[(&str, &str, &str)]) {
        for (from, to, heard) in ways {
            assert_eq!(self.call(from, to), *heard, "{from} to {to}");
        }
    }
}

fn surroundings() -> [Surroundings; 2] {
    let own = |family| {
        let (pods, node): (_, IpAddr) = match family {
            Family::V4 => ("10.244.0.0/16", NODE.parse().unwrap()),
            Family::V6 => ("fd00:244::/48", "2001:db8::1".parse().unwrap()),
        };
        let pods = Some(LocalTraffic::Networks(vec![pods.parse().unwrap()]));
        Surroundings { family, masquerade_all: false, pods, node_port_ips: Some(vec![node]), localhost: false }
    };
    Family::BOTH.map(own)
}

fn nftables() -> Nftables {
    Nftables::new(Mark(0x4000), surroundings())
}

fn web(extra: &Value, endpoints: &Value) -> ServiceRules {
    let mut spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"],
        "ports": [{"port": 80, "nodePort": 30080}], "externalIPs": ["198.51.100.9"],
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}]}}});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    fixture::rules(spec, endpoints).unwrap()
}

fn here() -> Value {
    json!([{"addresses": ["10.244.0.2"], "nodeName": "n1"}, {"addresses": ["fd00:244::2"], "nodeName": "n1"}])
}

/// Who calls where, and who answers or what becomes of it, while the Service's one endpoint is the pod.
const WAYS: &[(&str, &str, &str)] = &[
    ("pod", "10.96.0.9:80", "10.244.0.1"), // the pod through its Service to itself
    ("client", "10.96.0.9:80", "10.244.0.1"),
    ("client", "[fd00:96::9]:80", "fd00:244::1"),
    ("client", "192.0.2.1:30080", "10.244.0.1"),
    ("client", "[2001:db8::1]:30080", "fd00:244::1"),
    ("client", "198.51.100.9:80", "10.244.0.1"),
    ("client", "198.51.100.8:80", "10.244.0.1"),
    ("node", "10.96.0.9:80", "10.244.0.1"),
    ("client", "192.0.2.1:30081", "refused"),
];

/// Writes that a Service's rules became others.
fn write(net: &Net, proxy: &mut Nftables, old: Option<&ServiceRules>, new: Option<&ServiceRules>) {
    let key = "prod/web";
    let (change, all) = (Change { id: ServiceId(1), key, old, new }, Change { id: ServiceId(1), key, old: None, new });
    net.block_on("node", proxy.sync(&[change], || vec![all])).unwrap();
}

#[test]
fn the_kernel_leads_packets_where_the_model_says() {
    let net = Net::new();
    net.serve("10.244.0.2:8080");
    net.serve("[fd00:244::2]:8080");
    let mut proxy = nftables();
    let cluster = web(&json!({}), &here());
    write(&net, &mut proxy, None, Some(&cluster));
    net.answers(WAYS);
    net.answers(&[("client", "10.96.0.9:81", "refused")]);
    let local = web(&json!({"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["192.0.2.0/28"]}), &here());
    write(&net, &mut proxy, Some(&cluster), Some(&local));
    for (to, heard) in [
        ("192.0.2.1:30080", "192.0.2.77"),
        ("[2001:db8::1]:30080", "2001:db8::77"),
        ("198.51.100.9:80", "192.0.2.77"),
        ("198.51.100.8:80", "silence"),
    ] {
        assert_eq!(net.call("client", to), heard, "client to {to}");
    }
    let elsewhere =
        web(&json!({"externalTrafficPolicy": "Local"}), &json!([{"addresses": ["10.244.1.2"], "nodeName": "n2"}]));
    write(&net, &mut proxy, Some(&local), Some(&elsewhere));
    assert_eq!(net.call("client", "192.0.2.1:30080"), "silence");
    let none = web(&json!({}), &json!([]));
    write(&net, &mut proxy, Some(&elsewhere), Some(&none));
    for to in ["10.96.0.9:80", "192.0.2.1:30080", "198.51.100.8:80", "[fd00:96::9]:80"] {
        assert_eq!(net.call("client", to), "refused", "client to {to}");
    }
    write(&net, &mut proxy, Some(&none), None);
    write(&net, &mut proxy, None, Some(&cluster));
    assert_eq!(net.call("client", "10.96.0.9:80"), "10.244.0.1");
}

#[test]
fn clients_stay_with_their_endpoint_also_when_the_proxy_starts_again() {
    let net = Net::new();
    for address in ["10.244.0.2:8080", "10.244.0.3:8080"] {
        if address.starts_with("10.244.0.3") {
            ip(&format!("-n {} addr add 10.244.0.3/24 dev eth0", net.ns("pod")));
        }
        net.serve(address);
    }
    let sticky = |ips: &[&str]| {
        let endpoints = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
        web(&json!({"sessionAffinity": "ClientIP"}), &endpoints)
    };
    let both = sticky(&["10.244.0.2", "10.244.0.3"]);
    let mut proxy = nftables();
    write(&net, &mut proxy, None, Some(&both));
    let remembered = || {
        let words = ["netns", "exec", &net.ns("node"), "nft", "list", "table", "ip", "kube-proxy"];
        let said = Command::new("ip").args(words).output().unwrap();
        String::from_utf8_lossy(&said.stdout).lines().filter(|line| line.contains("192.0.2.77 expires")).count()
    };
    for _ in 0..8 {
        assert_eq!(net.call("client", "10.96.0.9:80"), "10.244.0.1");
    }
    assert_eq!(remembered(), 1, "the client is known at one endpoint");
    // Another program start: it knows nothing and writes everything, and what the kernel remembers stays.
    let mut again = nftables();
    write(&net, &mut again, None, Some(&both));
    assert_eq!(remembered(), 1);
    write(&net, &mut again, Some(&both), Some(&sticky(&["10.244.0.3"])));
    assert_eq!(net.call("client", "10.96.0.9:80"), "10.244.0.1");
}

#[test]
fn rules_that_somebody_removes_come_back_and_a_clean_up_leaves_nothing() {
    let net = Net::new();
    net.serve("10.244.0.2:8080");
    let mut proxy = nftables();
    let rules = web(&json!({}), &here());
    write(&net, &mut proxy, None, Some(&rules));
    for damage in ["flush ruleset", "flush table ip kube-proxy", "flush chain ip kube-proxy services"] {
        let done = Command::new("ip").args(["netns", "exec", &net.ns("node"), "nft", damage]).status().unwrap();
        assert!(done.success(), "{damage}");
        assert_ne!(net.call("client", "10.96.0.9:80"), "10.244.0.1", "{damage}");
        net.block_on("node", proxy.check());
        write(&net, &mut proxy, Some(&rules), Some(&rules));
        assert_eq!(net.call("client", "10.96.0.9:80"), "10.244.0.1", "{damage}");
    }
    net.block_on("node", nftables::clean_up()).unwrap();
    let left = Command::new("ip").args(["netns", "exec", &net.ns("node"), "nft", "list", "tables"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[test]
fn localhost_reaches_node_ports_in_iptables_mode_and_nobody_else_reaches_localhost() {
    let net = Net::new();
    net.serve("10.244.0.2:8080");
    net.0.serve("node", "127.0.0.1:8081");
    let mut around = surroundings();
    (around[0].localhost, around[0].node_port_ips) = (true, None);
    let mut proxy = Iptables::new(0x4000, around, Balancer::Chains);
    net.inside("node", || iptables::let_localhost_be_routed().unwrap());
    // A neighbour that sends to a loopback address by way of the node.
    ip(&format!("netns exec {} sysctl -qw net.ipv4.conf.all.route_localnet=1", net.ns("client")));
    for words in [
        "route add 127.0.0.1/32 via 192.0.2.1 table 9",
        "rule add lookup local priority 1",
        "rule del lookup local priority 0",
        "rule add to 127.0.0.1 lookup 9 priority 0",
    ] {
        net.ip("client", words);
    }
    assert_eq!(net.call("client", "127.0.0.1:8081"), "192.0.2.77");
    let rules = web(&json!({}), &here());
    let change = Change { id: ServiceId(1), key: "prod/web", old: None, new: Some(&rules) };
    net.block_on("node", proxy.sync(&[change])).unwrap();
    for (from, to, heard) in [
        ("node", "127.0.0.1:30080", "10.244.0.1"),
        ("node", "127.0.0.1:8081", "127.0.0.1"),
        ("client", "192.0.2.1:30080", "10.244.0.1"),
        ("client", "127.0.0.1:8081", "silence"),
    ] {
        assert_eq!(net.call(from, to), heard, "{from} to {to}");
    }
    // Without them, the chain goes, and what leads to it.
    let mut again = Iptables::new(0x4000, surroundings(), Balancer::Chains);
    net.block_on("node", again.sync(&[change])).unwrap();
    let rules = ip(&format!("netns exec {} iptables-save", net.ns("node")));
    assert!(!rules.contains("KUBE-FIREWALL") && rules.contains("KUBE-SVC-"), "{rules}");
    assert_eq!(net.call("client", "192.0.2.1:30080"), "10.244.0.1");
}

#[test]
fn every_mode_leaves_nothing_of_the_others() {
    let net = Net::new();
    net.serve("10.244.0.2:8080");
    let rules = web(&json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}), &here());
    let change = Change { id: ServiceId(1), key: "prod/web", old: None, new: Some(&rules) };
    let left = || {
        let said = ["iptables-save", "ip6tables-save", "nft list ruleset", "ip link"];
        let said = said.map(|words| ip(&format!("netns exec {} {words}", net.ns("node"))));
        (
            said[..2].concat().matches("KUBE-").count() > 0,
            said[2].contains("table ip kube-proxy"),
            said[3].contains(ipvs::DEVICE),
        )
    };
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Nftables] {
        // As a start does it.
        net.block_on("node", proxier::clean_up_but(Some(mode))).unwrap();
        if mode == Mode::Nftables {
            write(&net, &mut nftables(), None, Some(&rules));
        } else {
            let mut proxy = Iptables::new(0x4000, surroundings(), Balancer::Chains);
            net.block_on("node", proxy.sync(&[change])).unwrap();
        }
        assert_eq!(left(), (mode == Mode::Iptables, mode == Mode::Nftables, false), "{mode:?}");
        assert_eq!(net.call("client", "192.0.2.1:30080"), "10.244.0.1", "{mode:?}");
    }
    net.block_on("node", proxier::clean_up_but(None)).unwrap();
    assert_eq!(left(), (false, false, false));
}

#[test]
fn a_write_that_is_cut_off_leaves_rules_whole() {
    let net = Net::new();
    net.serve("10.244.0.2:8080");
    let rules = web(&json!({}), &here());
    write(&net, &mut nftables(), None, Some(&rules));
    for cut_off in (0..60).step_by(3) {
        // A start writes everything anew.
        let mut proxy = nftables();
        let all = Change { id: ServiceId(1), key: "prod/web", old: None, new: Some(&rules) };
        let writing = async { proxy.sync(&[all], || vec![all]).await };
        let _ = net.block_on("node", async { tokio::time::timeout(Duration::from_millis(cut_off), writing).await });
        assert_eq!(net.call("client", "192.0.2.1:30080"), "10.244.0.1", "cut off after {cut_off} ms");
    }
}

#[test]
fn what_one_family_refuses_does_not_keep_the_other_from_being_written() {
    let net = Net::new();
    net.serve("[fd00:244::2]:8080");
    let mut bad = surroundings();
    bad[0].pods = bad[1].pods.clone(); // IPv6 networks, which IPv4's program does not take
    let mut proxy = Iptables::new(0x4000, bad, Balancer::Chains);
    let rules = web(&json!({}), &here());
    let change = Change { id: ServiceId(1), key: "prod/web", old: None, new: Some(&rules) };
    let refused = net.block_on("node", proxy.sync(&[change])).unwrap_err();
    assert!(refused.to_string().starts_with("iptables-restore"), "{refused}");
    assert_eq!(net.call("client", "[fd00:96::9]:80"), "fd00:244::1");
    // What came while IPv4 could not be written is not lost.
    net.serve("10.244.0.2:8080");
    proxy.surround(surroundings(), &[change]);
    net.block_on("node", proxy.sync(&[])).unwrap();
    assert_eq!(net.call("client", "10.96.0.9:80"), "10.244.0.1");
}

/// The first packet of an SCTP association (RFC 9260).
fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]); // no tag yet, and the checksum's place
    packet.extend([1, 0, 0, 20]); // INIT, of 20 bytes
    packet.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

#[test]
fn an_association_of_sctp_begins_at_an_endpoint() {
    let net = Net::new();
    // Kernels may lack SCTP itself and translate it all the same.
    let raw = |name| net.inside(name, || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(132))).unwrap());
    let (pod, client) = (raw("pod"), raw("client"));
    pod.set_read_timeout(Some(PATIENCE)).unwrap();
    let spec = json!({"ports": [{"port": 99, "nodePort": 30099, "protocol": "SCTP"}]});
    write(&net, &mut nftables(), None, Some(&web(&spec, &here())));
    for (from, to, port) in [(1001, "10.96.0.9", 99), (1002, "192.0.2.1", 30099), (1003, "198.51.100.9", 99)] {
        let to: SocketAddr = format!("{to}:0").parse().unwrap();
        client.send_to(&sctp_init(from, port), &to.into()).unwrap();
        let mut packet = [0; 128];
        let length = (&pod).read(&mut packet).unwrap_or_else(|error| panic!("{to} {port}: {error}"));
        let sctp = &mut packet[20..length];
        assert_eq!(u16::from_be_bytes([sctp[2], sctp[3]]), 8080, "{to} {port}");
        let sum = u32::from_le_bytes([sctp[8], sctp[9], sctp[10], sctp[11]]);
        sctp[8..12].fill(0);
        assert_eq!(sum, crc32c(sctp), "{to} {port}");
    }
}

#[test]
#[ignore = "the kernel must have ip_vs: bench/ipvs.sh boots one"]
fn virtual_servers_lead_packets_where_the_model_says() {
    let net = Net::new();
    net.serve("10.244.0.2:8080");
    net.serve("[fd00:244::2]:8080");
    let mut proxy = Ipvs::new(0x4000, surroundings(), VirtualServers::default());
    let write = |proxy: &mut Ipvs, new: Option<&ServiceRules>| {
        let change = Change { id: ServiceId(1), key: "prod/web", old: None, new };
        net.block_on("node", proxy.sync(&[change])).unwrap();
    };
    let cluster = web(&json!({}), &here());
    write(&mut proxy, Some(&cluster));
    net.answers(WAYS);
    let nodes = |words: &str| ip(&format!("netns exec {} {words}", net.ns("node")));
    assert!(nodes("ipvsadm --save --numeric").contains("-a -t 10.96.0.9:80 -r 10.244.0.2:8080 -m -w 1"));
    // What somebody removes comes back.
    for damage in ["ipvsadm --clear", "ip addr flush dev kube-ipvs0"] {
        nodes(damage);
        net.block_on("node", proxy.check());
        write(&mut proxy, Some(&cluster));
        net.answers(WAYS);
    }
    // Another start takes over what is there.
    let mut again = Ipvs::new(0x4000, surroundings(), VirtualServers::default());
    write(&mut again, Some(&cluster));
    net.answers(WAYS);
    let local = web(&json!({"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["192.0.2.0/28"]}), &here());
    write(&mut again, Some(&local));
    net.answers(&[("client", "192.0.2.1:30080", "192.0.2.77"), ("client", "198.51.100.8:80", "silence")]);
    write(&mut again, Some(&web(&json!({}), &json!([]))));
    net.answers(&[("client", "10.96.0.9:80", "refused"), ("client", "192.0.2.1:30080", "refused")]);
    write(&mut again, None);
    assert!(!nodes("ipvsadm --save --numeric").contains("10.96.0.9"));
    net.block_on("node", ipvs::clean_up()).unwrap();
    assert!(!nodes("ip link").contains(ipvs::DEVICE));
}

#[test]
#[ignore = "it fills the table that all connections of a kernel share: bench/ipvs.sh boots one"]
fn virtual_machines_with_a_full_table_of_connections_get_rules_and_then_room() {
    const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let net = Net::new();
    net.serve("10.244.0.2:8080");
    let mut proxy = nftables();
    let none = web(&json!({}), &json!([]));
    write(&net, &mut proxy, None, Some(&none));
    let count = ip(&format!("netns exec {} sysctl -n net.netfilter.nf_conntrack_count", net.ns("node")));
    std::fs::write(MAX, (count.trim().parse::<u32>().unwrap() + 4).to_string()).unwrap();
    // Flows to a neighbour who does not answer.
    let flows: Vec<UdpSocket> = net.inside("node", || {
        let flow = |_| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = socket.send_to(b"x", "192.0.2.77:9");
            socket
        };
        (0..64).map(flow).collect()
    });
    let rules = web(&json!({}), &here());
    write(&net, &mut proxy, Some(&none), Some(&rules));
    assert_ne!(net.call("client", "192.0.2.1:30080"), "10.244.0.1");
    conntrack::set_limits(&conntrack::Limits::default());
    assert_eq!(net.call("client", "192.0.2.1:30080"), "10.244.0.1");
    drop(flows);
}

#[test]
fn strict_arp_is_a_setting_of_the_kernel() {
    let net = Namespaces::new("proxy", &["node"]);
    let set = net.inside("node", || {
        ipvs::keep_addresses_to_their_links().unwrap();
        ["arp_ignore", "arp_announce"]
            .map(|name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/all/{name}")).unwrap())
    });
    assert_eq!(set, ["1\n", "2\n"]);
}

#[test]
fn addresses_of_services_are_none_of_the_nodes() {
    let net = Net::new();
    net.ip("node", &format!("link add {} type veth peer name other", ipvs::DEVICE));
    net.ip("node", &format!("addr add 10.96.0.9/32 dev {}", ipvs::DEVICE));
    let present = net.inside("node", local::addresses_present);
    let has = |ip: &str| present.contains(&ip.parse().unwrap());
    assert_eq!([has(NODE), has("10.244.0.1"), has("10.96.0.9")], [true, true, false], "{present:?}");
}
