//! How this node reaches the pods of the others, from the Nodes of the cluster. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sha2::{Digest, Sha256};

/// The pod networks of a node and the addresses at which it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeNetwork {
    pub pod_cidrs: Vec<IpNet>,
    pub addresses: Vec<IpAddr>,
    /// Of two nodes with the same pods' addresses, the older one has them.
    pub created: Option<Time>,
}

/// What a Node says about its network; CIDRs and addresses that cannot be read are left out.
pub(crate) fn network_of(node: &Node) -> NodeNetwork {
    let spec = node.spec.as_ref();
    let mut pod_cidrs: Vec<IpNet> =
        spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten().filter_map(|c| c.parse().ok()).collect();
    if pod_cidrs.is_empty() {
        pod_cidrs.extend(spec.and_then(|s| s.pod_cidr.as_ref()).and_then(|c| c.parse::<IpNet>().ok()));
    }
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref()).into_iter().flatten();
    let addresses = addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect();
    NodeNetwork { pod_cidrs, addresses, created: node.metadata.creation_timestamp.clone() }
}

pub(crate) type Nodes = BTreeMap<String, NodeNetwork>;

/// A node whose pod network is not used, because it overlaps with that of an older node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    pub cidr: IpNet,
    pub other: String,
    pub others: IpNet,
}

/// The nodes that may not have the pod networks that they name.
pub(crate) fn overlaps(nodes: &Nodes) -> BTreeMap<String, Overlap> {
    let mut by_age: Vec<(&String, &NodeNetwork)> = nodes.iter().collect();
    by_age.sort_by_key(|(name, node)| (node.created.clone(), (*name).clone()));
    let mut taken: Vec<(&String, &IpNet)> = Vec::new();
    let mut refused = BTreeMap::new();
    for (name, node) in by_age {
        let overlap = node.pod_cidrs.iter().find_map(|cidr| {
            let (other, others) =
                taken.iter().find(|(_, t)| t.contains(&cidr.network()) || cidr.contains(&t.network()))?;
            Some(Overlap { cidr: *cidr, other: (*other).clone(), others: **others })
        });
        match overlap {
            Some(overlap) => drop(refused.insert(name.clone(), overlap)),
            None => taken.extend(node.pod_cidrs.iter().map(|cidr| (name, cidr))),
        }
    }
    refused
}

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Each node is the next hop for its pods: all nodes are on one network.
    #[default]
    HostGateway,
    /// Packets between pods travel in UDP packets between nodes (RFC 7348).
    Vxlan,
}

impl std::str::FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host-gw" => Ok(Backend::HostGateway),
            "vxlan" => Ok(Backend::Vxlan),
            _ => Err(format!("{text:?} is neither \"host-gw\" nor \"vxlan\"")),
        }
    }
}

pub(crate) type Mac = [u8; 6];

/// What the kernel must know to reach the pods of other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The next hop to each pod network.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// The tunnel, if there is one; all routes then lead through it.
    pub tunnel: Option<Tunnel>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    /// This node's address, which the tunnel's packets come from.
    pub from: IpAddr,
    pub mac: Mac,
    /// This node's addresses in the tunnel.
    pub addresses: BTreeSet<IpAddr>,
    /// Who has a next hop's address.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The node that a peer's packets are sent to.
    pub forwarding: BTreeMap<Mac, IpAddr>,
}

/// Every node can tell every other's address in the tunnel from its name, so that nobody has to publish it.
fn mac_of(name: &str) -> Mac {
    let digest = Sha256::digest(name.as_bytes());
    // The second lowest bit of the first byte says that the address is nobody's property.
    [0x0a, digest[0], digest[1], digest[2], digest[3], digest[4]]
}

/// The way to each pod network of every other node, of those that may have theirs.
pub(crate) fn plan(own: &str, nodes: &Nodes, backend: Backend) -> Plan {
    let refused = overlaps(nodes);
    let others = || nodes.iter().filter(|(name, _)| *name != own && !refused.contains_key(*name));
    if backend == Backend::HostGateway {
        let hops = others().flat_map(|(_, node)| {
            node.pod_cidrs.iter().filter_map(|cidr| {
                let gateway = node.addresses.iter().find(|a| a.is_ipv4() == cidr.addr().is_ipv4())?;
                Some((cidr.trunc(), *gateway))
            })
        });
        return Plan { routes: hops.collect(), tunnel: None };
    }
    let Some((me, from)) = nodes.get(own).and_then(|me| Some((me, *me.addresses.first()?))) else {
        return Plan::default();
    };
    let addresses = me.pod_cidrs.iter().map(IpNet::network).collect();
    let mut routes = BTreeMap::new();
    let (mut neighbours, mut forwarding) = (BTreeMap::new(), BTreeMap::new());
    for (name, node) in others() {
        let Some(address) = node.addresses.iter().find(|a| a.is_ipv4() == from.is_ipv4()) else { continue };
        let mac = mac_of(name);
        forwarding.insert(mac, *address);
        for cidr in &node.pod_cidrs {
            // The first address of a node's pod network is its own in the tunnel; no pod gets it.
            routes.insert(cidr.trunc(), cidr.network());
            neighbours.insert(cidr.network(), mac);
        }
    }
    Plan { routes, tunnel: Some(Tunnel { from, mac: mac_of(own), addresses, neighbours, forwarding }) }
}

