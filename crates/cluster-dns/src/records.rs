//! The records of a subject, from the informers' caches. Pure apart from reading them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use client::ObjectKey;
use client::informer::Lister;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::zone::{Subject, dashed};

pub(crate) const BY_SERVICE: &str = "service";
pub(crate) const BY_ADDRESS: &str = "address";
/// The namespace and the name of the Service through which pods ask.
const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");

/// What a name holds, without types that nobody asked for being left out yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Data {
    Address(IpAddr),
    /// Another name, outside of the cluster's domain or in it.
    Alias(String),
    Text(String),
    /// A port at a target; `target` is below `service.namespace.svc`, or that name itself when empty.
    Port {
        port: u16,
        target: String,
        addresses: Vec<IpAddr>,
    },
    /// A name for an address.
    Pointer(String),
}

pub(crate) struct Records {
    services: Lister<Service>,
    slices: Lister<EndpointSlice>,
}

/// Index of Services by their cluster IPs.
pub(crate) fn service_addresses(service: &Service) -> Vec<String> {
    cluster_ips(service).iter().map(IpAddr::to_string).collect()
}

/// Index of EndpointSlices by the Service that they belong to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
    name.map(|name| format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default())).into_iter().collect()
}

/// Index of EndpointSlices by the addresses in them.
pub(crate) fn endpoint_addresses(slice: &EndpointSlice) -> Vec<String> {
    slice.endpoints.iter().flatten().flat_map(|e| e.addresses.iter().cloned()).collect()
}

/// The addresses of a Service that has its own; none for headless and external ones.
fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let unique: BTreeSet<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    unique.into_iter().collect()
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.cluster_ip.as_deref() == Some("None"))
}

/// One address of a headless Service with the name that it has below it.
struct Member {
    hostname: String,
    address: IpAddr,
    ports: Vec<(String, String, u16)>,
}

impl Records {
    pub(crate) fn new(services: Lister<Service>, slices: Lister<EndpointSlice>) -> Self {
        Records { services, slices }
    }

    /// The data of a subject; `None` when there is no such name.
    pub(crate) fn of(&self, subject: &Subject) -> Option<Vec<Data>> {
        match subject {
            Subject::Apex | Subject::Inner => Some(Vec::new()),
            Subject::Version => Some(vec![Data::Text("1.1.0".to_owned())]),
            Subject::NameServer => {
                let service = self.services.get(&ObjectKey::new(DNS_SERVICE.0, DNS_SERVICE.1));
                Some(service.iter().flat_map(|service| cluster_ips(service)).map(Data::Address).collect())
            }
            Subject::Pod { address } => Some(vec![Data::Address(*address)]),
            Subject::Service { name, namespace } => self.service(namespace, name),
            Subject::Endpoint { hostname, name, namespace } => {
                let service = self.services.get(&ObjectKey::new(namespace, name)).filter(|s| is_headless(s))?;
                let members = self.members(&service, namespace, name);
                let found: Vec<Data> =
                    members.into_iter().filter(|m| m.hostname == *hostname).map(|m| Data::Address(m.address)).collect();
                (!found.is_empty()).then_some(found)
            }
            Subject::Port { port, protocol, name, namespace } => {
                let ports =
                    self.ports(namespace, name, |p, proto| p == port && proto.eq_ignore_ascii_case(protocol))?;
                (!ports.is_empty()).then_some(ports)
            }
            Subject::Unknown => None,
        }
    }

    /// The names of an address, below the cluster's domain.
    pub(crate) fn names_of(&self, address: IpAddr) -> Vec<String> {
        let text = address.to_string();
        let mut names = BTreeSet::new();
        for service in self.services.by_index(BY_ADDRESS, &text) {
            let key = ObjectKey::of(&*service);
            names.insert(format!("{}.{}.svc", key.name(), key.namespace()));
        }
        for slice in self.slices.by_index(BY_ADDRESS, &text) {
            for key in service_of(&slice) {
                let key = ObjectKey::from(key.as_str());
                let Some(service) = self.services.get(&key).filter(|s| is_headless(s)) else { continue };
                for member in self.members(&service, key.namespace(), key.name()) {
                    if member.address == address {
                        names.insert(format!("{}.{}.{}.svc", member.hostname, key.name(), key.namespace()));
                    }
                }
            }
        }
        names.into_iter().collect()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Vec<Data>> {
        let service = self.services.get(&ObjectKey::new(namespace, name))?;
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return spec.external_name.clone().map(|name| vec![Data::Alias(name)]);
        }
        let mut data: Vec<Data> = if is_headless(&service) {
            let members = self.members(&service, namespace, name);
            if members.is_empty() {
                return None; // upstream's DNS server says that the name does not exist until an endpoint is ready
            }
            members.into_iter().map(|m| Data::Address(m.address)).collect()
        } else {
            cluster_ips(&service).into_iter().map(Data::Address).collect()
        };
        data.extend(self.ports(namespace, name, |_, _| true).unwrap_or_default());
        data.sort();
        data.dedup();
        Some(data)
    }

