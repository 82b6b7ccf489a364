//! Which routes this node needs, from the Nodes of the cluster. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

/// The pod networks of a node and the address at which they are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeNetwork {
    pub pod_cidrs: Vec<IpNet>,
    pub addresses: Vec<IpAddr>,
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
    NodeNetwork { pod_cidrs, addresses }
}

/// A route to each pod CIDR of every other node, through that node's address of the same family.
pub(crate) fn plan_routes(own: &str, nodes: &BTreeMap<String, NodeNetwork>) -> BTreeMap<IpNet, IpAddr> {
    let others = nodes.iter().filter(|(name, _)| *name != own);
    let hops = others.flat_map(|(_, node)| {
        node.pod_cidrs.iter().filter_map(|cidr| {
            let gateway = node.addresses.iter().find(|a| a.is_ipv4() == cidr.addr().is_ipv4())?;
            Some((cidr.trunc(), *gateway))
        })
    });
    hops.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cidrs: &[&str], addresses: &[&str]) -> NodeNetwork {
        NodeNetwork {
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn other_nodes_are_reached_through_their_address_of_the_same_family() {
        let nodes = BTreeMap::from([
            ("a".to_owned(), node(&["10.244.0.0/24"], &["192.0.2.1"])),
            ("b".to_owned(), node(&["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.2", "2001:db8::2"])),
            ("c".to_owned(), node(&["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.3"])),
        ]);
        let routes: Vec<String> = plan_routes("a", &nodes).iter().map(|(to, via)| format!("{to} via {via}")).collect();
        assert_eq!(
            routes,
            ["10.244.1.0/24 via 192.0.2.2", "10.244.2.0/24 via 192.0.2.3", "fd00:1::/64 via 2001:db8::2"]
        );
    }

    #[test]
    fn a_node_without_cidrs_has_no_network_yet() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"},
            "status": {"addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}]},
        }))
        .unwrap();
        assert_eq!(network_of(&node), super::tests::node(&[], &["192.0.2.1"]));
    }
}
