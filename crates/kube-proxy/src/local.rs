//! What the proxy knows of its node: how traffic of the node's own pods is told from other traffic, and on which of the
//! node's addresses node ports are served.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;

use crate::ipvs;
use crate::model::{Family, Place};

/// How packets of this node's pods look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LocalTraffic {
    /// By their source; of one family.
    Networks(Vec<IpNet>),
    /// By where they come in; `*` at the end stands for anything.
    Interface(String),
}

/// `detectLocalMode`, with what belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Traffic of pods cannot be told from other traffic.
    #[default]
    Nothing,
    ClusterCidr(Vec<IpNet>),
    /// The pod networks of the Node.
    NodeCidr,
    BridgeInterface(String),
    InterfaceNamePrefix(String),
}

impl DetectLocal {
    /// `None` when pods of the family cannot be told from others.
    pub(crate) fn of(&self, family: Family, facts: &NodeFacts) -> Option<LocalTraffic> {
        let of_family = |nets: &[IpNet]| {
            let own: Vec<IpNet> = nets.iter().filter(|n| family.has(n.addr())).map(IpNet::trunc).collect();
            (!own.is_empty()).then_some(LocalTraffic::Networks(own))
        };
        match self {
            DetectLocal::Nothing => None,
            DetectLocal::ClusterCidr(nets) => of_family(nets),
            DetectLocal::NodeCidr => of_family(&facts.pod_cidrs),
            DetectLocal::BridgeInterface(name) => Some(LocalTraffic::Interface(name.clone())),
            DetectLocal::InterfaceNamePrefix(prefix) => Some(LocalTraffic::Interface(format!("{prefix}*"))),
        }
    }
}

/// `nodePortAddresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of the node.
    All,
    /// The addresses that the Node object names as the node's own.
    Primary,
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    /// Whether the node's loopback addresses of IPv4 are among them.
    pub(crate) fn include_localhost(&self) -> bool {
        let localhost: IpNet = Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8).into();
        match self {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => false,
            NodePortAddresses::Within(nets) => {
                let mut nets = nets.iter().filter(|net| net.addr().is_ipv4()).peekable();
                // None of the family means all of it.
                nets.peek().is_none() || nets.any(|net| net.contains(&localhost.addr()) || localhost.contains(net))
            }
        }
    }

    /// The addresses of the family; `None`: all that the node has. `present` are those that its interfaces have.
    pub(crate) fn of(&self, family: Family, facts: &NodeFacts, present: &[IpAddr]) -> Option<Vec<IpAddr>> {
        let own = |ip: &&IpAddr| family.has(**ip);
        match self {
            NodePortAddresses::All => None,
            NodePortAddresses::Primary => Some(facts.addresses.iter().filter(own).copied().collect()),
            NodePortAddresses::Within(nets) => {
                let nets: Vec<&IpNet> = nets.iter().filter(|net| family.has(net.addr())).collect();
                // A range that takes all in means all, and so does none: it is about the other family (as upstream reads it).
                if nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0) {
                    return None;
                }
                let within = |ip: &&IpAddr| nets.iter().any(|net| net.contains(*ip));
                Some(present.iter().filter(own).filter(within).copied().collect())
            }
        }
    }
}

/// Where health-check ports are served: where node ports are; `None`: everywhere.
pub(crate) fn health_check_ips(
    which: &NodePortAddresses,
    facts: &NodeFacts,
    present: &[IpAddr],
) -> Option<Vec<IpAddr>> {
    let of_each = Family::BOTH.map(|family| (family, which.of(family, facts, present)));
    if of_each.iter().all(|(_, ips)| ips.is_none()) {
        return None;
    }
    // A link-local address is none without its link.
    let is_usable = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let all = |family: Family| present.iter().copied().filter(|ip| family.has(*ip) && is_usable(ip)).collect();
    Some(of_each.into_iter().flat_map(|(family, ips)| ips.unwrap_or_else(|| all(family))).collect())
}

/// What the Node object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub place: Place,
    pub pod_cidrs: Vec<IpNet>,
    /// The first internal address of each family.
    pub addresses: Vec<IpAddr>,
    /// Whether balancers may send traffic here: not when the node is about to go.
    pub eligible: bool,
}

const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

impl NodeFacts {
    /// Before the Node is there, nothing speaks against it.
    pub(crate) fn of(name: &str, node: Option<&Node>) -> Self {
        let mut facts =
            NodeFacts { place: Place { node: name.to_owned(), zone: None }, eligible: true, ..NodeFacts::default() };
        let Some(node) = node else { return facts };
        let labels = node.metadata.labels.as_ref();
        facts.place.zone = labels.and_then(|l| l.get("topology.kubernetes.io/zone").cloned());
        let spec = node.spec.as_ref();
        facts.pod_cidrs =
            spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten().filter_map(|c| c.parse().ok()).collect();
        let addresses =
            node.status.iter().flat_map(|s| s.addresses.iter().flatten()).filter(|a| a.type_ == "InternalIP");
        for ip in addresses.filter_map(|a| a.address.parse::<IpAddr>().ok()) {
            if !facts.addresses.iter().any(|known| Family::of(*known) == Family::of(ip)) {
                facts.addresses.push(ip);
            }
        }
        let tainted = spec.into_iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == TO_BE_DELETED);
        facts.eligible = node.metadata.deletion_timestamp.is_none() && !tainted;
        facts
    }
}

