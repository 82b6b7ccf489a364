//! Keeps the Endpoints object of every Service with a selector, for clients that do not read EndpointSlices.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    events::{Recorder, reference},
    informer::{Lister, NAMESPACE_INDEX, SharedInformer},
};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    core::ObjectMeta,
};

use crate::{
    context::Context,
    endpointslice::{
        hostname_in, index_by_namespace,
        ports::{is_headless, protocol, target_port},
        services_of,
    },
    error::SyncError,
    expectations::Expectations,
    pod::{is_finished, is_leaving, is_ready, node_name},
    pod_control::said,
    selector::map_selects,
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses that one object holds.
const CAPACITY: usize = 1000;

pub(crate) struct EndpointsController {
    client: Client,
    recorder: Recorder,
    services: SharedInformer<Service>,
    service_lister: Lister<Service>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    endpoints: SharedInformer<Endpoints>,
    endpoints_lister: Lister<Endpoints>,
    own_writes: Expectations,
}

impl EndpointsController {
    pub(crate) fn new(context: &Context) -> Self {
        let services = context.informers.informer::<Service>();
        let pods = context.informers.informer::<Pod>();
        let endpoints = context.informers.informer::<Endpoints>();
        services.add_index(NAMESPACE_INDEX, index_by_namespace);
        pods.add_index(NAMESPACE_INDEX, index_by_namespace);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            service_lister: services.lister(),
            services,
            pod_lister: pods.lister(),
            pods,
            endpoints_lister: endpoints.lister(),
            endpoints,
            own_writes: Expectations::default(),
        }
    }
}

impl Controller for EndpointsController {
    const NAME: &'static str = "endpoint";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.services);
        let services = self.service_lister.clone();
        watches.map(&self.pods, move |event| services_of(&services, event));
        watches.map(&self.endpoints, |event| {
            let managed = |object: &Arc<Endpoints>| {
                object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(MANAGED_BY))
            };
            event.old().into_iter().chain(event.now()).any(managed).then(|| event.key())
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), key.namespace());
        if !self.own_writes.are_met(key, &self.endpoints_lister) {
            return Ok(Action::await_change());
        }
        let known = self.endpoints_lister.get(key);
        let Some(service) = self.service_lister.get(key) else {
            // Those that somebody made by hand for a Service without a selector go with it too, as upstream has it.
            if known.is_some() {
                ignore_not_found(api.delete(key.name(), &DeleteParams::default()).await)?;
            }
            return Ok(Action::await_change());
        };
        let spec = service.spec.clone().unwrap_or_default();
        if spec.selector.as_ref().is_none_or(BTreeMap::is_empty) || spec.type_.as_deref() == Some("ExternalName") {
            return Ok(Action::await_change());
        }
        let pods = self.pod_lister.in_namespace(key.namespace()).into_iter();
        let pods: Vec<_> =
            pods.filter(|pod| map_selects(spec.selector.as_ref(), pod.metadata.labels.as_ref())).collect();
        let Some(wanted) = plan(&service, &pods, known.as_deref()) else { return Ok(Action::await_change()) };
        let params = PostParams::default();
        let written = match &known {
            None => api.create(&params, &wanted).await,
            Some(_) => api.replace(key.name(), &params, &wanted).await,
        };
        match written {
            Ok(written) => {
                self.own_writes.wrote(key, &written);
                Ok(Action::await_change())
            }
            Err(err) if err.is_namespace_terminating() => Ok(Action::await_change()),
            Err(err) => {
                let reason = if known.is_none() { "FailedToCreateEndpoint" } else { "FailedToUpdateEndpoint" };
                if !err.is_conflict() && !err.is_already_exists() {
                    let verb = if known.is_none() { "create" } else { "update" };
                    let message = format!("Failed to {verb} endpoint {key}: {}", said(&err));
                    self.recorder.warning(&reference(&*service), reason, message);
                }
                if err.is_already_exists() { Ok(Action::Retry) } else { Err(err.into()) }
            }
        }
    }
}

/// The object to write, or nothing if what is there says it already.
fn plan(service: &Service, pods: &[Arc<Pod>], known: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, is_over) = truncate(repack(subsets_of(service, pods)));
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    let mut wanted = known.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    if is_over {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        wanted.metadata.annotations = None;
    }
    wanted.metadata.labels = Some(labels);
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    let is_same = known.is_some_and(|known| {
        known.metadata.labels == wanted.metadata.labels
            && known.metadata.annotations.clone().unwrap_or_default()
                == wanted.metadata.annotations.clone().unwrap_or_default()
            && known.subsets.clone().filter(|subsets| !subsets.is_empty()) == wanted.subsets
    });
    (!is_same).then_some(wanted)
}

/// One subset per pod and port, before equal ones are put together.
fn subsets_of(service: &Service, pods: &[Arc<Pod>]) -> Vec<(EndpointPort, EndpointAddress, bool)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let publishes_all = spec.publish_not_ready_addresses == Some(true);
    let wants_v6 = spec.ip_families.as_ref().and_then(|families| families.first()).is_some_and(|first| first == "IPv6");
    let mut found = Vec::new();
    for pod in pods.iter().filter(|pod| !is_finished(pod) && (publishes_all || !is_leaving(pod))) {
        let Some(address) = address_of(service, pod, wants_v6) else { continue };
        let is_up = publishes_all || is_ready(pod);
        let ports = spec.ports.as_deref().unwrap_or_default();
        if ports.is_empty() && is_headless(service) {
            found.push((EndpointPort::default(), address.clone(), is_up));
        }
        for port in ports {
            let Some(number) = target_port(pod, port) else { continue };
            let port = EndpointPort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: number,
                protocol: Some(protocol(port).to_owned()),
                app_protocol: port.app_protocol.clone(),
            };
            found.push((port, address.clone(), is_up));
        }
    }
    found
}

