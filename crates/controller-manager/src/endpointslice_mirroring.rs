//! Shows Endpoints that people or programs wrote by hand as EndpointSlices, which is what everybody reads.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    events::{Recorder, reference},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::{
    core::v1::{EndpointAddress, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
    core::ObjectMeta,
};

use crate::{
    context::Context, endpointslice::SERVICE_NAME, error::SyncError, expectations::Expectations,
    owner::controller_reference, pod_control::said,
};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const DROPPED_ANNOTATIONS: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];
/// Finds our slices by the Endpoints that they mirror.
const MIRROR_INDEX: &str = "mirrored";

pub(crate) struct EndpointSliceMirroringController {
    client: Client,
    recorder: Recorder,
    services: SharedInformer<Service>,
    service_lister: Lister<Service>,
    endpoints: SharedInformer<Endpoints>,
    endpoints_lister: Lister<Endpoints>,
    slices: SharedInformer<EndpointSlice>,
    slice_lister: Lister<EndpointSlice>,
    max_per_subset: usize,
    expectations: Expectations,
}

impl EndpointSliceMirroringController {
    pub(crate) fn new(context: &Context) -> Self {
        let services = context.informers.informer::<Service>();
        let endpoints = context.informers.informer::<Endpoints>();
        let slices = context.informers.informer::<EndpointSlice>();
        slices.add_index(MIRROR_INDEX, |slice| mirrored(slice).into_iter().map(|key| key.to_string()).collect());
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            service_lister: services.lister(),
            services,
            endpoints_lister: endpoints.lister(),
            endpoints,
            slice_lister: slices.lister(),
            slices,
            max_per_subset: context.config.mirroring_max_endpoints,
            expectations: Expectations::default(),
        }
    }

    async fn write(&self, key: &ObjectKey, changes: Changes) -> Result<(), kube::Error> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), key.namespace());
        for slice in &changes.create {
            self.expectations.wrote(key, &api.create(&PostParams::default(), slice).await?);
        }
        for slice in &changes.update {
            self.expectations.wrote(key, &api.replace(&slice.name_any(), &PostParams::default(), slice).await?);
        }
        for slice in &changes.delete {
            let same = Preconditions { uid: slice.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams::default().preconditions(same);
            if ignore_not_found(api.delete(&slice.name_any(), &params).await)?.is_some() {
                self.expectations.deleted(key, &**slice);
            }
        }
        Ok(())
    }
}

fn mirrored(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.get(MANAGED_BY)? != MANAGER {
        return None;
    }
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), labels.get(SERVICE_NAME)?))
}

/// Those that somebody wrote for a Service that has no selector, unless they ask to be left alone.
fn is_mirrored(service: Option<&Service>, endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    let skips = labels.and_then(|labels| labels.get(SKIP)).is_some_and(|value| value == "true");
    let elects = endpoints.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(LEADER));
    let has_selector = |service: &Service| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.is_some_and(|selector| !selector.is_empty())
    };
    !skips && !elects && service.is_some_and(|service| !has_selector(service))
}

#[derive(Debug, Default)]
struct Changes {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<Arc<EndpointSlice>>,
    /// Addresses that found no place.
    skipped: usize,
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

type Content = (&'static str, Vec<EndpointPort>, Vec<Endpoint>);

/// What the slices are to hold: one per subset and family.
fn contents(endpoints: &Endpoints, max_per_subset: usize) -> (Vec<Content>, usize) {
    let (mut contents, mut skipped): (Vec<Content>, usize) = (Vec::new(), 0);
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<_> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        ports.sort_by_key(|port| (port.name.clone(), port.port, port.protocol.clone()));
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let (mut taken, mut families) = (0, BTreeMap::<_, Vec<Endpoint>>::new());
        for (address, is_ready) in ready.chain(unready) {
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => {
                    skipped += 1;
                    continue;
                }
            };
            if taken >= max_per_subset {
                skipped += 1;
                continue;
            }
            taken += 1;
            families.entry(family).or_default().push(endpoint(address, is_ready));
        }
        for (family, endpoints) in families {
            // Subsets with the same ports share a slice.
            match contents.iter_mut().find(|known| known.0 == family && known.1 == ports) {
                Some(known) => known.2.extend(endpoints),
                None => contents.push((family, ports.clone(), endpoints)),
            }
        }
    }
    (contents, skipped)
}

fn plan(endpoints: &Endpoints, known: Vec<Arc<EndpointSlice>>, max_per_subset: usize) -> Changes {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !DROPPED_ANNOTATIONS.contains(&name.as_str()));
    let annotations = (!annotations.is_empty()).then_some(annotations);
    let (contents, skipped) = contents(endpoints, max_per_subset);
    let mut changes = Changes { skipped, ..Changes::default() };
    let mut left = known;
    for (family, ports, endpoints_now) in contents {
        let same_ports = |slice: &Arc<EndpointSlice>| {
            slice.address_type == family && slice.ports.as_deref().unwrap_or_default() == ports
        };
        let same_family = |slice: &Arc<EndpointSlice>| slice.address_type == family;
        let at = left.iter().position(same_ports).or_else(|| left.iter().position(same_family));
        let old = at.map(|at| left.swap_remove(at));
        let mut slice = old.as_deref().cloned().unwrap_or_else(|| EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", endpoints.name_any())),
                namespace: endpoints.metadata.namespace.clone(),
                owner_references: Some(vec![controller_reference(endpoints)]),
                ..ObjectMeta::default()
            },
            address_type: family.to_owned(),
            ..EndpointSlice::default()
        });
        slice.metadata.labels = Some(labels.clone());
        slice.metadata.annotations.clone_from(&annotations);
        slice.ports = Some(ports);
        slice.endpoints = Some(endpoints_now);
        match old {
            None => changes.create.push(slice),
            Some(old) if *old != slice => changes.update.push(slice),
            Some(_) => {}
        }
    }
    changes.delete = left;
    changes
}

