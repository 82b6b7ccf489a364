//! NetworkPolicies, pods and namespaces, reduced to who may reach whom on this node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};

/// The port at which pods ask cluster DNS.
const DNS_PORT: i32 = 53;

pub(crate) type Labels = BTreeMap<String, String>;

/// What policies look at of a pod. Those of the host's network and those that ended have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub namespace: String,
    pub labels: Labels,
    pub node: String,
    pub ips: Vec<IpAddr>,
    /// Ports with names: name, protocol, number.
    pub ports: Vec<(String, Protocol, u16)>,
}

impl PodFacts {
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        if spec.host_network == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
        let ips: BTreeSet<IpAddr> = listed.chain(&status.pod_ip).filter_map(|ip| ip.parse().ok()).collect();
        if ips.is_empty() {
            return None;
        }
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers = spec.containers.iter().chain(sidecars);
        let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.clone()?, Protocol::parse(port.protocol.as_deref()), number))
        });
        Some(PodFacts {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            node: spec.node_name.clone().unwrap_or_default(),
            ips: ips.into_iter().collect(),
            ports: ports.collect(),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
    }
}

/// Everything that a node knows.
#[derive(Default)]
pub(crate) struct World {
    pub node: String,
    pub policies: Vec<Arc<NetworkPolicy>>,
    pub namespaces: BTreeMap<String, Labels>,
    pub pods: Vec<PodFacts>,
    /// Cluster DNS as policies see it, with the addresses and ports at which it really answers.
    pub dns: Vec<PodFacts>,
}

/// Which way the traffic goes that a policy is about, seen from the pods that it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// A network with what is excepted from it.
pub(crate) type Block = (IpNet, Vec<IpNet>);

/// Whom a policy names as a peer, as it was read.
struct Peer {
    pods: Option<Selector>,
    namespaces: Option<Selector>,
    block: Option<Block>,
}

impl Peer {
    /// `None`: what cannot be read means nobody.
    fn of(peer: &NetworkPolicyPeer) -> Option<Self> {
        let selector = |spec: &Option<LabelSelector>| spec.clone().map(Selector::try_from).transpose().ok();
        let block = |block: &IPBlock| {
            let except = block.except.iter().flatten().filter_map(|e| e.parse().ok()).collect();
            Some((block.cidr.parse().ok()?, except))
        };
        Some(Peer {
            pods: selector(&peer.pod_selector)?,
            namespaces: selector(&peer.namespace_selector)?,
            block: peer.ip_block.as_ref().and_then(block),
        })
    }
}

/// One allowing rule of a policy. What it does not name it allows from everywhere, or at every port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub peers: Option<Peers>,
    pub ports: Option<Ports>,
    /// Where cluster DNS answers, as far as the rule means it.
    pub dns: BTreeSet<(IpAddr, Protocol, u16)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    pub pods: BTreeSet<IpAddr>,
    /// Networks with what is excepted from them.
    pub blocks: Vec<Block>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ports {
    /// From the first to the last number.
    pub ranges: BTreeSet<(Protocol, u16, u16)>,
    /// Ports by name, as the pods that the traffic goes to give them.
    pub named: BTreeSet<(IpAddr, Protocol, u16)>,
}

/// What holds for this node's pods in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Isolation {
    /// The rules of each policy that selects pods here, by `namespace/name`.
    pub policies: BTreeMap<String, Vec<Rule>>,
    /// The pods here that any policy selects: their addresses, and which policies do.
    pub pods: BTreeMap<IpAddr, BTreeSet<String>>,
}

impl World {
    pub(crate) fn isolation(&self, direction: Direction) -> Isolation {
        let mut isolation = Isolation::default();
        for policy in &self.policies {
            let Some(spec) = &policy.spec else { continue };
            let is_egress = spec.egress.is_some();
            let applies = match &spec.policy_types {
                Some(types) => types.iter().any(|t| t.eq_ignore_ascii_case(direction.name())),
                None => direction == Direction::Ingress || is_egress,
            };
            if !applies {
                continue;
            }
            let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
            let Ok(selector) = Selector::try_from(spec.pod_selector.clone().unwrap_or_default()) else { continue };
            let here = |pod: &&PodFacts| pod.node == self.node && pod.namespace == namespace;
            let selected: Vec<&PodFacts> =
                self.pods.iter().filter(here).filter(|p| selector.matches(&p.labels)).collect();
            if selected.is_empty() {
                continue;
            }
            let name = format!("{namespace}/{}", policy.metadata.name.as_deref().unwrap_or_default());
            for ip in selected.iter().flat_map(|pod| &pod.ips) {
                isolation.pods.entry(*ip).or_default().insert(name.clone());
            }
            let rules = match direction {
                Direction::Ingress => spec
                    .ingress
                    .iter()
                    .flatten()
                    .map(|rule| self.rule(namespace, direction, rule.from.as_deref(), rule.ports.as_deref(), &selected))
                    .collect(),
                Direction::Egress => spec
                    .egress
                    .iter()
                    .flatten()
                    .map(|rule| self.rule(namespace, direction, rule.to.as_deref(), rule.ports.as_deref(), &selected))
                    .collect(),
            };
            isolation.policies.insert(name, rules);
        }
        isolation
    }