fn address_of(service: &Service, pod: &Pod, wants_v6: bool) -> Option<EndpointAddress> {
    let ips = pod.status.as_ref()?.pod_ips.as_deref().unwrap_or_default();
    let fits = |ip: &&str| matches!(ip.parse(), Ok(IpAddr::V6(_))) == wants_v6;
    Some(EndpointAddress {
        ip: ips.iter().map(|ip| ip.ip.as_str()).find(fits)?.to_owned(),
        hostname: hostname_in(service, pod),
        node_name: Some(node_name(pod).to_owned()).filter(|name| !name.is_empty()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

type PortKey = (Option<String>, i32, Option<String>, Option<String>);

fn port_key(port: &EndpointPort) -> PortKey {
    (port.name.clone(), port.port, port.protocol.clone(), port.app_protocol.clone())
}

/// Puts addresses with the same ports into one subset, everything sorted, so that equal content is equal text.
fn repack(found: Vec<(EndpointPort, EndpointAddress, bool)>) -> Vec<EndpointSubset> {
    type AddressKey = (String, Option<String>);
    let mut by_address: BTreeMap<AddressKey, (EndpointAddress, bool, BTreeMap<PortKey, EndpointPort>)> =
        BTreeMap::new();
    for (port, address, is_up) in found {
        let key = (address.ip.clone(), address.target_ref.as_ref().and_then(|target| target.uid.clone()));
        let entry = by_address.entry(key).or_insert_with(|| (address, is_up, BTreeMap::new()));
        entry.2.insert(port_key(&port), port);
    }
    let mut by_ports: BTreeMap<Vec<PortKey>, EndpointSubset> = BTreeMap::new();
    for (address, is_up, ports) in by_address.into_values() {
        let (keys, ports): (Vec<_>, Vec<_>) = ports.into_iter().filter(|(_, port)| port.port != 0).unzip();
        let subset = by_ports.entry(keys).or_insert_with(|| EndpointSubset {
            ports: (!ports.is_empty()).then_some(ports),
            ..EndpointSubset::default()
        });
        let list = if is_up { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    by_ports.into_values().collect()
}

/// Keeps what one object may hold, ready addresses before others.
fn truncate(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let total: usize = subsets.iter().map(|s| count(&s.addresses) + count(&s.not_ready_addresses)).sum();
    if total <= CAPACITY {
        return (subsets, false);
    }
    let mut room = CAPACITY;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            addresses.truncate(room);
            room -= addresses.len();
        }
        *list = list.take().filter(|addresses| !addresses.is_empty());
    };
    subsets.iter_mut().for_each(|subset| cut(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| cut(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (subsets, true)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PodCondition, PodIP, PodStatus, ServicePort, ServiceSpec},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    fn pod(ip: &str, ready: bool) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta { name: Some(ip.into()), uid: Some(ip.into()), ..ObjectMeta::default() },
            status: Some(PodStatus {
                pod_ips: Some(vec![PodIP { ip: ip.into() }]),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        })
    }

    fn service() -> Service {
        let port = |name: &str, port| ServicePort { name: Some(name.into()), port, ..ServicePort::default() };
        Service {
            metadata: ObjectMeta { name: Some("web".into()), ..ObjectMeta::default() },
            spec: Some(ServiceSpec { ports: Some(vec![port("b", 2), port("a", 1)]), ..ServiceSpec::default() }),
            status: None,
        }
    }

    fn show(endpoints: &Endpoints) -> String {
        let list = |addresses: &Option<Vec<EndpointAddress>>| {
            addresses.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>().join(",")
        };
        let subset = |s: &EndpointSubset| {
            let ports: Vec<_> = s.ports.iter().flatten().map(|p| p.port.to_string()).collect();
            format!("{} | {} : {}", list(&s.addresses), list(&s.not_ready_addresses), ports.join(","))
        };
        endpoints.subsets.iter().flatten().map(subset).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn pods_with_the_same_ports_share_a_subset_and_nothing_is_written_twice() {
        let pods = [pod("10.0.0.2", true), pod("10.0.0.1", true), pod("10.0.0.3", false)];
        let written = plan(&service(), &pods, None).unwrap();
        assert_eq!(show(&written), "10.0.0.1,10.0.0.2 | 10.0.0.3 : 1,2");
        assert!(plan(&service(), &pods, Some(&written)).is_none());
        let mut leaving = (*pods[0]).clone();
        leaving.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        let fewer = plan(&service(), &[Arc::new(leaving), pods[1].clone()], Some(&written)).unwrap();
        assert_eq!(show(&fewer), "10.0.0.1 |  : 1,2");
        let none = plan(&service(), &[], Some(&written)).unwrap();
        assert_eq!(none.subsets, None);
    }

    #[test]
    fn more_than_fit_are_cut_and_said_to_be() {
        let pods: Vec<_> = (0..1200).map(|n| pod(&format!("10.0.{}.{}", n / 250, n % 250), n % 2 == 0)).collect();
        let written = plan(&service(), &pods, None).unwrap();
        let subset = &written.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().map(Vec::len), Some(600));
        assert_eq!(subset.not_ready_addresses.as_ref().map(Vec::len), Some(400));
        assert_eq!(written.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
    }
}
