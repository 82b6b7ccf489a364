//! The desired rules, rendered from the model: chains, map elements and sets of one table a family. Pure.
//!
//! A packet to a Service's address finds its chain by one look-up in a verdict map, however many Services there are
//! (KEP-3866).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::model::{Model, PortModel, PortName};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn table(self) -> &'static str {
        match self {
            Family::V4 => "ip kube-proxy",
            Family::V6 => "ip6 kube-proxy",
        }
    }

    fn ip(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }

    fn loopback(self) -> &'static str {
        match self {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1",
        }
    }

    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Family::V4)
    }
}

/// The contents of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// Header (for base chains: type, hook and priority) and rules.
    pub chains: BTreeMap<String, Chain>,
    /// Declarations of maps and sets.
    pub sets: BTreeMap<String, String>,
    /// By map: element and verdict.
    pub elements: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub base: String,
    pub rules: Vec<String>,
}

pub(crate) type RuleSet = BTreeMap<Family, Table>;

const SERVICE_IPS: &str = "service-ips";
const SERVICE_NODE_PORTS: &str = "service-nodeports";
const NO_ENDPOINT_IPS: &str = "no-endpoint-services";
const NO_ENDPOINT_NODE_PORTS: &str = "no-endpoint-nodeports";

/// Packets that must be masqueraded carry upstream's bit.
const MARK: &str = "0x4000";

pub(crate) fn render(model: &Model, config: &Config) -> RuleSet {
    [Family::V4, Family::V6].into_iter().map(|family| (family, table(model, config, family))).collect()
}

fn table(model: &Model, config: &Config, family: Family) -> Table {
    let mut table = skeleton(family);
    for (name, port) in &model.ports {
        add_port(&mut table, name, port, config, family);
    }
    table
}

fn skeleton(family: Family) -> Table {
    let mut table = Table::default();
    let (ip, address) = (family.ip(), family.address_type());
    for map in [SERVICE_IPS, NO_ENDPOINT_IPS] {
        table
            .sets
            .insert(map.into(), format!("map {map} {{ type {address} . inet_proto . inet_service : verdict ; }}"));
        table.elements.insert(map.into(), BTreeMap::new());
    }
    for map in [SERVICE_NODE_PORTS, NO_ENDPOINT_NODE_PORTS] {
        table.sets.insert(map.into(), format!("map {map} {{ type inet_proto . inet_service : verdict ; }}"));
        table.elements.insert(map.into(), BTreeMap::new());
    }
    let node_port = |map: &str| {
        format!("fib daddr type local {ip} daddr != {} meta l4proto . th dport vmap @{map}", family.loopback())
    };
    let mut chain = |name: &str, base: &str, rules: Vec<String>| {
        table.chains.insert(name.to_owned(), Chain { base: base.to_owned(), rules });
    };
    chain(
        "services",
        "",
        vec![format!("{ip} daddr . meta l4proto . th dport vmap @{SERVICE_IPS}"), node_port(SERVICE_NODE_PORTS)],
    );
    chain(
        "service-endpoints-check",
        "",
        vec![
            format!("{ip} daddr . meta l4proto . th dport vmap @{NO_ENDPOINT_IPS}"),
            node_port(NO_ENDPOINT_NODE_PORTS),
        ],
    );
    chain("reject-chain", "", vec!["reject".into()]);
    chain("mark-for-masquerade", "", vec![format!("mark set mark or {MARK}")]);
    chain(
        "masquerading",
        "",
        vec![
            format!("mark and {MARK} == 0 return"),
            format!("mark set mark xor {MARK}"),
            "masquerade fully-random".into(),
        ],
    );
    for (hook, priority) in [("prerouting", "-100"), ("output", "-100")] {
        chain(
            &format!("nat-{hook}"),
            &format!("type nat hook {hook} priority {priority} ;"),
            vec!["jump services".into()],
        );
    }
    chain("nat-postrouting", "type nat hook postrouting priority 100 ;", vec!["jump masquerading".into()]);
    for hook in ["input", "forward", "output"] {
        chain(
            &format!("filter-{hook}"),
            &format!("type filter hook {hook} priority -110 ;"),
            vec!["ct state new jump service-endpoints-check".into()],
        );
    }
    table
}

/// Short, unique and allowed in names of chains.
fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect()
}

