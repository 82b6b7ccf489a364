//! What is to happen to packets for a Service: its frontends, its endpoints, and which leads to which. Pure.
//!
//! Every back end renders this model; none looks at Services or EndpointSlices itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Index of EndpointSlices by the Service that they belong to.
pub(crate) const BY_SERVICE: &str = "service";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Of an address as it is written.
    fn of_text(ip: &str) -> Self {
        if ip.contains(':') { Family::V6 } else { Family::V4 }
    }

    pub(crate) fn has(self, ip: IpAddr) -> bool {
        Family::of(ip) == self
    }

    /// As upstream's metrics and EndpointSlices write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// TCP, UDP or SCTP, as the packet filter writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub(crate) const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
    }
}

/// Whether traffic may go to every endpoint or only to those of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Cluster,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrontendKind {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// Where a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frontend {
    pub kind: FrontendKind,
    /// `None`: every address of the node that node ports are served on.
    pub address: Option<IpAddr>,
    pub port: u16,
    /// Sources that may use it; empty: all.
    pub allowed: Vec<IpNet>,
}

impl Frontend {
    /// Whether its traffic comes from outside of the cluster.
    pub(crate) fn is_external(&self) -> bool {
        self.kind != FrontendKind::ClusterIp
    }
}

/// One port of one Service in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortRules {
    pub family: Family,
    pub port_name: String,
    pub protocol: Protocol,
    /// How long a client stays with its endpoint.
    pub affinity: Option<Duration>,
    pub internal: Policy,
    pub external: Policy,
    /// Where traffic of policy Cluster goes.
    pub cluster: Vec<SocketAddr>,
    /// Where traffic of policy Local goes.
    pub local: Vec<SocketAddr>,
    /// Those of both that run on this node.
    pub on_node: Vec<SocketAddr>,
    /// Whether any endpoint could take traffic, here or elsewhere.
    pub has_any: bool,
    pub frontends: Vec<Frontend>,
}

/// What a frontend does with a connection that no firewall refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// There is no endpoint at all: the caller is told.
    Reject,
    /// There are endpoints, but the policy allows none of them.
    Drop,
    Balance,
}

impl PortRules {
    pub(crate) fn policy(&self, frontend: &Frontend) -> Policy {
        if frontend.is_external() { self.external } else { self.internal }
    }

    pub(crate) fn endpoints(&self, policy: Policy) -> &[SocketAddr] {
        match policy {
            Policy::Cluster => &self.cluster,
            Policy::Local => &self.local,
        }
    }

    /// What happens to traffic that the frontend's policy applies to. Pods and the node itself are not bound by an
    /// external policy of Local.
    pub(crate) fn fate(&self, frontend: &Frontend) -> Fate {
        if !self.has_any {
            Fate::Reject
        } else if self.endpoints(self.policy(frontend)).is_empty() {
            Fate::Drop
        } else {
            Fate::Balance
        }
    }
}

/// A Service's health-check port and what it answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub port: u16,
    pub local_endpoints: usize,
}

/// All that a Service asks of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceRules {
    pub ports: Vec<PortRules>,
    pub health_check: Option<HealthCheck>,
}

/// What the rules depend on besides the Service: where this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub node: String,
    pub zone: Option<String>,
}

pub(crate) fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
    name.map(|name| format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default())).into_iter().collect()
}

/// The rules of a Service with these slices; none when it has no address that a proxy serves.
pub(crate) fn rules_of(service: &Service, slices: &[Arc<EndpointSlice>], place: &Place) -> Option<ServiceRules> {
    let spec = service.spec.as_ref()?;
    let labels = service.metadata.labels.as_ref();
    let has = |label: &str| labels.is_some_and(|labels| labels.contains_key(label));
    // One that another proxy serves, or that is headless although it has an address.
    if has("service.kubernetes.io/service-proxy-name") || has("service.kubernetes.io/headless") {
        return None;
    }
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") || cluster_ip.is_empty() || cluster_ip == "None" {
        return None;
    }
    let mut ports = Vec::new();
    for port in spec.ports.iter().flatten() {
        for family in Family::BOTH {
            ports.extend(port_rules(service, port, family, slices, place));
        }
    }
    let number = spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
    let checked = number.filter(|_| spec.external_traffic_policy.as_deref() == Some("Local"));
    let health_check = checked.map(|port| HealthCheck {
        port,
        local_endpoints: local_ready(spec, Family::of_text(cluster_ip), slices, place),
    });
    Some(ServiceRules { ports, health_check })
}

