//! What a pod looks like in an EndpointSlice.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Node, ObjectReference, Pod, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone},
};

use super::ports::{is_headless, protocol, target_port};
use crate::pod::{is_finished, is_leaving, is_ready, node_name};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressType {
    Ipv4,
    Ipv6,
}

impl AddressType {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    fn holds(self, address: &str) -> bool {
        match (self, address.parse()) {
            (Self::Ipv4, Ok(IpAddr::V4(_))) | (Self::Ipv6, Ok(IpAddr::V6(_))) => true,
            (_, Ok(_) | Err(_)) => false,
        }
    }

    /// The families that the Service has. A headless one without any, from before families, has both.
    pub(super) fn of(service: &Service) -> Vec<Self> {
        let Some(spec) = &service.spec else { return Vec::new() };
        let named: Vec<_> = spec
            .ip_families
            .iter()
            .flatten()
            .filter_map(|family| match family.as_str() {
                "IPv4" => Some(Self::Ipv4),
                "IPv6" => Some(Self::Ipv6),
                _ => None,
            })
            .collect();
        if !named.is_empty() {
            return named;
        }
        match spec.cluster_ip.as_deref().unwrap_or_default() {
            "None" | "" => vec![Self::Ipv4, Self::Ipv6],
            ip if Self::Ipv6.holds(ip) => vec![Self::Ipv6],
            _ => vec![Self::Ipv4],
        }
    }
}

/// Ports with all that tells them apart, in the Service's order; slices hold endpoints of equal ports.
pub(super) type Ports = Vec<EndpointPort>;

/// The endpoints of one Service and family, by the ports that they have.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) by_ports: Vec<(Ports, BTreeMap<EndpointId, Endpoint>)>,
    /// Pods that were left out because their node is not known.
    pub(super) nodeless: usize,
}

/// What makes two endpoints the same one in different states: the pod and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndpointId {
    target: Option<String>,
    addresses: Vec<String>,
}

impl EndpointId {
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        let mut addresses = endpoint.addresses.clone();
        addresses.sort();
        Self { target: endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()), addresses }
    }
}

impl Wanted {
    pub(super) fn of(
        service: &Service,
        pods: &[Arc<Pod>],
        address_type: AddressType,
        node: impl Fn(&Pod) -> Option<Arc<Node>>,
    ) -> Self {
        let mut wanted = Self::default();
        for pod in pods.iter().filter(|pod| !is_finished(pod)) {
            let addresses = addresses_of(pod, address_type);
            if addresses.is_empty() {
                continue;
            }
            let on = node(pod);
            if on.is_none() && !publishes_not_ready(service) {
                wanted.nodeless += 1;
                continue;
            }
            let endpoint = endpoint_of(service, pod, on.as_deref(), addresses);
            let ports = ports_of(service, pod);
            let id = EndpointId::of(&endpoint);
            match wanted.by_ports.iter_mut().find(|(known, _)| *known == ports) {
                Some((_, endpoints)) => {
                    endpoints.insert(id, endpoint);
                }
                None => wanted.by_ports.push((ports, [(id, endpoint)].into())),
            }
        }
        wanted
    }

    /// Says which zones or nodes each endpoint is for, where the Service asks to keep traffic near.
    pub(super) fn set_hints(&mut self, service: &Service) {
        let near = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
        let same_node = near == Some("PreferSameNode");
        if !same_node && !matches!(near, Some("PreferClose" | "PreferSameZone")) {
            return;
        }
        let ready = |endpoint: &Endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
        for endpoint in self.by_ports.iter_mut().flat_map(|(_, endpoints)| endpoints.values_mut()) {
            if !ready(endpoint) {
                continue;
            }
            let zone = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
            let node = endpoint.node_name.clone().filter(|_| same_node).map(|name| vec![ForNode { name }]);
            if zone.is_some() || node.is_some() {
                endpoint.hints = Some(EndpointHints { for_zones: zone, for_nodes: node });
            }
        }
    }
}

fn addresses_of(pod: &Pod, address_type: AddressType) -> Vec<String> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    ips.iter().map(|ip| ip.ip.clone()).filter(|ip| address_type.holds(ip)).collect()
}

pub(super) fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

pub(super) fn zone_of(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").map(String::as_str)
}

/// The name by which DNS knows the pod in this Service, if it has one.
pub(crate) fn hostname_in(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty())?;
    let same = spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace;
    same.then_some(hostname)
}

