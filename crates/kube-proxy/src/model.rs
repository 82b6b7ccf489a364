//! Services and their endpoints, reduced to what decides about packets. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use client::informer::Lister;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

pub(crate) const BY_SERVICE: &str = "service";

/// TCP, UDP or SCTP, as the packet filter writes them.
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

    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
    }
}

/// `namespace/name:port`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortName {
    pub namespace: String,
    pub name: String,
    pub port: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortModel {
    pub protocol: Protocol,
    pub port: u16,
    pub cluster_ips: Vec<IpAddr>,
    /// External IPs and addresses of load balancers that are to be reached directly.
    pub external_ips: Vec<IpAddr>,
    pub node_port: Option<u16>,
    pub affinity: Option<Duration>,
    /// Who may use the load balancer's addresses; empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// `Local`: external traffic stays on this node and keeps its source.
    pub external_local: bool,
    pub internal_local: bool,
    /// Where traffic goes; of both families.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Those of them on this node.
    pub local_endpoints: BTreeSet<SocketAddr>,
    pub health_check_port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub ports: BTreeMap<PortName, PortModel>,
}

/// One Service's health-check port and what it answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub port: u16,
    pub namespace: String,
    pub name: String,
    pub local_endpoints: usize,
}

impl Model {
    pub(crate) fn health_checks(&self) -> Vec<HealthCheck> {
        let mut checks: Vec<HealthCheck> = self
            .ports
            .iter()
            .filter_map(|(name, port)| {
                Some(HealthCheck {
                    port: port.health_check_port?,
                    namespace: name.namespace.clone(),
                    name: name.name.clone(),
                    local_endpoints: port.local_endpoints.len(),
                })
            })
            .collect();
        checks.dedup_by_key(|c| c.port);
        checks
    }
}

/// Index of EndpointSlices by the Service that they belong to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
    name.map(|name| format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default())).into_iter().collect()
}

pub(crate) fn build(
    services: &[Arc<Service>],
    slices: &Lister<EndpointSlice>,
    node: &str,
    zone: Option<&str>,
) -> Model {
    let mut model = Model::default();
    for service in services {
        let meta = &service.metadata;
        let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        // A Service that another proxy serves is none of ours.
        let foreign = meta.labels.as_ref().is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name"));
        if foreign || !has_address(service) {
            continue;
        }
        let own = slices.by_index(BY_SERVICE, &format!("{namespace}/{name}"));
        for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
            if let Some(entry) = port_model(service, port, &own, node, zone) {
                let port = port.name.clone().unwrap_or_default();
                model.ports.insert(PortName { namespace: namespace.clone(), name: name.clone(), port }, entry);
            }
        }
    }
    model
}

fn has_address(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() != Some("ExternalName")
        && spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty() && ip != "None")
}

fn addresses<'a>(list: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    let unique: BTreeSet<IpAddr> = list.into_iter().filter_map(|ip| ip.parse().ok()).collect();
    unique.into_iter().collect()
}

fn port_model(
    service: &Service,
    port: &ServicePort,
    slices: &[Arc<EndpointSlice>],
    node: &str,
    zone: Option<&str>,
) -> Option<PortModel> {
    let spec = service.spec.as_ref()?;
    let balanced =
        service.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|l| l.ingress.iter().flatten());
    // A balancer in `Proxy` mode must see the traffic itself.
    let balanced = balanced.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(10800);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(10800))
    });
    let port_name = port.name.as_deref().unwrap_or_default();
    let all = endpoints_of(slices, port_name, node);
    let endpoints = usable(&all, zone, node);
    let local: Vec<&Found> = all.iter().filter(|f| f.local).collect();
    Some(PortModel {
        protocol: Protocol::parse(port.protocol.as_deref()),
        port: u16::try_from(port.port).ok()?,
        cluster_ips: addresses(spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter())),
        external_ips: addresses(spec.external_ips.iter().flatten().chain(balanced)),
        node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
        affinity,
        source_ranges: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter_map(|c| c.trim().parse().ok())
            .collect(),
        external_local,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        endpoints,
        local_endpoints: serving(&local),
        health_check_port: spec
            .health_check_node_port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p > 0 && external_local),
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

