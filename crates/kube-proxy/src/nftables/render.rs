//! From the model to chains, and to elements of sets and maps. Pure.
//!
//! A connection finds its endpoint by look-ups alone: the destination's verdict says which chain knows how many endpoints
//! there are, and that chain looks one of them up by the destination and a random number (KEP-3866 has a chain for each
//! Service and endpoint instead). So the number of chains does not grow with the number of Services, and a change of one
//! endpoint is a change of one element. Only Services with session affinity have chains of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::syntax::{Action, By, Destination, Key, Match, Rule, Value, VerdictMap};
use crate::local::{LocalTraffic, Surroundings};
use crate::model::{Fate, Frontend, FrontendKind, Policy, PortRules, ServiceRules};

/// The index of the first endpoint of policy Local in a destination's list.
const FIRST_LOCAL: u16 = 32768;

/// A chain that the kernel calls by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub chain: &'static str,
    pub kind: &'static str,
    pub hook: &'static str,
    pub priority: i32,
}

/// Filters look before translation at the firewall of balancers' addresses, and after it at what found no endpoint.
pub(crate) const HOOKS: [Hook; 8] = [
    Hook { chain: "filter-prerouting-pre-dnat", kind: "filter", hook: "prerouting", priority: -110 },
    Hook { chain: "filter-output-pre-dnat", kind: "filter", hook: "output", priority: -110 },
    Hook { chain: "nat-prerouting", kind: "nat", hook: "prerouting", priority: -100 },
    Hook { chain: "nat-output", kind: "nat", hook: "output", priority: -100 },
    Hook { chain: "filter-input", kind: "filter", hook: "input", priority: 0 },
    Hook { chain: "filter-forward", kind: "filter", hook: "forward", priority: 0 },
    Hook { chain: "filter-output", kind: "filter", hook: "output", priority: 0 },
    Hook { chain: "nat-postrouting", kind: "nat", hook: "postrouting", priority: 100 },
];

const MASQUERADE_IT: &str = "mark-for-masquerade";
const REJECT_IT: &str = "reject-chain";

pub(crate) type Chains = BTreeMap<String, Arc<Vec<Rule>>>;

/// Matches for traffic of this node's pods.
fn from_pods(pods: &LocalTraffic, not: bool) -> Match {
    match pods {
        LocalTraffic::Networks(nets) => Match::From { nets: nets.clone(), not },
        LocalTraffic::Interface(name) => Match::FromInterface { name: name.clone(), not },
    }
}

/// The chains that are there without any Service, in an order in which each is declared before it is used.
pub(crate) fn skeleton(around: &Surroundings) -> Vec<(String, Vec<Rule>)> {
    let jump = |chain: &str| Action::Jump(chain.to_owned());
    let new = |chain: &str| Rule::when([Match::NewConnection], jump(chain));
    let to_node_port = Match::ToNodePortIp { any: around.node_port_ips.is_none() };
    // Traffic to a cluster IP from elsewhere gets the node's address, so that answers come back this way.
    let mut services = Vec::new();
    if around.masquerade_all {
        services.push(Rule::when([Match::ToClusterIp], jump(MASQUERADE_IT)));
    } else if let Some(pods) = &around.pods {
        services.push(Rule::when([Match::ToClusterIp, from_pods(pods, true)], jump(MASQUERADE_IT)));
    }
    services.push(Rule::always(Action::LookUp(VerdictMap::Services)));
    services.push(Rule::when([to_node_port.clone()], Action::LookUp(VerdictMap::NodePorts)));
    let mut chains = vec![
        (MASQUERADE_IT, vec![Rule::always(Action::Mark)]),
        (REJECT_IT, vec![Rule::always(Action::Reset), Rule::always(Action::Reject)]),
        ("services", services),
        (
            "no-endpoints-check",
            vec![
                Rule::always(Action::LookUp(VerdictMap::NoEndpoints)),
                Rule::when([to_node_port], Action::LookUp(VerdictMap::NoEndpointsNodePorts)),
            ],
        ),
        ("cluster-ips-check", vec![Rule::when([Match::ToClusterIp], Action::Goto(REJECT_IT.to_owned()))]),
        ("firewall-check", vec![Rule::always(Action::LookUp(VerdictMap::Firewall))]),
        (
            "masquerading",
            vec![
                // A pod that is led back to itself must see the answer come from the Service.
                Rule::when([Match::ToItself], Action::Masquerade),
                Rule::when([Match::Unmarked], Action::Return),
                Rule::always(Action::Unmark),
                Rule::always(Action::Masquerade),
            ],
        ),
    ];
    let check = || vec![new("no-endpoints-check"), new("cluster-ips-check")];
    chains.extend(HOOKS.iter().map(|hook| {
        let rules = match (hook.kind, hook.hook) {
            ("nat", "postrouting") => vec![Rule::always(jump("masquerading"))],
            ("nat", _) => vec![Rule::always(jump("services"))],
            (_, "input") => vec![new("no-endpoints-check")],
            _ if hook.priority < 0 => vec![new("firewall-check")],
            _ => check(),
        };
        (hook.chain, rules)
    }));
    chains.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect()
}

