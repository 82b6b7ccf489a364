//! What every back end must do with packets, whatever its rules look like: one table of Services and packets, followed
//! through rendered rules without a kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::local::LocalTraffic;
use crate::model::{Family, Protocol, ServiceRules, fixture};

/// The node's own addresses; node ports are served on the first of each family.
pub(crate) const NODE_ADDRESSES: [&str; 3] = ["192.0.2.1", "2001:db8::1", "203.0.113.1"];

pub(crate) fn node_port_ips(family: Family) -> Vec<IpAddr> {
    NODE_ADDRESSES[..2].iter().map(|ip| ip.parse().unwrap()).filter(|ip| family.has(*ip)).collect()
}

/// How pods are told from others.
pub(crate) fn pods(family: Family) -> LocalTraffic {
    let net = if family == Family::V4 { "10.244.0.0/16" } else { "fd00:244::/48" };
    LocalTraffic::Networks(vec![net.parse().unwrap()])
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

impl Packet {
    /// `SOURCE > ADDRESS:PORT/PROTOCOL`
    pub(crate) fn parse(text: &str) -> Self {
        let (from, rest) = text.split_once(" > ").unwrap();
        let (to, protocol) = rest.split_once('/').unwrap();
        let to: SocketAddr = to.parse().unwrap();
        let protocol = Protocol::ALL.into_iter().find(|p| p.name() == protocol).unwrap();
        Packet { from: from.parse().unwrap(), to: to.ip(), port: to.port(), protocol }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.to)
    }
}

/// A packet on its way through rules.
pub(crate) struct Passing {
    pub packet: Packet,
    /// Where it is to go now.
    pub to: SocketAddr,
    pub marked: bool,
    pub masqueraded: bool,
}

impl Passing {
    pub(crate) fn new(packet: &Packet) -> Self {
        let to = SocketAddr::new(packet.to, packet.port);
        Passing { packet: *packet, to, marked: false, masqueraded: false }
    }

    /// Where one ends that nothing stopped.
    pub(crate) fn end(&self) -> End {
        if self.to == SocketAddr::new(self.packet.to, self.packet.port) {
            End::Untouched
        } else {
            End::Endpoint { to: self.to, masqueraded: self.masqueraded }
        }
    }

    /// Whether it comes in from a pod by an interface of this name.
    pub(crate) fn is_from_interface(&self, name: &str) -> bool {
        name == "veth" && self.packet.from.to_string().starts_with("10.244.")
    }
}

pub(crate) fn is_nodes(ip: IpAddr) -> bool {
    ip.is_loopback() || NODE_ADDRESSES.iter().any(|own| *own == ip.to_string())
}

/// Where a packet ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Endpoint {
        to: SocketAddr,
        masqueraded: bool,
    },
    Rejected,
    Dropped,
    /// It goes where it was sent to.
    Untouched,
}

impl End {
    fn text(&self) -> String {
        match self {
            End::Endpoint { to, masqueraded: false } => to.to_string(),
            End::Endpoint { to, masqueraded: true } => format!("{to} masqueraded"),
            End::Rejected => "rejected".to_owned(),
            End::Dropped => "dropped".to_owned(),
            End::Untouched => "untouched".to_owned(),
        }
    }
}

/// One Service with the ends of packets to it.
struct Case {
    name: &'static str,
    spec: Value,
    endpoints: Value,
    /// Packets, and where they may end, in order.
    packets: &'static [(&'static str, &'static str)],
}

fn here_and_there() -> Value {
    json!([{"addresses": ["10.244.0.2"], "nodeName": "n1"}, {"addresses": ["10.244.1.2"], "nodeName": "n2"}])
}

fn there() -> Value {
    json!([{"addresses": ["10.244.1.2"], "nodeName": "n2"}])
}