fn endpoint_of(service: &Service, pod: &Pod, node: Option<&Node>, addresses: Vec<String>) -> Endpoint {
    let (serving, terminating) = (is_ready(pod), is_leaving(pod));
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        node_name: Some(node_name(pod).to_owned()).filter(|name| !name.is_empty()),
        zone: node.and_then(zone_of).map(str::to_owned),
        hostname: hostname_in(service, pod),
        ..Endpoint::default()
    }
}

/// The Service's ports as this pod has them; those that it does not have are left out.
fn ports_of(service: &Service, pod: &Pod) -> Ports {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    if ports.is_empty() && !is_headless(service) {
        return Vec::new();
    }
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(protocol(port).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// Whether the change of a pod could show in any Service.
pub(super) fn is_change(old: &Pod, new: &Pod) -> bool {
    let shown = |pod: &Pod| {
        let ips = pod.status.as_ref().and_then(|status| status.pod_ips.clone()).unwrap_or_default();
        (is_ready(pod), is_leaving(pod), is_finished(pod), ips)
    };
    shown(old) != shown(new)
        || old.metadata.labels != new.metadata.labels
        || old.metadata.uid != new.metadata.uid
        || node_name(old) != node_name(new)
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::{
        api::core::v1::{Container, ContainerPort, PodCondition, PodIP, PodSpec, PodStatus, ServicePort, ServiceSpec},
        apimachinery::pkg::util::intstr::IntOrString,
    };
    use kube::core::ObjectMeta;

    use super::*;

    pub(in super::super) fn service(target: IntOrString) -> Service {
        Service {
            metadata: ObjectMeta {
                name: Some("web".into()),
                namespace: Some("ns".into()),
                uid: Some("svc".into()),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceSpec {
                ip_families: Some(vec!["IPv4".into()]),
                cluster_ip: Some("10.0.0.1".into()),
                ports: Some(vec![ServicePort {
                    name: Some("http".into()),
                    port: 80,
                    target_port: Some(target),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    pub(in super::super) fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(name.into()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some("n1".into()),
                containers: vec![Container {
                    ports: Some(vec![ContainerPort {
                        name: Some("web".into()),
                        container_port: port,
                        ..ContainerPort::default()
                    }]),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some("Running".into()),
                pod_ips: Some(vec![PodIP { ip: ip.into() }]),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
        })
    }

    fn node(_: &Pod) -> Option<Arc<Node>> {
        let labels = [("topology.kubernetes.io/zone".to_owned(), "z1".to_owned())].into();
        let metadata = ObjectMeta { labels: Some(labels), ..ObjectMeta::default() };
        Some(Arc::new(Node { metadata, ..Node::default() }))
    }

    #[test]
    fn pods_are_grouped_by_what_a_named_port_is_to_them() {
        let service = service(IntOrString::String("web".into()));
        let pods =
            [pod("a", "10.1.0.1", true, 8080), pod("b", "10.1.0.2", false, 9090), pod("c", "fd00::1", true, 8080)];
        let wanted = Wanted::of(&service, &pods, AddressType::Ipv4, node);
        let groups: Vec<_> = wanted
            .by_ports
            .iter()
            .map(|(ports, endpoints)| {
                let ready: Vec<_> = endpoints
                    .values()
                    .map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().unwrap().ready))
                    .collect();
                (ports[0].port, ready)
            })
            .collect();
        let want = vec![(Some(8080), vec![("10.1.0.1", Some(true))]), (Some(9090), vec![("10.1.0.2", Some(false))])];
        assert_eq!(groups, want);
    }

    #[test]
    fn a_pod_on_an_unknown_node_waits_unless_all_is_published() {
        let mut service = service(IntOrString::Int(80));
        let pods = [pod("a", "10.1.0.1", false, 8080)];
        let wanted = Wanted::of(&service, &pods, AddressType::Ipv4, |_| None);
        assert_eq!((wanted.nodeless, wanted.by_ports.len()), (1, 0));
        service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        let wanted = Wanted::of(&service, &pods, AddressType::Ipv4, |_| None);
        assert_eq!((wanted.nodeless, wanted.by_ports.len()), (0, 1));
    }

    #[test]
    fn traffic_is_kept_near_where_the_service_asks_for_it() {
        let mut service = service(IntOrString::Int(80));
        service.spec.as_mut().unwrap().traffic_distribution = Some("PreferSameZone".into());
        let mut wanted = Wanted::of(&service, &[pod("a", "10.1.0.1", true, 1)], AddressType::Ipv4, node);
        wanted.set_hints(&service);
        let hints = wanted.by_ports[0].1.values().next().unwrap().hints.clone().unwrap();
        assert_eq!((hints.for_zones.unwrap()[0].name.as_str(), hints.for_nodes), ("z1", None));
    }
}