/// What one Service adds to a family's table.
#[derive(Debug, Default)]
pub(crate) struct Fragment {
    /// Chains, equal for all Services that have the same one.
    pub chains: Chains,
    /// Sets of clients that stay with an endpoint, and for how many seconds.
    pub sets: BTreeMap<String, u64>,
    pub elements: BTreeMap<Key, Value>,
}

/// Short, unique and allowed in names of chains.
fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn fragment(service: &str, rules: &ServiceRules, around: &Surroundings) -> Fragment {
    let mut fragment = Fragment::default();
    for port in rules.ports.iter().filter(|p| p.family == around.family) {
        fragment.add(service, port, around);
    }
    fragment
}

impl Fragment {
    fn add(&mut self, service: &str, port: &PortRules, around: &Surroundings) {
        for endpoint in &port.on_node {
            self.elements.insert(Key::Hairpin(endpoint.ip()), Value::Present);
        }
        for frontend in &port.frontends {
            self.add_frontend(service, port, frontend, around);
        }
    }

    fn add_frontend(&mut self, service: &str, port: &PortRules, frontend: &Frontend, around: &Surroundings) {
        let to = Destination { address: frontend.address, protocol: port.protocol, port: frontend.port };
        let (found, missing) = match frontend.address {
            Some(_) => (VerdictMap::Services, VerdictMap::NoEndpoints),
            None => (VerdictMap::NodePorts, VerdictMap::NoEndpointsNodePorts),
        };
        if let (FrontendKind::ClusterIp, Some(ip)) = (frontend.kind, frontend.address) {
            self.elements.insert(Key::ClusterIp(ip), Value::Present);
        }
        if !frontend.allowed.is_empty() {
            let chain = format!("firewall-{}", hash(&format!("{service} {to:?}")));
            let nets = frontend.allowed.clone();
            let others = Match::From { nets, not: true };
            self.chains.insert(chain.clone(), Arc::new(vec![Rule::when([others], Action::Drop)]));
            self.elements.insert(Key::Verdict(VerdictMap::Firewall, to), Value::Goto(chain));
        }
        match port.fate(frontend) {
            Fate::Reject => {
                self.elements.insert(Key::Verdict(missing, to), Value::Goto(REJECT_IT.to_owned()));
                return;
            }
            // Only what is not led to an endpoint, as a pod's traffic to an external address is, gets that far.
            Fate::Drop => drop(self.elements.insert(Key::Verdict(missing, to), Value::Drop)),
            Fate::Balance => {}
        }
        let chain = if frontend.is_external() {
            self.external_chain(service, port, to, around)
        } else {
            self.balancing_chain(service, port, port.internal, to)
        };
        if let Some(chain) = chain {
            self.elements.insert(Key::Verdict(found, to), Value::Goto(chain));
        }
    }

