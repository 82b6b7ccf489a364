//! The part of nftables' language that is used here, as types, and how it is written for `nft -f`.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::model::{Family, Protocol};

/// Stands for a mask of one bit in a packet's mark: "masquerade this connection".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(pub u32);

/// How a packet's way to a map of endpoints is found: by the address that it is sent to, or by the node's port alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum By {
    Address,
    NodePort,
}

/// Maps of verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum VerdictMap {
    Services,
    NodePorts,
    NoEndpoints,
    NoEndpointsNodePorts,
    Firewall,
}

impl VerdictMap {
    pub(crate) const ALL: [VerdictMap; 5] = [
        VerdictMap::Services,
        VerdictMap::NodePorts,
        VerdictMap::NoEndpoints,
        VerdictMap::NoEndpointsNodePorts,
        VerdictMap::Firewall,
    ];

    fn name(self) -> &'static str {
        match self {
            VerdictMap::Services => "service-ips",
            VerdictMap::NodePorts => "service-nodeports",
            VerdictMap::NoEndpoints => "no-endpoint-services",
            VerdictMap::NoEndpointsNodePorts => "no-endpoint-nodeports",
            VerdictMap::Firewall => "firewall-ips",
        }
    }

    pub(crate) fn by(self) -> By {
        match self {
            VerdictMap::Services | VerdictMap::NoEndpoints | VerdictMap::Firewall => By::Address,
            VerdictMap::NodePorts | VerdictMap::NoEndpointsNodePorts => By::NodePort,
        }
    }
}