/// What the rules of a family depend on besides the Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Surroundings {
    pub family: Family,
    pub masquerade_all: bool,
    /// How traffic of this node's pods is known; `None`: it is not.
    pub pods: Option<LocalTraffic>,
    /// Where node ports are served; `None`: on every address of the node.
    pub node_port_ips: Option<Vec<IpAddr>>,
    /// Whether node ports are served on loopback addresses too, as far as they are among those.
    pub localhost: bool,
}

/// The addresses of this host's interfaces; those of Services that ipvs mode holds are not the host's.
pub(crate) fn addresses_present() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut all: Vec<IpAddr> = interfaces
        .filter(|interface| interface.interface_name != ipvs::DEVICE)
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts() -> NodeFacts {
        let node = json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "2001:db8::1"}, {"type": "InternalIP", "address": "192.0.2.2"}]},
        });
        NodeFacts::of("n1", Some(&serde_json::from_value(node).unwrap()))
    }

    #[test]
    fn pods_are_told_by_source_or_by_interface() {
        let of = |detect: &DetectLocal| detect.of(Family::V4, &facts());
        let nets = |text: &str| Some(LocalTraffic::Networks(vec![text.parse().unwrap()]));
        assert_eq!(of(&DetectLocal::NodeCidr), nets("10.244.1.0/24"));
        assert_eq!(of(&DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()])), nets("10.244.0.0/16"));
        assert_eq!(of(&DetectLocal::ClusterCidr(vec!["fd00::/48".parse().unwrap()])), None);
        let interface = Some(LocalTraffic::Interface("veth*".to_owned()));
        assert_eq!(of(&DetectLocal::InterfaceNamePrefix("veth".to_owned())), interface);
        assert_eq!(of(&DetectLocal::Nothing), None);
    }

    #[test]
    fn node_ports_are_served_where_they_are_asked_for() {
        let present: Vec<IpAddr> = ["127.0.0.1", "192.0.2.1", "198.51.100.1"].map(|ip| ip.parse().unwrap()).into();
        let of = |which: NodePortAddresses| which.of(Family::V4, &facts(), &present);
        assert_eq!(of(NodePortAddresses::All), None);
        assert_eq!(of(NodePortAddresses::Primary), Some(vec![present[1]]));
        assert_eq!(of(NodePortAddresses::Within(vec!["198.51.100.0/24".parse().unwrap()])), Some(vec![present[2]]));
        let within =
            |nets: &[&str]| of(NodePortAddresses::Within(nets.iter().map(|net| net.parse().unwrap()).collect()));
        assert_eq!(within(&["0.0.0.0/0"]), None);
        assert_eq!(within(&["192.0.2.0/24", "2001:db8::/64"]), Some(vec![present[1]]));
        assert_eq!(within(&["2001:db8::/64"]), None, "nothing is said of this family");
    }

    #[test]
    fn localhost_is_among_all_addresses_and_in_its_own_network() {
        let within = |nets: &[&str]| NodePortAddresses::Within(nets.iter().map(|net| net.parse().unwrap()).collect());
        for which in [NodePortAddresses::All, within(&["0.0.0.0/0"]), within(&["127.0.0.1/32"]), within(&["::1/128"])] {
            assert!(which.include_localhost(), "{which:?}");
        }
        for which in [NodePortAddresses::Primary, within(&["192.0.2.0/24"]), within(&["192.0.2.0/24", "::/0"])] {
            assert!(!which.include_localhost(), "{which:?}");
        }
    }

    #[test]
    fn health_checks_are_served_where_node_ports_are() {
        let present: Vec<IpAddr> =
            ["192.0.2.1", "198.51.100.1", "2001:db8::1", "fe80::1"].map(|ip| ip.parse().unwrap()).into();
        let of = |which: &NodePortAddresses| health_check_ips(which, &facts(), &present);
        assert_eq!(of(&NodePortAddresses::All), None);
        assert_eq!(of(&NodePortAddresses::Primary), Some(vec![present[0], present[2]]));
        let one_family = NodePortAddresses::Within(vec!["198.51.100.0/24".parse().unwrap()]);
        assert_eq!(of(&one_family), Some(vec![present[1], present[2]]));
    }

    #[test]
    fn a_node_that_is_about_to_go_takes_no_traffic_of_balancers() {
        assert!(facts().eligible);
        let node =
            json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}});
        assert!(!NodeFacts::of("n1", Some(&serde_json::from_value(node).unwrap())).eligible);
    }
}