impl Controller for EndpointSliceMirroringController {
    const NAME: &'static str = "endpoint_slice_mirroring";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.services);
        watches.own(&self.endpoints);
        watches.map(&self.slices, |event| {
            event.old().and_then(|slice| mirrored(slice)).or_else(|| event.now().and_then(|slice| mirrored(slice)))
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        if !self.expectations.are_met(key, &self.slice_lister) {
            return Ok(Action::await_change());
        }
        let known = self.slice_lister.by_index(MIRROR_INDEX, key.as_str());
        let known: Vec<_> = known.into_iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()).collect();
        let service = self.service_lister.get(key);
        let endpoints = self.endpoints_lister.get(key);
        let Some(endpoints) = endpoints.filter(|endpoints| is_mirrored(service.as_deref(), endpoints)) else {
            self.write(key, Changes { delete: known, ..Changes::default() }).await?;
            return Ok(Action::await_change());
        };
        let changes = plan(&endpoints, known, self.max_per_subset);
        if changes.skipped > 0 {
            let message = format!(
                "A max of {} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                self.max_per_subset, changes.skipped
            );
            self.recorder.warning(&reference(&*endpoints), "TooManyAddressesToMirror", message);
        }
        match self.write(key, changes).await {
            Ok(()) => Ok(Action::await_change()),
            Err(err) if err.is_namespace_terminating() => Ok(Action::await_change()),
            Err(err) => {
                if !err.is_conflict() {
                    let message = format!("Failed to update EndpointSlices for {key}: {}", said(&err));
                    self.recorder.warning(&reference(&*endpoints), "FailedToUpdateEndpointSlices", message);
                }
                Err(err.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": { "name": "db", "namespace": "ns", "uid": "e1", "labels": { "a": "b" },
                          "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" } },
            "subsets": subsets,
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(changes: &Changes, want: &str) {
        let show = |slice: &EndpointSlice| {
            let endpoints = slice.endpoints.iter().flatten().map(|endpoint| {
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
                format!("{}{}", endpoint.addresses[0], if ready { "" } else { "!" })
            });
            format!("{} {}", slice.address_type, endpoints.collect::<Vec<_>>().join(","))
        };
        let created = changes.create.iter().map(|slice| format!("+{}", show(slice)));
        let updated = changes.update.iter().map(|slice| format!("~{}", show(slice)));
        let deleted = changes.delete.iter().map(|slice| format!("-{}", show(slice)));
        assert_eq!(created.chain(updated).chain(deleted).collect::<Vec<_>>().join("; "), want);
    }

    #[test]
    fn each_family_of_each_set_of_ports_has_a_slice() {
        let two = json!([{ "addresses": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }],
                           "notReadyAddresses": [{ "ip": "10.0.0.2" }], "ports": [{ "port": 80 }] }]);
        let first = plan(&endpoints(two.clone()), Vec::new(), 1000);
        check(&first, "+IPv4 10.0.0.1,10.0.0.2!; +IPv6 fd00::1");
        let labels = first.create[0].metadata.labels.as_ref().unwrap();
        assert_eq!((labels[SERVICE_NAME].as_str(), labels["a"].as_str()), ("db", "b"));
        assert_eq!(first.create[0].metadata.annotations, None);
        let known: Vec<_> = first.create.into_iter().map(Arc::new).collect();
        check(&plan(&endpoints(two), known.clone(), 1000), "");
        let less = json!([{ "addresses": [{ "ip": "10.0.0.1" }], "ports": [{ "port": 80 }] }]);
        check(&plan(&endpoints(less), known, 1000), "~IPv4 10.0.0.1; -IPv6 fd00::1");
    }

    #[test]
    fn what_is_too_much_is_left_out() {
        let many = json!([{ "addresses": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }, { "ip": "x" }] }]);
        let changes = plan(&endpoints(many), Vec::new(), 1);
        assert_eq!(changes.skipped, 2);
        check(&changes, "+IPv4 10.0.0.1");
    }

    #[test]
    fn only_what_was_written_by_hand_is_mirrored() {
        let service = |spec: Value| serde_json::from_value::<Service>(json!({ "spec": spec })).unwrap();
        let plain = endpoints(json!([]));
        assert!(is_mirrored(Some(&service(json!({}))), &plain));
        assert!(!is_mirrored(Some(&service(json!({ "selector": { "a": "b" } }))), &plain));
        assert!(!is_mirrored(None, &plain));
        let mut skipped = plain;
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(Some(&service(json!({}))), &skipped));
    }
}
