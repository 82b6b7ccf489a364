//! Packets that pods of this node send out of the cluster leave with the node's address, because nobody out there knows
//! the way to a pod. Between pods, addresses stay as they are; between pods and nodes where nodes are on one network. Around a
//! tunnel, the network between the nodes knows pods as little as the world does.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::nft::{Chain, Table};
use crate::plan::{Backend, Nodes};

/// A table of our own, so that nobody else's rules are touched.
pub(crate) const TABLE: &str = "inet kelson-pod-network";

/// What the table is to hold; a node without pods needs none.
pub(crate) fn table(own: &str, nodes: &Nodes, cluster_cidrs: &[IpNet], backend: Backend) -> Table {
    let mut rules = Vec::new();
    for pods in nodes.get(own).into_iter().flat_map(|node| &node.pod_cidrs) {
        let is_v4 = pods.addr().is_ipv4();
        let family = if is_v4 { "ip" } else { "ip6" };
        let inside =
            cluster_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == is_v4).map(|cidr| cidr.trunc().to_string());
        let on_one_network = nodes.values().filter(|_| backend == Backend::HostGateway);
        let nodes = on_one_network.flat_map(|node| &node.addresses).filter(|ip: &&IpAddr| ip.is_ipv4() == is_v4);
        let mut known: Vec<String> = inside.chain(nodes.map(ToString::to_string)).collect();
        known.push(if is_v4 { "224.0.0.0/4" } else { "ff00::/8" }.to_owned());
        rules.push(format!("{family} saddr {} {family} daddr != {{ {} }} masquerade", pods.trunc(), known.join(", ")));
    }
    if rules.is_empty() {
        return Table::default();
    }
    let chain = Chain { hook: "type nat hook postrouting priority srcnat ;".to_owned(), rules };
    Table { chains: [("postrouting".to_owned(), chain)].into(), ..Table::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::NodeNetwork;

    #[test]
    fn only_what_leaves_the_cluster_gets_the_nodes_address() {
        let node = |cidrs: &[&str], addresses: &[&str]| NodeNetwork {
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            created: None,
        };
        let nodes = Nodes::from([
            ("a".to_owned(), node(&["10.244.0.0/24", "fd00::/64"], &["192.0.2.1"])),
            ("b".to_owned(), node(&["10.244.1.0/24"], &["192.0.2.2", "2001:db8::2"])),
        ]);
        let cluster = ["10.244.0.0/16", "fd00::/48"].map(|cidr| cidr.parse().unwrap());
        let rules = |backend| table("a", &nodes, &cluster, backend).chains["postrouting"].rules.clone();
        assert_eq!(
            rules(Backend::HostGateway),
            [
                "ip saddr 10.244.0.0/24 ip daddr != { 10.244.0.0/16, 192.0.2.1, 192.0.2.2, 224.0.0.0/4 } masquerade",
                "ip6 saddr fd00::/64 ip6 daddr != { fd00::/48, 2001:db8::2, ff00::/8 } masquerade",
            ]
        );
        assert_eq!(
            rules(Backend::Vxlan),
            [
                "ip saddr 10.244.0.0/24 ip daddr != { 10.244.0.0/16, 224.0.0.0/4 } masquerade",
                "ip6 saddr fd00::/64 ip6 daddr != { fd00::/48, ff00::/8 } masquerade",
            ]
        );
        let none = table("c", &nodes, &cluster, Backend::HostGateway);
        assert_eq!(none, Table::default(), "a node without pods has no rules");
    }
}