/// How many endpoints of this node a balancer may send new connections to: endpoints, not ports of them, nor their addresses of
/// the other family; those that are going away finish what they have.
fn local_ready(spec: &ServiceSpec, family: Family, slices: &[Arc<EndpointSlice>], place: &Place) -> usize {
    let of_port = |port: &ServicePort| {
        let name = port.name.as_deref().unwrap_or_default();
        endpoints_of(slices, name, Protocol::parse(port.protocol.as_deref()), family, &place.node)
    };
    let found = spec.ports.iter().flatten().flat_map(of_port).filter(|f| f.local && f.ready);
    found.map(|f| f.address.ip()).collect::<BTreeSet<_>>().len()
}

fn policy(text: Option<&str>) -> Policy {
    if text == Some("Local") { Policy::Local } else { Policy::Cluster }
}

/// Those of a list that can be read and are of the family, each once.
fn addresses<'a>(list: impl IntoIterator<Item = &'a String>, family: Family) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> =
        list.into_iter().filter_map(|ip| ip.parse().ok()).filter(|ip| family.has(*ip)).collect();
    found.sort();
    found.dedup();
    found
}

fn frontends(service: &Service, port: &ServicePort, family: Family) -> Vec<Frontend> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Ok(number) = u16::try_from(port.port) else { return Vec::new() };
    let ingress =
        service.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|l| l.ingress.iter().flatten());
    // A balancer in `Proxy` mode must see the traffic itself (KEP-1860).
    let balanced = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let ranges = spec.load_balancer_source_ranges.iter().flatten().filter_map(|c| c.trim().parse::<IpNet>().ok());
    let allowed: Vec<IpNet> = ranges.filter(|c| family.has(c.addr())).collect();
    let one = |kind, address, port| Frontend { kind, address, port, allowed: Vec::new() };
    let mut all: Vec<Frontend> = addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip), family)
        .into_iter()
        .map(|ip| one(FrontendKind::ClusterIp, Some(ip), number))
        .collect();
    if all.is_empty() {
        return all; // the Service is not of this family
    }
    let external = addresses(spec.external_ips.iter().flatten(), family);
    let balanced = addresses(balanced, family).into_iter().filter(|ip| !external.contains(ip)).collect::<Vec<_>>();
    all.extend(external.into_iter().map(|ip| one(FrontendKind::ExternalIp, Some(ip), number)));
    all.extend(balanced.into_iter().map(|ip| {
        let mut allowed = allowed.clone();
        if !allowed.is_empty() {
            // The node itself may have the address, and then comes from it.
            allowed.push(IpNet::from(ip));
        }
        Frontend { allowed, ..one(FrontendKind::LoadBalancer, Some(ip), number) }
    }));
    let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
    all.extend(node_port.map(|port| one(FrontendKind::NodePort, None, port)));
    all
}

fn port_rules(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &[Arc<EndpointSlice>],
    place: &Place,
) -> Option<PortRules> {
    let spec = service.spec.as_ref()?;
    let frontends = frontends(service, port, family);
    if frontends.is_empty() {
        return None;
    }
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let seconds = config.and_then(|c| c.timeout_seconds).and_then(|s| u64::try_from(s).ok());
        Duration::from_secs(seconds.unwrap_or(10800))
    });
    let protocol = Protocol::parse(port.protocol.as_deref());
    let internal = policy(spec.internal_traffic_policy.as_deref());
    let external = policy(spec.external_traffic_policy.as_deref());
    let port_name = port.name.clone().unwrap_or_default();
    let found = endpoints_of(slices, &port_name, protocol, family, &place.node);
    let is_external = frontends.iter().any(Frontend::is_external);
    // Also an external policy of Local needs all endpoints: for pods and for the node itself.
    let uses_cluster = internal == Policy::Cluster || is_external;
    let uses_local = internal == Policy::Local || (external == Policy::Local && is_external);
    let cluster = if uses_cluster { near(&found, place) } else { Vec::new() };
    let here: Vec<&Found> = found.iter().filter(|f| f.local).collect();
    let local = if uses_local { serving(here.iter().copied()) } else { Vec::new() };
    let has_any = found.iter().any(|f| f.ready || f.draining);
    let on_node = here.iter().map(|f| f.address).filter(|a| cluster.contains(a) || local.contains(a)).collect();
    Some(PortRules {
        family,
        port_name,
        protocol,
        affinity,
        internal,
        external,
        cluster,
        local,
        on_node,
        has_any,
        frontends,
    })
}