    /// What is done with traffic from outside before it is balanced.
    fn external_chain(
        &mut self,
        service: &str,
        port: &PortRules,
        to: Destination,
        around: &Surroundings,
    ) -> Option<String> {
        let jump = || Action::Jump(MASQUERADE_IT.to_owned());
        let cluster = self.balancing_chain(service, port, Policy::Cluster, to);
        if port.external == Policy::Cluster {
            let cluster = cluster?;
            let name = format!("external-{cluster}");
            let rules = vec![Rule::always(jump()), Rule::always(Action::Goto(cluster))];
            self.chains.insert(name.clone(), Arc::new(rules));
            return Some(name);
        }
        let local = self.balancing_chain(service, port, Policy::Local, to);
        let or_none = |chain: &Option<String>| chain.clone().unwrap_or_else(|| "none".to_owned());
        let name = format!("external-{}-{}", or_none(&cluster), or_none(&local));
        let mut rules = Vec::new();
        if let Some(cluster) = cluster {
            // Pods and the node itself reach all endpoints, as if they had gone out to a balancer and come back.
            if let Some(pods) = &around.pods {
                rules.push(Rule::when([from_pods(pods, false)], Action::Goto(cluster.clone())));
            }
            rules.push(Rule::when([Match::FromNode], jump()));
            rules.push(Rule::when([Match::FromNode], Action::Goto(cluster)));
        }
        rules.extend(local.map(|local| Rule::always(Action::Goto(local))));
        if rules.is_empty() {
            return None;
        }
        self.chains.insert(name.clone(), Arc::new(rules));
        Some(name)
    }

    /// The chain that leads to one of the policy's endpoints; `None` without any.
    fn balancing_chain(&mut self, service: &str, port: &PortRules, policy: Policy, to: Destination) -> Option<String> {
        let endpoints = port.endpoints(policy);
        let count = u16::try_from(endpoints.len()).ok().filter(|n| *n > 0 && *n <= FIRST_LOCAL)?;
        if port.affinity.is_some() {
            return Some(self.sticky_chain(service, port, policy));
        }
        let (by, by_name) = match to.address {
            Some(_) => (By::Address, ""),
            None => (By::NodePort, "nodeport-"),
        };
        let (first, policy_name) = match policy {
            Policy::Cluster => (0, ""),
            Policy::Local => (FIRST_LOCAL, "local-"),
        };
        for (index, endpoint) in (first..).zip(endpoints) {
            self.elements.insert(Key::Endpoint(to, index), Value::To(*endpoint));
        }
        let protocol = port.protocol;
        let name = format!("endpoints-{by_name}{policy_name}{}-{count}", protocol.name());
        let pick = Action::Pick { by, protocol, first, count };
        self.chains.entry(name.clone()).or_insert_with(|| Arc::new(vec![Rule::always(pick)]));
        Some(name)
    }

    /// A chain of the port's own that first looks whether the client has an endpoint already.
    fn sticky_chain(&mut self, service: &str, port: &PortRules, policy: Policy) -> String {
        let endpoints = port.endpoints(policy);
        let own = format!("{service} {} {:?} {:?}", port.port_name, port.protocol, port.family);
        let name = format!("service-{}-{}", if policy == Policy::Local { "local" } else { "cluster" }, hash(&own));
        if self.chains.contains_key(&name) {
            return name;
        }
        let seconds = port.affinity.map_or(0, |t| t.as_secs());
        let mut rules = Vec::new();
        let mut targets = Vec::new();
        for endpoint in endpoints {
            let (chain, set) = self.sticky_endpoint(&own, port, *endpoint, seconds);
            rules.push(Rule::when([Match::RememberedIn(set)], Action::Goto(chain.clone())));
            targets.push(chain);
        }
        rules.push(Rule::always(Action::Choose(targets)));
        self.chains.insert(name.clone(), Arc::new(rules));
        name
    }

    /// An endpoint's chain and the set of its clients. A set's timeout cannot be changed: another timeout is another set.
    fn sticky_endpoint(&mut self, own: &str, port: &PortRules, endpoint: SocketAddr, seconds: u64) -> (String, String) {
        let id = hash(&format!("{own} {endpoint} {seconds}"));
        let (chain, set) = (format!("endpoint-{id}"), format!("affinity-{id}"));
        self.sets.insert(set.clone(), seconds);
        let to = Action::To { protocol: port.protocol, endpoint };
        let rules = vec![Rule::always(Action::Remember(set.clone())), Rule::always(to)];
        self.chains.insert(chain.clone(), Arc::new(rules));
        (chain, set)
    }
}