    fn rule(
        &self,
        namespace: &str,
        direction: Direction,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
        selected: &[&PodFacts],
    ) -> Rule {
        let peers: Option<Vec<Peer>> =
            peers.filter(|list| !list.is_empty()).map(|list| list.iter().filter_map(Peer::of).collect());
        let peers = peers.as_deref();
        let ports = ports.filter(|list| !list.is_empty());
        let dns = if direction == Direction::Egress { self.dns_of(namespace, peers, ports) } else { BTreeSet::new() };
        let peer_pods = || -> Vec<&PodFacts> {
            match peers {
                Some(list) => list.iter().flat_map(|peer| self.pods_of(namespace, peer)).collect(),
                None => self.pods.iter().collect(),
            }
        };
        let ports = ports.map(|list| {
            let mut all = Ports::default();
            for port in list {
                let protocol = Protocol::parse(port.protocol.as_deref());
                match &port.port {
                    None => drop(all.ranges.insert((protocol, 0, u16::MAX))),
                    Some(IntOrString::Int(first)) => {
                        let last = port.end_port.unwrap_or(*first);
                        if let (Ok(first), Ok(last)) = (u16::try_from(*first), u16::try_from(last)) {
                            all.ranges.insert((protocol, first, last));
                        }
                    }
                    Some(IntOrString::String(name)) => {
                        let targets = match direction {
                            Direction::Ingress => selected.to_vec(),
                            Direction::Egress => peer_pods(),
                        };
                        for pod in targets {
                            let named = pod.ports.iter().filter(|(n, p, _)| n == name && *p == protocol);
                            for (_, _, number) in named {
                                all.named.extend(pod.ips.iter().map(|ip| (*ip, protocol, *number)));
                            }
                        }
                    }
                }
            }
            all
        });
        let peers = peers.map(|list| {
            let mut all = Peers::default();
            for peer in list {
                all.pods.extend(self.pods_of(namespace, peer).iter().flat_map(|pod| &pod.ips));
                all.blocks.extend(peer.block.clone());
            }
            all
        });
        Rule { peers, ports, dns }
    }

    /// The pods that a peer means.
    fn pods_of(&self, namespace: &str, peer: &Peer) -> Vec<&PodFacts> {
        self.pods.iter().filter(|pod| self.means(namespace, peer, pod)).collect()
    }

    /// Whether a peer of a policy of `namespace` means this pod by its labels.
    fn means(&self, namespace: &str, peer: &Peer, pod: &PodFacts) -> bool {
        let is_in_namespace = match &peer.namespaces {
            None => peer.pods.is_some() && pod.namespace == namespace,
            Some(selector) => self.namespaces.get(&pod.namespace).is_some_and(|labels| selector.matches(labels)),
        };
        is_in_namespace && peer.pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
    }

    /// Where cluster DNS answers, if a rule allows pods to ask it. Policies speak of the port that pods ask at; packets are
    /// seen when they are already on their way to the port where it answers.
    fn dns_of(
        &self,
        namespace: &str,
        peers: Option<&[Peer]>,
        ports: Option<&[NetworkPolicyPort]>,
    ) -> BTreeSet<(IpAddr, Protocol, u16)> {
        let is_peer = |server: &PodFacts, ip: IpAddr| {
            peers.is_none_or(|list| {
                list.iter().any(|peer| {
                    self.means(namespace, peer, server)
                        || peer.block.as_ref().is_some_and(|(net, except)| {
                            net.contains(&ip) && !except.iter().any(|hole| hole.contains(&ip))
                        })
                })
            })
        };
        let is_port = |name: &str, protocol: Protocol| {
            ports.is_none_or(|list| {
                list.iter().any(|port| {
                    let is_it = match &port.port {
                        None => true,
                        Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&DNS_PORT),
                        Some(IntOrString::String(wanted)) => wanted == name,
                    };
                    is_it && Protocol::parse(port.protocol.as_deref()) == protocol
                })
            })
        };
        let mut all = BTreeSet::new();
        for server in &self.dns {
            for ip in server.ips.iter().filter(|ip| is_peer(server, **ip)) {
                let ports = server.ports.iter().filter(|(name, protocol, _)| is_port(name, *protocol));
                all.extend(ports.map(|(_, protocol, number)| (*ip, *protocol, *number)));
            }
        }
        all
    }
}

/// The labels of a namespace; its name is one of them also where the API server has not written it.
pub(crate) fn namespace_labels(namespace: &Namespace) -> (String, Labels) {
    let name = namespace.metadata.name.clone().unwrap_or_default();
    let mut labels = namespace.metadata.labels.clone().unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
    (name, labels)
}