struct Found {
    address: SocketAddr,
    ready: bool,
    /// Serves although it is going away.
    draining: bool,
    local: bool,
    zones: Vec<String>,
    nodes: Vec<String>,
}

fn endpoints_of(
    slices: &[Arc<EndpointSlice>],
    port_name: &str,
    protocol: Protocol,
    family: Family,
    node: &str,
) -> Vec<Found> {
    // By address: while slices are rewritten, one endpoint may stand in two of them.
    let mut found: BTreeMap<SocketAddr, Found> = BTreeMap::new();
    for slice in slices.iter().filter(|s| s.address_type == family.name()) {
        let named = |p: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            p.name.as_deref().unwrap_or_default() == port_name && Protocol::parse(p.protocol.as_deref()) == protocol
        };
        let numbers = slice.ports.iter().flatten().filter(named).filter_map(|p| u16::try_from(p.port?).ok());
        for number in numbers.filter(|n| *n > 0) {
            for endpoint in slice.endpoints.iter().flatten() {
                let ip = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok());
                let Some(ip) = ip.filter(|ip| family.has(*ip)) else { continue };
                let new = found_of(endpoint, SocketAddr::new(ip, number), node);
                let known = found.get(&new.address);
                if known.is_none_or(|known| (new.ready, new.draining) > (known.ready, known.draining)) {
                    found.insert(new.address, new);
                }
            }
        }
    }
    found.into_values().collect()
}

fn found_of(endpoint: &Endpoint, address: SocketAddr, node: &str) -> Found {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.clone().unwrap_or_default();
    Found {
        address,
        ready,
        draining: conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(node),
        zones: hints.for_zones.unwrap_or_default().into_iter().map(|z| z.name).collect(),
        nodes: hints.for_nodes.unwrap_or_default().into_iter().map(|n| n.name).collect(),
    }
}

/// Ready endpoints; if there is none, those that still serve while they go away (KEP-1669).
fn serving<'a>(found: impl Iterator<Item = &'a Found> + Clone) -> Vec<SocketAddr> {
    let ready: Vec<SocketAddr> = found.clone().filter(|f| f.ready).map(|f| f.address).collect();
    if ready.is_empty() { found.filter(|f| f.draining).map(|f| f.address).collect() } else { ready }
}

/// The endpoints for cluster-wide traffic: those that hints keep for this node or zone, if every ready one has hints and
/// some are for us; else all (KEP-2433, KEP-3015).
fn near(all: &[Found], place: &Place) -> Vec<SocketAddr> {
    let ready: Vec<&Found> = all.iter().filter(|f| f.ready).collect();
    let hinted = |hints: fn(&Found) -> &Vec<String>, own: &str| {
        let ours: Vec<SocketAddr> =
            ready.iter().filter(|f| hints(f).iter().any(|hint| hint == own)).map(|f| f.address).collect();
        (ready.iter().all(|f| !hints(f).is_empty()) && !ours.is_empty()).then_some(ours)
    };
    let by_zone = || place.zone.as_deref().and_then(|zone| hinted(|f| &f.zones, zone));
    hinted(|f| &f.nodes, &place.node).or_else(by_zone).unwrap_or_else(|| serving(all.iter()))
}

#[cfg(test)]
pub(crate) mod fixture {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn place() -> Place {
        Place { node: "n1".to_owned(), zone: Some("z1".to_owned()) }
    }