fn add_port(table: &mut Table, name: &PortName, port: &PortModel, config: &Config, family: Family) {
    let of_family = |set: &BTreeSet<SocketAddr>| set.iter().filter(|e| family.has(e.ip())).copied().collect::<Vec<_>>();
    let (all, local) = (of_family(&port.endpoints), of_family(&port.local_endpoints));
    let cluster_ips: Vec<IpAddr> = port.cluster_ips.iter().filter(|ip| family.has(**ip)).copied().collect();
    let external_ips: Vec<IpAddr> = port.external_ips.iter().filter(|ip| family.has(**ip)).copied().collect();
    let (protocol, number) = (port.protocol.name(), port.port);
    let id = hash(&format!("{}/{}:{}/{protocol}", name.namespace, name.name, name.port));
    let (ip, proto) = (family.ip(), protocol);

    let internal = if port.internal_local { &local } else { &all };
    let external = if port.external_local { &local } else { &all };
    let service_chain = format!("service-{id}");
    let local_chain = format!("local-{id}");
    let external_chain = format!("external-{id}");

    let element = |ip: &IpAddr| format!("{ip} . {proto} . {number}");
    let mut verdict = |map: &str, key: String, verdict: String| {
        table.elements.entry(map.to_owned()).or_default().insert(key, verdict);
    };
    let uses_local = port.internal_local || port.external_local;
    for cluster_ip in &cluster_ips {
        if internal.is_empty() {
            // Without any endpoint the caller is told so; with endpoints elsewhere only, its packets are dropped.
            let to = if all.is_empty() { "goto reject-chain" } else { "drop" };
            verdict(NO_ENDPOINT_IPS, element(cluster_ip), to.into());
        } else {
            let to = if port.internal_local { &local_chain } else { &service_chain };
            verdict(SERVICE_IPS, element(cluster_ip), format!("goto {to}"));
        }
    }
    let has_external = !external_ips.is_empty() || port.node_port.is_some();
    for external_ip in &external_ips {
        if external.is_empty() {
            let to = if all.is_empty() { "goto reject-chain" } else { "drop" };
            verdict(NO_ENDPOINT_IPS, element(external_ip), to.into());
        } else {
            verdict(SERVICE_IPS, element(external_ip), format!("goto {external_chain}"));
        }
    }
    if let Some(node_port) = port.node_port {
        let key = format!("{proto} . {node_port}");
        if external.is_empty() {
            let to = if all.is_empty() { "goto reject-chain" } else { "drop" };
            verdict(NO_ENDPOINT_NODE_PORTS, key, to.into());
        } else {
            verdict(SERVICE_NODE_PORTS, key, format!("goto {external_chain}"));
        }
    }

    // Masquerading of what comes from outside of the pod network to a cluster IP, so that the answer comes back this way.
    let mut service_rules = Vec::new();
    let pod_networks: Vec<String> =
        config.cluster_cidrs.iter().filter(|c| family.has(c.addr())).map(ToString::to_string).collect();
    for cluster_ip in &cluster_ips {
        let to_it = format!("{ip} daddr {cluster_ip} {proto} dport {number}");
        if config.masquerade_all {
            service_rules.push(format!("{to_it} jump mark-for-masquerade"));
        } else if !pod_networks.is_empty() {
            service_rules
                .push(format!("{to_it} {ip} saddr != {{ {} }} jump mark-for-masquerade", pod_networks.join(", ")));
        }
    }
    if !all.is_empty() {
        let mut rules = service_rules.clone();
        rules.extend(balance(table, &id, &all, port, family));
        table.chains.insert(service_chain.clone(), Chain { base: String::new(), rules });
    }
    if uses_local && !local.is_empty() {
        let mut rules = if port.internal_local { service_rules } else { Vec::new() };
        rules.extend(balance(table, &id, &local, port, family));
        table.chains.insert(local_chain.clone(), Chain { base: String::new(), rules });
    }
    if has_external && !external.is_empty() {
        let mut rules = Vec::new();
        if !port.source_ranges.is_empty() {
            let ranges: Vec<String> =
                port.source_ranges.iter().filter(|c| family.has(c.addr())).map(ToString::to_string).collect();
            for external_ip in &external_ips {
                let to_it = format!("{ip} daddr {external_ip} {proto} dport {number}");
                let others = if ranges.is_empty() {
                    String::new()
                } else {
                    format!(" {ip} saddr != {{ {} }}", ranges.join(", "))
                };
                rules.push(format!("{to_it}{others} drop"));
            }
        }
        if port.external_local {
            // Pods and this node itself reach all endpoints also through an external address.
            if !pod_networks.is_empty() {
                rules.push(format!("{ip} saddr {{ {} }} goto {service_chain}", pod_networks.join(", ")));
            }
            rules.push("fib saddr type local jump mark-for-masquerade".into());
            rules.push(format!("fib saddr type local goto {service_chain}"));
            rules.push(format!("goto {local_chain}"));
        } else {
            rules.push("jump mark-for-masquerade".into());
            rules.push(format!("goto {service_chain}"));
        }
        table.chains.insert(external_chain, Chain { base: String::new(), rules });
    }
}