/// What of a link's size is left for pods' packets.
pub(crate) fn pod_mtu(link: u32, tunnel: Option<&Tunnel>) -> u32 {
    match tunnel {
        None => link,
        // Outer IP, UDP and VXLAN headers, and the inner Ethernet header.
        Some(tunnel) if tunnel.from.is_ipv4() => link.saturating_sub(20 + 8 + 8 + 14),
        Some(_) => link.saturating_sub(40 + 8 + 8 + 14),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cidrs: &[&str], addresses: &[&str]) -> NodeNetwork {
        NodeNetwork {
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            created: None,
        }
    }

    fn three() -> Nodes {
        BTreeMap::from([
            ("a".to_owned(), node(&["10.244.0.0/24", "fd00:0::/64"], &["192.0.2.1"])),
            ("b".to_owned(), node(&["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.2", "2001:db8::2"])),
            ("c".to_owned(), node(&["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.3"])),
        ])
    }

    fn routes(plan: &Plan) -> Vec<String> {
        plan.routes.iter().map(|(to, via)| format!("{to} via {via}")).collect()
    }

    #[test]
    fn other_nodes_are_reached_through_their_address_of_the_same_family() {
        let plan = plan("a", &three(), Backend::HostGateway);
        let want = ["10.244.1.0/24 via 192.0.2.2", "10.244.2.0/24 via 192.0.2.3", "fd00:1::/64 via 2001:db8::2"];
        assert_eq!(routes(&plan), want);
        assert_eq!(plan.tunnel, None);
    }

    #[test]
    fn a_tunnel_carries_both_families_over_one() {
        let plan_a = plan("a", &three(), Backend::Vxlan);
        let want = [
            "10.244.1.0/24 via 10.244.1.0",
            "10.244.2.0/24 via 10.244.2.0",
            "fd00:1::/64 via fd00:1::",
            "fd00:2::/64 via fd00:2::",
        ];
        assert_eq!(routes(&plan_a), want);
        let tunnel = plan_a.tunnel.unwrap();
        assert_eq!(tunnel.from, "192.0.2.1".parse::<IpAddr>().unwrap());
        assert!(tunnel.addresses.contains(&"10.244.0.0".parse().unwrap()) && tunnel.addresses.len() == 2);
        // What a thinks of b is what b makes of itself.
        let b = plan("b", &three(), Backend::Vxlan).tunnel.unwrap();
        assert_eq!(tunnel.neighbours[&"10.244.1.0".parse::<IpAddr>().unwrap()], b.mac);
        assert_eq!(tunnel.forwarding[&b.mac], "192.0.2.2".parse::<IpAddr>().unwrap());
        assert_eq!((pod_mtu(1500, Some(&tunnel)), pod_mtu(1500, None)), (1450, 1500));
    }

    #[test]
    fn of_overlapping_networks_the_older_nodes_is_used() {
        let mut nodes = three();
        let time = |text: &str| Some(serde_json::from_value(serde_json::json!(text)).unwrap());
        for node in nodes.values_mut() {
            node.created = time("2026-01-01T00:00:00Z");
        }
        nodes.insert(
            "0".to_owned(),
            NodeNetwork { created: time("2026-01-02T00:00:00Z"), ..node(&["10.244.1.128/25"], &["192.0.2.9"]) },
        );
        let refused = overlaps(&nodes);
        let want = Overlap {
            cidr: "10.244.1.128/25".parse().unwrap(),
            other: "b".to_owned(),
            others: "10.244.1.0/24".parse().unwrap(),
        };
        assert_eq!(refused, BTreeMap::from([("0".to_owned(), want)]));
        assert!(!routes(&plan("a", &nodes, Backend::HostGateway)).iter().any(|r| r.contains("192.0.2.9")));
    }

    #[test]
    fn a_node_without_cidrs_has_no_network_yet() {
        let read: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"},
            "status": {"addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}]},
        }))
        .unwrap();
        assert_eq!(network_of(&read), node(&[], &["192.0.2.1"]));
    }
}