fn endpoints_of(slices: &[Arc<EndpointSlice>], port_name: &str, node: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for slice in slices {
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref().unwrap_or_default() == port_name)
            .and_then(|p| p.port);
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(ip) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else { continue };
            found.push(found_of(endpoint, SocketAddr::new(ip, number), node));
        }
    }
    found
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
fn serving(found: &[&Found]) -> BTreeSet<SocketAddr> {
    let ready: BTreeSet<SocketAddr> = found.iter().filter(|f| f.ready).map(|f| f.address).collect();
    if ready.is_empty() { found.iter().filter(|f| f.draining).map(|f| f.address).collect() } else { ready }
}

/// The endpoints for cluster-wide traffic: those that hints keep for this node or zone, if every ready one has hints and
/// some are for us; else all.
fn usable(all: &[Found], zone: Option<&str>, node: &str) -> BTreeSet<SocketAddr> {
    let ready: Vec<&Found> = all.iter().filter(|f| f.ready).collect();
    let hinted = |for_us: &dyn Fn(&Found) -> bool, has: &dyn Fn(&Found) -> bool| {
        let ours: BTreeSet<SocketAddr> = ready.iter().filter(|f| for_us(f)).map(|f| f.address).collect();
        (!ready.is_empty() && ready.iter().all(|f| has(f)) && !ours.is_empty()).then_some(ours)
    };
    let by_node = hinted(&|f| f.nodes.iter().any(|n| n == node), &|f| !f.nodes.is_empty());
    let by_zone = || zone.and_then(|z| hinted(&|f| f.zones.iter().any(|n| n == z), &|f| !f.zones.is_empty()));
    by_node.or_else(by_zone).unwrap_or_else(|| serving(&all.iter().collect::<Vec<_>>()))
}

#[cfg(test)]
pub(crate) mod fixture {
    use client::informer::SharedInformer;
    use serde_json::json;

    use super::*;

    /// One Service `prod/web` whose spec and endpoints are given as JSON.
    pub(crate) fn model(spec: serde_json::Value, endpoints: serde_json::Value) -> Model {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "prod"}, "spec": spec})).unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-x", "namespace": "prod", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}))
        .unwrap();
        let slices = SharedInformer::fixed([slice]);
        slices.add_index(BY_SERVICE, service_of);
        build(&[Arc::new(service)], &slices.lister(), "n1", Some("z1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn endpoints(list: serde_json::Value) -> Vec<String> {
        let model = fixture::model(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}), list);
        model.ports.values().flat_map(|p| p.endpoints.iter().map(|e| e.ip().to_string())).collect()
    }

    #[test]
    fn ready_endpoints_count_and_draining_ones_only_without_them() {
        let ready = json!({"addresses": ["10.244.0.2"], "conditions": {"ready": true}});
        let draining =
            json!({"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let dead = json!({"addresses": ["10.244.0.4"], "conditions": {"ready": false}});
        assert_eq!(endpoints(json!([ready, draining, dead])), ["10.244.0.2"]);
        assert_eq!(endpoints(json!([draining, dead])), ["10.244.0.3"]);
        assert!(endpoints(json!([dead])).is_empty());
    }

    #[test]
    fn hints_keep_traffic_in_the_zone_when_all_have_them() {
        let at = |ip: &str, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
        assert_eq!(endpoints(json!([at("10.244.0.2", "z1"), at("10.244.0.3", "z2")])), ["10.244.0.2"]);
        assert_eq!(endpoints(json!([at("10.244.0.2", "z2"), at("10.244.0.3", "z2")])).len(), 2);
        assert_eq!(endpoints(json!([at("10.244.0.2", "z1"), {"addresses": ["10.244.0.3"]}])).len(), 2);
    }

    #[test]
    fn services_without_an_address_have_no_rules() {
        let model = fixture::model(json!({"clusterIP": "None", "ports": [{"port": 80}]}), json!([]));
        assert!(model.ports.is_empty());
    }
}