/// Rules that choose one of the endpoints, and the endpoints' own chains.
fn balance(table: &mut Table, id: &str, endpoints: &[SocketAddr], port: &PortModel, family: Family) -> Vec<String> {
    let (ip, protocol) = (family.ip(), port.protocol.name());
    let mut rules = Vec::new();
    let mut targets = Vec::new();
    for endpoint in endpoints {
        let own = hash(&format!("{id}/{endpoint}"));
        let chain = format!("endpoint-{own}");
        let mut endpoint_rules = vec![
            // A pod that reaches itself through its Service must see the answer come from the Service.
            format!("{ip} saddr {} jump mark-for-masquerade", endpoint.ip()),
        ];
        if let Some(timeout) = port.affinity {
            let set = format!("affinity-{own}");
            let declared = format!(
                "set {set} {{ type {} ; flags dynamic,timeout ; timeout {}s ; }}",
                family.address_type(),
                timeout.as_secs()
            );
            table.sets.insert(set.clone(), declared);
            rules.push(format!("{ip} saddr @{set} goto {chain}"));
            endpoint_rules.push(format!("update @{set} {{ {ip} saddr }}"));
        }
        endpoint_rules.push(format!("meta l4proto {protocol} dnat to {endpoint}"));
        table.chains.insert(chain.clone(), Chain { base: String::new(), rules: endpoint_rules });
        targets.push(chain);
    }
    let numbered: Vec<String> = targets.iter().enumerate().map(|(i, chain)| format!("{i} : goto {chain}")).collect();
    rules.push(format!("numgen random mod {} vmap {{ {} }}", targets.len(), numbered.join(", ")));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture::model;
    use serde_json::json;

    /// Follows a packet to `address` through the rendered table, taking the `choice`-th endpoint: where it ends up.
    fn follow(table: &Table, map: &str, key: &str, choice: usize) -> String {
        let Some(verdict) = table.elements[map].get(key) else { return "no rule".into() };
        let mut chain = match verdict.strip_prefix("goto ") {
            Some(chain) => chain.to_owned(),
            None => return verdict.clone(),
        };
        let mut marked = false;
        loop {
            let Some(found) = table.chains.get(&chain) else { return format!("dangling {chain}") };
            let mut next = None;
            for rule in &found.rules {
                if rule == "reject" {
                    return "reject".into();
                } else if rule == "jump mark-for-masquerade" {
                    marked = true;
                } else if let Some((_, to)) = rule.split_once("dnat to ") {
                    return format!("{to}{}", if marked { " masqueraded" } else { "" });
                } else if let Some((_, list)) = rule.split_once("vmap { ") {
                    let target = list.trim_end_matches(" }").split(", ").nth(choice).unwrap();
                    next = target.split_once("goto ").map(|(_, c)| c.to_owned());
                } else if let Some(to) = rule.strip_prefix("goto ") {
                    next = Some(to.to_owned());
                }
                if next.is_some() {
                    break;
                }
            }
            match next {
                Some(next) => chain = next,
                None => return "falls through".into(),
            }
        }
    }

    fn table(spec: serde_json::Value, endpoints: serde_json::Value) -> Table {
        let mut config = Config::new("n1");
        config.cluster_cidrs.push("10.244.0.0/16".parse().unwrap());
        render(&model(spec, endpoints), &config).remove(&Family::V4).unwrap()
    }

    fn two() -> serde_json::Value {
        json!([{"addresses": ["10.244.0.2"], "nodeName": "n1"}, {"addresses": ["10.244.1.2"], "nodeName": "n2"}])
    }

    #[test]
    fn a_cluster_ip_leads_to_each_endpoint() {
        let table = table(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}), two());
        assert_eq!(follow(&table, SERVICE_IPS, "10.96.0.9 . tcp . 80", 0), "10.244.0.2:8080");
        assert_eq!(follow(&table, SERVICE_IPS, "10.96.0.9 . tcp . 80", 1), "10.244.1.2:8080");
    }

    #[test]
    fn without_endpoints_the_caller_is_refused() {
        let table = table(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]}), json!([]));
        assert_eq!(follow(&table, NO_ENDPOINT_IPS, "10.96.0.9 . tcp . 80", 0), "reject");
        assert_eq!(follow(&table, NO_ENDPOINT_NODE_PORTS, "tcp . 30080", 0), "reject");
        assert_eq!(follow(&table, SERVICE_IPS, "10.96.0.9 . tcp . 80", 0), "no rule");
    }

    #[test]
    fn a_node_port_is_masqueraded_unless_it_stays_local() {
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        let cluster = table(json!({"clusterIP": "10.96.0.9", "ports": ports}), two());
        assert_eq!(follow(&cluster, SERVICE_NODE_PORTS, "tcp . 30080", 1), "10.244.1.2:8080 masqueraded");
        let local = json!({"clusterIP": "10.96.0.9", "externalTrafficPolicy": "Local", "ports": ports});
        let table_local = table(local.clone(), two());
        assert_eq!(follow(&table_local, SERVICE_NODE_PORTS, "tcp . 30080", 0), "10.244.0.2:8080");
        let elsewhere = table(local, json!([{"addresses": ["10.244.1.2"], "nodeName": "n2"}]));
        assert_eq!(follow(&elsewhere, NO_ENDPOINT_NODE_PORTS, "tcp . 30080", 0), "drop");
    }

    #[test]
    fn affinity_remembers_clients_for_its_time() {
        let spec = json!({"clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "ports": [{"port": 80}]});
        let table = table(spec, two());
        let sets: Vec<&String> = table.sets.values().filter(|s| s.contains("timeout 60s")).collect();
        assert_eq!(sets.len(), 2);
        let updates =
            table.chains.values().flat_map(|c| &c.rules).filter(|r| r.starts_with("update @affinity-")).count();
        assert_eq!(updates, 2);
    }
}