    /// A slice of `prod/web` whose one port has no name.
    pub(crate) fn slice(family: Family, endpoints: &Value) -> Arc<EndpointSlice> {
        let protocols = ["TCP", "UDP", "SCTP"].map(|p| json!({"name": "", "port": 8080, "protocol": p}));
        let slice = json!({
            "metadata": {"name": "web-x", "namespace": "prod", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family.name(), "ports": protocols, "endpoints": endpoints});
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    /// The rules of a Service `prod/web` whose spec and endpoints are given as JSON; `status` stands in its place.
    pub(crate) fn rules(mut spec: Value, endpoints: &Value) -> Option<ServiceRules> {
        let status = spec.as_object_mut().unwrap().remove("status");
        let service = json!({"metadata": {"name": "web", "namespace": "prod"}, "spec": spec, "status": status});
        let of = |family: Family| {
            let list = endpoints.as_array().unwrap().iter();
            let own = list.filter(|e| e["addresses"][0].as_str().unwrap().contains(':') == (family == Family::V6));
            slice(family, &own.cloned().collect())
        };
        let slices = [of(Family::V4), of(Family::V6)];
        rules_of(&serde_json::from_value(service).unwrap(), &slices, &place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cluster_endpoints(list: Value) -> Vec<String> {
        let rules = fixture::rules(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}), &list).unwrap();
        rules.ports.iter().flat_map(|p| p.cluster.iter().map(|e| e.ip().to_string())).collect()
    }

    #[test]
    fn ready_endpoints_count_and_draining_ones_only_without_them() {
        let ready = json!({"addresses": ["10.244.0.2"], "conditions": {"ready": true}});
        let draining =
            json!({"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let dead = json!({"addresses": ["10.244.0.4"], "conditions": {"ready": false}});
        assert_eq!(cluster_endpoints(json!([ready, draining, dead])), ["10.244.0.2"]);
        assert_eq!(cluster_endpoints(json!([draining, dead])), ["10.244.0.3"]);
        assert!(cluster_endpoints(json!([dead])).is_empty());
    }

    #[test]
    fn hints_keep_traffic_near_when_all_have_them() {
        let zone = |ip: &str, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
        assert_eq!(cluster_endpoints(json!([zone("10.244.0.2", "z1"), zone("10.244.0.3", "z2")])), ["10.244.0.2"]);
        assert_eq!(cluster_endpoints(json!([zone("10.244.0.2", "z2"), zone("10.244.0.3", "z2")])).len(), 2);
        assert_eq!(cluster_endpoints(json!([zone("10.244.0.2", "z1"), {"addresses": ["10.244.0.3"]}])).len(), 2);
        let node = |ip: &str, node: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": node}]}});
        assert_eq!(cluster_endpoints(json!([node("10.244.0.2", "n1"), node("10.244.0.3", "n2")])), ["10.244.0.2"]);
        assert_eq!(cluster_endpoints(json!([node("10.244.0.2", "n3"), node("10.244.0.3", "n2")])).len(), 2);
    }

    #[test]
    fn services_without_an_address_have_no_rules() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "x.example"}),
        ] {
            assert_eq!(fixture::rules(spec, &json!([])), None);
        }
    }

    #[test]
    fn each_family_has_its_own_frontends_and_endpoints() {
        let spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"], "ports": [{"port": 80}],
            "externalIPs": ["192.0.2.9", "2001:db8::9"]});
        let endpoints = json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["fd00:244::2"]}]);
        let rules = fixture::rules(spec, &endpoints).unwrap();
        let shown: Vec<String> = rules
            .ports
            .iter()
            .map(|p| {
                let frontends = p.frontends.iter().map(|f| f.address.unwrap().to_string()).collect::<Vec<_>>();
                format!("{} -> {}", frontends.join(","), p.cluster[0])
            })
            .collect();
        assert_eq!(shown, ["10.96.0.9,192.0.2.9 -> 10.244.0.2:8080", "fd00:96::9,2001:db8::9 -> [fd00:244::2]:8080"]);
    }

    #[test]
    fn health_checks_count_local_ready_endpoints_once() {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "nodePort": 30053, "protocol": "UDP"}]});
        let here = |ip: &str| json!({"addresses": [ip], "nodeName": "n1"});
        let there = json!({"addresses": ["10.244.1.2"], "nodeName": "n2"});
        let draining = json!({"addresses": ["10.244.0.3"], "nodeName": "n1",
            "conditions": {"ready": false, "serving": true, "terminating": true}});
        let counted = |endpoints: Value| {
            let rules = fixture::rules(spec.clone(), &endpoints).unwrap();
            let check = rules.health_check.unwrap();
            assert_eq!(check.port, 32000);
            (check.local_endpoints, rules.ports[0].local.len())
        };
        // An endpoint has an address of each family.
        assert_eq!(counted(json!([here("10.244.0.2"), here("fd00:244::2"), there])), (1, 1));
        assert_eq!(counted(json!([here("10.244.0.2"), draining])), (1, 1));
        // What is there is still used by those who come, but the balancer is to send others elsewhere.
        assert_eq!(counted(json!([draining, there])), (0, 1));
    }
}