/// Where a packet is sent to, as maps have it for their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Destination {
    /// `None`: a node port.
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// Something in a set or a map, without what a map has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// A cluster IP, so that its other ports are refused.
    ClusterIp(IpAddr),
    /// An address that node ports are served on.
    NodePortIp(IpAddr),
    /// An endpoint of this node, which may be led back to itself.
    Hairpin(IpAddr),
    Verdict(VerdictMap, Destination),
    /// The endpoint at an index of a destination's list.
    Endpoint(Destination, u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Present,
    Goto(String),
    Drop,
    To(SocketAddr),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    NewConnection,
    From {
        nets: Vec<IpNet>,
        not: bool,
    },
    FromInterface {
        name: String,
        not: bool,
    },
    /// One of the node's own addresses.
    FromNode,
    ToNodePortIp {
        any: bool,
    },
    ToClusterIp,
    ToItself,
    Unmarked,
    RememberedIn(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Jump(String),
    Goto(String),
    Return,
    Drop,
    /// Refuses a TCP connection with a segment of its own, which no rate limit holds back as it does ICMP.
    Reset,
    Reject,
    Mark,
    Unmark,
    Masquerade,
    LookUp(VerdictMap),
    /// To one of a destination's endpoints, those from index `first` on.
    Pick {
        by: By,
        protocol: Protocol,
        first: u16,
        count: u16,
    },
    /// To one of some chains.
    Choose(Vec<String>),
    Remember(String),
    To {
        protocol: Protocol,
        endpoint: SocketAddr,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
}

impl Rule {
    pub(crate) fn always(action: Action) -> Self {
        Rule { matches: Vec::new(), action }
    }

    pub(crate) fn when(matches: impl Into<Vec<Match>>, action: Action) -> Self {
        Rule { matches: matches.into(), action }
    }
}

/// Writes what is said here in the words of one family's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub family: Family,
    pub mark: Mark,
}

impl Writer {
    fn ip(self) -> &'static str {
        match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    pub(crate) fn address_type(self) -> &'static str {
        match self.family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }

    pub(crate) fn table(self) -> String {
        format!("{} kube-proxy", self.ip())
    }

    /// All sets and maps that every table has: their names, and their declarations as `add` takes them.
    pub(crate) fn declarations(self) -> Vec<(String, String)> {
        let (ip, address, table) = (self.ip(), self.address_type(), self.table());
        let declare = |kind: &str, name: &str, content: &str| {
            (name.to_owned(), format!("{kind} {table} {name} {{ {content} ; }}"))
        };
        let mut all = vec![
            declare("set", "cluster-ips", &format!("type {address}")),
            declare("set", "nodeport-ips", &format!("type {address}")),
            declare("set", "hairpin", &format!("type {address} . {address}")),
        ];
        for map in VerdictMap::ALL {
            let key = match map.by() {
                By::Address => format!("{address} . inet_proto . inet_service"),
                By::NodePort => "inet_proto . inet_service".to_owned(),
            };
            all.push(declare("map", map.name(), &format!("type {key} : verdict")));
        }
        for protocol in Protocol::ALL {
            let p = protocol.name();
            for (by, to) in [(By::Address, format!("{ip} daddr . ")), (By::NodePort, String::new())] {
                // The key's last part is the index; its type has no name other than this expression.
                let key = format!("{to}{p} dport . numgen random mod 65536");
                let content = format!("typeof {key} : {ip} saddr . {p} sport");
                all.push(declare("map", &map_of_endpoints(by, protocol), &content));
            }
        }
        all
    }

    /// The set or map that a key is in.
    pub(crate) fn holder(self, key: &Key) -> String {
        match key {
            Key::ClusterIp(_) => "cluster-ips".to_owned(),
            Key::NodePortIp(_) => "nodeport-ips".to_owned(),
            Key::Hairpin(_) => "hairpin".to_owned(),
            Key::Verdict(map, _) => map.name().to_owned(),
            Key::Endpoint(to, _) => {
                map_of_endpoints(if to.address.is_some() { By::Address } else { By::NodePort }, to.protocol)
            }
        }
    }

    pub(crate) fn rule(self, rule: &Rule) -> String {
        let mut text = String::new();
        for part in &rule.matches {
            text.push_str(&self.matching(part));
            text.push(' ');
        }
        text.push_str(&self.action(&rule.action));
        text
    }

    fn matching(self, part: &Match) -> String {
        let ip = self.ip();
        let op = |not: &bool| if *not { "!= " } else { "" };
        match part {
            Match::NewConnection => "ct state new".to_owned(),
            Match::From { nets, not } => format!("{ip} saddr {}{{ {} }}", op(not), list(nets)),
            Match::FromInterface { name, not } => format!("iifname {}\"{name}\"", op(not)),
            Match::FromNode => "fib saddr type local".to_owned(),
            Match::ToNodePortIp { any: false } => format!("{ip} daddr @nodeport-ips"),
            Match::ToNodePortIp { any: true } => {
                let loopback = if self.family == Family::V4 { "127.0.0.0/8" } else { "::1" };
                format!("fib daddr type local {ip} daddr != {loopback}")
            }
            Match::ToClusterIp => format!("{ip} daddr @cluster-ips"),
            Match::ToItself => format!("{ip} saddr . {ip} daddr @hairpin"),
            Match::Unmarked => format!("mark and {:#x} == 0", self.mark.0),
            Match::RememberedIn(set) => format!("{ip} saddr @{set}"),
        }
    }

    fn action(self, action: &Action) -> String {
        let ip = self.ip();
        match action {
            Action::Jump(chain) => format!("jump {chain}"),
            Action::Goto(chain) => format!("goto {chain}"),
            Action::Return => "return".to_owned(),
            Action::Drop => "drop".to_owned(),
            Action::Reset => "meta l4proto tcp reject with tcp reset".to_owned(),
            Action::Reject => "reject".to_owned(),
            Action::Mark => format!("mark set mark or {:#x}", self.mark.0),
            Action::Unmark => format!("mark set mark xor {:#x}", self.mark.0),
            Action::Masquerade => "masquerade fully-random".to_owned(),
            Action::LookUp(map) => match map.by() {
                By::Address => format!("{ip} daddr . meta l4proto . th dport vmap @{}", map.name()),
                By::NodePort => format!("meta l4proto . th dport vmap @{}", map.name()),
            },
            Action::Pick { by, protocol, first, count } => {
                let (p, map) = (protocol.name(), map_of_endpoints(*by, *protocol));
                let address = if *by == By::Address { format!("{ip} daddr . ") } else { String::new() };
                let offset = if *first == 0 { String::new() } else { format!(" offset {first}") };
                format!(
                    "meta l4proto {p} dnat {ip} to {address}{p} dport . numgen random mod {count}{offset} map @{map}"
                )
            }
            Action::Choose(chains) => {
                let numbered: Vec<String> =
                    chains.iter().enumerate().map(|(i, chain)| format!("{i} : goto {chain}")).collect();
                format!("numgen random mod {} vmap {{ {} }}", chains.len(), numbered.join(", "))
            }
            Action::Remember(set) => format!("update @{set} {{ {ip} saddr }}"),
            Action::To { protocol, endpoint } => format!("meta l4proto {} dnat to {endpoint}", protocol.name()),
        }
    }
}

fn map_of_endpoints(by: By, protocol: Protocol) -> String {
    match by {
        By::Address => format!("endpoints-{}", protocol.name()),
        By::NodePort => format!("nodeport-endpoints-{}", protocol.name()),
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let mut text = String::new();
    for (i, item) in items.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}{item}", if i == 0 { "" } else { ", " });
    }
    text
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::ClusterIp(ip) | Key::NodePortIp(ip) => write!(f, "{ip}"),
            Key::Hairpin(ip) => write!(f, "{ip} . {ip}"),
            Key::Verdict(_, Destination { address: Some(ip), protocol, port }) => {
                write!(f, "{ip} . {} . {port}", protocol.name())
            }
            Key::Verdict(_, Destination { address: None, protocol, port }) => {
                write!(f, "{} . {port}", protocol.name())
            }
            Key::Endpoint(Destination { address: Some(ip), port, .. }, index) => write!(f, "{ip} . {port} . {index}"),
            Key::Endpoint(Destination { address: None, port, .. }, index) => write!(f, "{port} . {index}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Present => Ok(()),
            Value::Goto(chain) => write!(f, " : goto {chain}"),
            Value::Drop => write!(f, " : drop"),
            Value::To(endpoint) => write!(f, " : {} . {}", endpoint.ip(), endpoint.port()),
        }
    }
}