    /// SRV data of the ports whose name and protocol `wanted` takes.
    fn ports(&self, namespace: &str, name: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<Vec<Data>> {
        let service = self.services.get(&ObjectKey::new(namespace, name))?;
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        if !is_headless(&service) {
            let addresses = cluster_ips(&service);
            let number = |p: &ServicePort| {
                let port = u16::try_from(p.port).ok()?;
                wanted(p.name.as_deref().unwrap_or_default(), p.protocol.as_deref().unwrap_or("TCP")).then_some(port)
            };
            let data = spec.ports.iter().flatten().filter_map(number);
            return Some(
                data.map(|port| Data::Port { port, target: String::new(), addresses: addresses.clone() }).collect(),
            );
        }
        let mut data = Vec::new();
        for member in self.members(&service, namespace, name) {
            for (_, _, port) in member.ports.iter().filter(|(port, protocol, _)| wanted(port, protocol)) {
                data.push(Data::Port { port: *port, target: member.hostname.clone(), addresses: vec![member.address] });
            }
        }
        data.sort();
        data.dedup();
        Some(data)
    }

    /// The endpoints of a headless Service that may be published.
    fn members(&self, service: &Service, namespace: &str, name: &str) -> Vec<Member> {
        let unready = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or_default();
        let mut members = Vec::new();
        for slice in self.slices.by_index(BY_SERVICE, &format!("{namespace}/{name}")) {
            let ports: Vec<(String, String, u16)> = slice
                .ports
                .iter()
                .flatten()
                .filter_map(|p| {
                    let number = u16::try_from(p.port?).ok()?;
                    Some((
                        p.name.clone().unwrap_or_default(),
                        p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                        number,
                    ))
                })
                .collect();
            for endpoint in slice.endpoints.iter().flatten().filter(|e| unready || is_ready(e)) {
                for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                    let hostname = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
                    members.push(Member { hostname, address, ports: ports.clone() });
                }
            }
        }
        members.sort_by_key(|m| m.address);
        members.dedup_by_key(|m| (m.address, m.hostname.clone()));
        members
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use client::informer::SharedInformer;
    use serde_json::json;

    pub(crate) fn records() -> Records {
        let service = |name: &str, spec: serde_json::Value| {
            let (namespace, name) = name.split_once('/').unwrap_or(("prod", name));
            let service = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
            serde_json::from_value::<Service>(service).unwrap()
        };
        let alias = |name: &str, to: &str| service(name, json!({"type": "ExternalName", "externalName": to}));
        let services = SharedInformer::fixed([
            service(
                "web",
                json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00::20"],
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
            ),
            service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
            service("empty", json!({"clusterIP": "None"})),
            service("many", json!({"clusterIP": "None"})),
            alias("out", "db.example.com"),
            alias("gone", "no.example.com"),
            alias("broken", "broken.example.com"),
            alias("lost", "none.prod.svc.cluster.local"),
            alias("four", "db.prod.svc.cluster.local"),
            service("kube-system/kube-dns", json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]})),
        ]);
        services.add_index(BY_ADDRESS, service_addresses);
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "db-x", "namespace": "prod", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.6"]},
                {"addresses": ["10.244.0.7"], "hostname": "db-2", "conditions": {"ready": false}},
            ],
        }))
        .unwrap();
        let many: Vec<_> = (1..=100).map(|i| json!({"addresses": [format!("10.244.1.{i}")]})).collect();
        let many: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "many-x", "namespace": "prod", "labels": {"kubernetes.io/service-name": "many"}},
            "addressType": "IPv4", "endpoints": many,
        }))
        .unwrap();
        let slices = SharedInformer::fixed([slice, many]);
        slices.add_index(BY_SERVICE, service_of);
        slices.add_index(BY_ADDRESS, endpoint_addresses);
        Records::new(services.lister(), slices.lister())
    }

    fn service(name: &str) -> Option<Vec<Data>> {
        records().of(&Subject::Service { name: name.into(), namespace: "prod".into() })
    }

    fn addresses(data: Option<Vec<Data>>) -> Vec<String> {
        let data = data.unwrap_or_default().into_iter();
        data.filter_map(|d| if let Data::Address(a) = d { Some(a.to_string()) } else { None }).collect()
    }

    #[test]
    fn a_service_has_its_cluster_addresses() {
        assert_eq!(addresses(service("web")), ["10.96.0.20", "fd00::20"]);
        assert_eq!(service("none"), None);
    }

    #[test]
    fn a_headless_service_has_its_ready_endpoints() {
        assert_eq!(addresses(service("db")), ["10.244.0.5", "10.244.0.6"]);
        assert_eq!(service("empty"), None);
        let endpoint = |hostname: &str| {
            records().of(&Subject::Endpoint { hostname: hostname.into(), name: "db".into(), namespace: "prod".into() })
        };
        assert_eq!(addresses(endpoint("db-0")), ["10.244.0.5"]);
        assert_eq!(addresses(endpoint("10-244-0-6")), ["10.244.0.6"]);
        assert_eq!(endpoint("db-2"), None);
    }

    #[test]
    fn an_external_name_is_an_alias() {
        assert_eq!(service("out"), Some(vec![Data::Alias("db.example.com".into())]));
    }

    #[test]
    fn ports_point_at_the_service_or_at_each_endpoint() {
        let port = |port: &str, protocol: &str, name: &str| {
            let (port, protocol, name, namespace) = (port.into(), protocol.into(), name.into(), "prod".into());
            records().of(&Subject::Port { port, protocol, name, namespace })
        };
        match port("http", "tcp", "web").unwrap().as_slice() {
            [Data::Port { port: 80, target, addresses }] => assert_eq!((target.as_str(), addresses.len()), ("", 2)),
            other => panic!("{other:?}"),
        }
        assert_eq!(port("http", "udp", "web"), None);
        let targets: Vec<String> = port("sql", "tcp", "db")
            .unwrap()
            .into_iter()
            .map(|d| if let Data::Port { target, port: 5432, .. } = d { target } else { String::new() })
            .collect();
        assert_eq!(targets, ["10-244-0-6", "db-0"]);
    }

    #[test]
    fn addresses_have_names() {
        assert_eq!(records().names_of([10, 96, 0, 20].into()), ["web.prod.svc"]);
        assert_eq!(records().names_of([10, 244, 0, 5].into()), ["db-0.db.prod.svc"]);
        assert!(records().names_of([10, 244, 0, 99].into()).is_empty());
    }
}