fn cases() -> Vec<Case> {
    let ports = json!([{"port": 80, "nodePort": 30080}]);
    let balanced = |extra: Value| {
        let mut spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": ports.clone(),
            "externalIPs": ["198.51.100.9"],
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}, {"ip": "198.51.100.7", "ipMode": "Proxy"}]}}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        spec
    };
    vec![
        Case {
            name: "a cluster IP leads pods to any endpoint, and others with the node's address",
            spec: json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}),
            endpoints: here_and_there(),
            packets: &[
                ("10.244.0.5 > 10.96.0.9:80/tcp", "10.244.0.2:8080, 10.244.1.2:8080"),
                ("192.0.2.1 > 10.96.0.9:80/tcp", "10.244.0.2:8080 masqueraded, 10.244.1.2:8080 masqueraded"),
                ("192.0.2.77 > 10.96.0.9:80/tcp", "10.244.0.2:8080 masqueraded, 10.244.1.2:8080 masqueraded"),
                ("10.244.0.5 > 10.244.0.2:80/tcp", "untouched"),
                ("10.244.0.5 > 10.96.0.9:80/udp", "rejected"),
                ("10.244.0.5 > 10.96.0.9:81/tcp", "rejected"),
            ],
        },
        Case {
            name: "a pod that is led to itself sees the node's address",
            spec: json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}),
            endpoints: here_and_there(),
            packets: &[("10.244.0.2 > 10.96.0.9:80/tcp", "10.244.0.2:8080 masqueraded, 10.244.1.2:8080")],
        },
        Case {
            name: "UDP and SCTP are led as TCP is",
            spec: json!({"clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]}),
            endpoints: there(),
            packets: &[
                ("10.244.0.5 > 10.96.0.9:53/udp", "10.244.1.2:8080"),
                ("198.51.100.77 > 192.0.2.1:30053/udp", "10.244.1.2:8080 masqueraded"),
                ("198.51.100.77 > 192.0.2.1:30053/tcp", "untouched"),
            ],
        },
        Case {
            name: "SCTP",
            spec: json!({"clusterIP": "10.96.0.9", "ports": [{"port": 99, "protocol": "SCTP"}]}),
            endpoints: there(),
            packets: &[("10.244.0.5 > 10.96.0.9:99/sctp", "10.244.1.2:8080")],
        },
        Case {
            name: "without endpoints every caller is told",
            spec: balanced(json!({})),
            endpoints: json!([]),
            packets: &[
                ("10.244.0.5 > 10.96.0.9:80/tcp", "rejected"),
                ("192.0.2.1 > 10.96.0.9:80/tcp", "rejected"),
                ("198.51.100.77 > 192.0.2.1:30080/tcp", "rejected"),
                ("198.51.100.77 > 198.51.100.9:80/tcp", "rejected"),
                ("198.51.100.77 > 198.51.100.8:80/tcp", "rejected"),
            ],
        },
        Case {
            name: "external traffic of policy Cluster goes anywhere, with the node's address",
            spec: balanced(json!({})),
            endpoints: there(),
            packets: &[
                ("198.51.100.77 > 192.0.2.1:30080/tcp", "10.244.1.2:8080 masqueraded"),
                ("198.51.100.77 > 198.51.100.9:80/tcp", "10.244.1.2:8080 masqueraded"),
                ("198.51.100.77 > 198.51.100.8:80/tcp", "10.244.1.2:8080 masqueraded"),
                ("10.244.0.5 > 198.51.100.8:80/tcp", "10.244.1.2:8080 masqueraded"),
                ("192.0.2.1 > 198.51.100.8:80/tcp", "10.244.1.2:8080 masqueraded"),
                // A balancer in Proxy mode sees its traffic itself.
                ("10.244.0.5 > 198.51.100.7:80/tcp", "untouched"),
            ],
        },
        Case {
            name: "external traffic of policy Local stays here and keeps its source; pods and the node go anywhere",
            spec: balanced(json!({"externalTrafficPolicy": "Local"})),
            endpoints: here_and_there(),
            packets: &[
                ("198.51.100.77 > 192.0.2.1:30080/tcp", "10.244.0.2:8080"),
                ("198.51.100.77 > 198.51.100.9:80/tcp", "10.244.0.2:8080"),
                ("198.51.100.77 > 198.51.100.8:80/tcp", "10.244.0.2:8080"),
                ("10.244.0.5 > 198.51.100.8:80/tcp", "10.244.0.2:8080, 10.244.1.2:8080"),
                ("192.0.2.1 > 198.51.100.8:80/tcp", "10.244.0.2:8080 masqueraded, 10.244.1.2:8080 masqueraded"),
                ("10.244.0.5 > 10.96.0.9:80/tcp", "10.244.0.2:8080, 10.244.1.2:8080"),
            ],
        },
        Case {
            name: "external traffic of policy Local is dropped where there is no endpoint",
            spec: balanced(json!({"externalTrafficPolicy": "Local"})),
            endpoints: there(),
            packets: &[
                ("198.51.100.77 > 192.0.2.1:30080/tcp", "dropped"),
                ("198.51.100.77 > 198.51.100.9:80/tcp", "dropped"),
                ("198.51.100.77 > 198.51.100.8:80/tcp", "dropped"),
                ("10.244.0.5 > 198.51.100.8:80/tcp", "10.244.1.2:8080"),
                ("192.0.2.1 > 198.51.100.8:80/tcp", "10.244.1.2:8080 masqueraded"),
                ("10.244.0.5 > 10.96.0.9:80/tcp", "10.244.1.2:8080"),
            ],
        },
        Case {
            name: "internal traffic of policy Local stays here",
            spec: json!({"clusterIP": "10.96.0.9", "internalTrafficPolicy": "Local", "ports": ports.clone()}),
            endpoints: here_and_there(),
            packets: &[
                ("10.244.0.5 > 10.96.0.9:80/tcp", "10.244.0.2:8080"),
                ("198.51.100.77 > 192.0.2.1:30080/tcp", "10.244.0.2:8080 masqueraded, 10.244.1.2:8080 masqueraded"),
            ],
        },
        Case {
            name: "internal traffic of policy Local is dropped where there is no endpoint",
            spec: json!({"clusterIP": "10.96.0.9", "internalTrafficPolicy": "Local", "ports": ports.clone()}),
            endpoints: there(),
            packets: &[("10.244.0.5 > 10.96.0.9:80/tcp", "dropped")],
        },
        Case {
            name: "a balancer's addresses are for its source ranges only",
            spec: balanced(json!({"loadBalancerSourceRanges": ["198.51.100.64/26", "10.244.0.0/16"]})),
            endpoints: there(),
            packets: &[
                ("198.51.100.77 > 198.51.100.8:80/tcp", "10.244.1.2:8080 masqueraded"),
                ("198.51.100.1 > 198.51.100.8:80/tcp", "dropped"),
                // The node comes from the address itself when it has it.
                ("198.51.100.8 > 198.51.100.8:80/tcp", "10.244.1.2:8080 masqueraded"),
                ("198.51.100.1 > 198.51.100.9:80/tcp", "10.244.1.2:8080 masqueraded"),
                ("198.51.100.1 > 192.0.2.1:30080/tcp", "10.244.1.2:8080 masqueraded"),
            ],
        },
        Case {
            name: "node ports are served on the node's primary addresses only",
            spec: balanced(json!({})),
            endpoints: there(),
            packets: &[
                ("198.51.100.77 > 203.0.113.1:30080/tcp", "untouched"),
                ("127.0.0.1 > 127.0.0.1:30080/tcp", "untouched"),
            ],
        },
        Case {
            name: "draining endpoints serve while there is no other, hinted ones only where they are for",
            spec: json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}),
            endpoints: json!([
                {"addresses": ["10.244.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": false}}]),
            packets: &[("10.244.0.5 > 10.96.0.9:80/tcp", "10.244.0.2:8080")],
        },
        Case {
            name: "hints keep traffic in the zone",
            spec: json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}], "trafficDistribution": "PreferClose"}),
            endpoints: json!([{"addresses": ["10.244.0.2"], "hints": {"forZones": [{"name": "z1"}]}},
                {"addresses": ["10.244.1.2"], "hints": {"forZones": [{"name": "z2"}]}}]),
            packets: &[("10.244.0.5 > 10.96.0.9:80/tcp", "10.244.0.2:8080")],
        },
        Case {
            name: "IPv6 is as IPv4",
            spec: json!({"type": "NodePort", "clusterIP": "fd00:96::9", "clusterIPs": ["fd00:96::9"], "ports": ports}),
            endpoints: json!([{"addresses": ["fd00:244::2"], "nodeName": "n1"}]),
            packets: &[
                ("fd00:244::5 > [fd00:96::9]:80/tcp", "[fd00:244::2]:8080"),
                ("fd00:244::2 > [fd00:96::9]:80/tcp", "[fd00:244::2]:8080 masqueraded"),
                ("2001:db8::77 > [2001:db8::1]:30080/tcp", "[fd00:244::2]:8080 masqueraded"),
                ("fd00:244::5 > [fd00:96::9]:81/tcp", "rejected"),
            ],
        },
    ]
}

/// How many random choices are tried.
const CHOICES: usize = 6;

/// Checks a back end: `follow` renders the rules and follows a packet through them, taking the n-th of whatever there is to
/// choose from. `differs` names where upstream's back end of that mode does otherwise, and what it does.
#[track_caller]
pub(crate) fn check(
    follow: impl Fn(&ServiceRules, &Packet, usize) -> End,
    differs: &[(&'static str, &'static str, &'static str)],
) {
    for case in cases() {
        let rules = fixture::rules(case.spec.clone(), &case.endpoints).unwrap();
        for (packet, want) in case.packets {
            let other = differs.iter().find(|(name, of, _)| *name == case.name && of == packet);
            let want = other.map_or(*want, |(_, _, want)| want);
            let parsed = Packet::parse(packet);
            let ends: BTreeSet<End> = (0..CHOICES).map(|choice| follow(&rules, &parsed, choice)).collect();
            let ends: Vec<String> = ends.iter().map(End::text).collect();
            assert_eq!(ends.join(", "), want, "{}: {packet}", case.name);
        }
    }
}
