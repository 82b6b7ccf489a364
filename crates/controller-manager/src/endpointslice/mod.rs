//! Keeps the EndpointSlices of every Service with a selector equal to the pods that it selects.

mod endpoint;
pub(crate) mod ports;
mod slices;
mod trigger;

pub(crate) use endpoint::hostname_in;

use std::{collections::BTreeMap, sync::Arc};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    events::{Recorder, reference},
    informer::{Event, Lister, NAMESPACE_INDEX, SharedInformer},
};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};

use crate::{
    context::Context,
    error::SyncError,
    expectations::Expectations,
    pod::{NODE_INDEX, index_by_node, node_name},
    pod_control::said,
    selector::map_selects,
};
use endpoint::{AddressType, Wanted};
use slices::Changes;
use trigger::{Triggers, annotate};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Finds slices by `namespace/service`.
const SERVICE_INDEX: &str = "service";

pub(crate) struct EndpointSliceController {
    client: Client,
    recorder: Recorder,
    services: SharedInformer<Service>,
    service_lister: Lister<Service>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    nodes: SharedInformer<Node>,
    node_lister: Lister<Node>,
    slices: SharedInformer<EndpointSlice>,
    slice_lister: Lister<EndpointSlice>,
    max_per_slice: usize,
    expectations: Expectations,
    triggers: Triggers,
}

impl EndpointSliceController {
    pub(crate) fn new(context: &Context) -> Self {
        let services = context.informers.informer::<Service>();
        let pods = context.informers.informer::<Pod>();
        let nodes = context.informers.informer::<Node>();
        let slices = context.informers.informer::<EndpointSlice>();
        services.add_index(NAMESPACE_INDEX, index_by_namespace);
        pods.add_index(NAMESPACE_INDEX, index_by_namespace);
        pods.add_index(NODE_INDEX, index_by_node);
        slices.add_index(SERVICE_INDEX, |slice| service_key(slice).into_iter().map(|key| key.to_string()).collect());
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            service_lister: services.lister(),
            services,
            pod_lister: pods.lister(),
            pods,
            node_lister: nodes.lister(),
            nodes,
            slice_lister: slices.lister(),
            slices,
            max_per_slice: context.config.max_endpoints_per_slice,
            expectations: Expectations::default(),
            triggers: Triggers::default(),
        }
    }
}

pub(crate) fn index_by_namespace<K: kube::Resource>(object: &K) -> Vec<String> {
    object.meta().namespace.clone().into_iter().collect()
}

/// The Service that a slice says it belongs to.
fn service_key(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref().unwrap_or_default(), name))
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
}

/// The Services that select the pod, before or after the change. A change that no Service could show leads to none.
pub(crate) fn services_of(services: &Lister<Service>, event: &Event<Pod>) -> Vec<ObjectKey> {
    if let Event::Updated { old, new } = event
        && !endpoint::is_change(old, new)
    {
        return Vec::new();
    }
    let selected = |service: &Service, pod: &Arc<Pod>| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        map_selects(selector, pod.metadata.labels.as_ref())
    };
    let namespace = event.key();
    services
        .in_namespace(namespace.namespace())
        .iter()
        .filter(|service| event.old().into_iter().chain(event.now()).any(|pod| selected(service, pod)))
        .map(|service| ObjectKey::of(&**service))
        .collect()
}

impl Controller for EndpointSliceController {
    const NAME: &'static str = "endpoint_slice";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.services);
        let services = self.service_lister.clone();
        watches.map(&self.pods, move |event| services_of(&services, event));
        watches.map(&self.slices, |event| {
            let ours = event.old().into_iter().chain(event.now()).find(|slice| is_ours(slice));
            ours.and_then(|slice| service_key(slice))
        });
        let (services, pods) = (self.service_lister.clone(), self.pod_lister.clone());
        watches.map(&self.nodes, move |event| {
            let zone = |node: &Arc<Node>| endpoint::zone_of(node).map(str::to_owned);
            let moved = match event {
                Event::Updated { old, new } => zone(old) != zone(new),
                Event::Added(_) | Event::Deleted(_) => true,
            };
            let on_node = if moved { pods.by_index(NODE_INDEX, event.key().name()) } else { Vec::new() };
            let mut keys: Vec<_> =
                on_node.into_iter().flat_map(|pod| services_of(&services, &Event::Added(pod))).collect();
            keys.sort();
            keys.dedup();
            keys
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(service) = self.service_lister.get(key) else {
            // The slices follow their owner through the garbage collector.
            self.expectations.forget(key);
            self.triggers.forget(key);
            return Ok(Action::await_change());
        };
        let spec = service.spec.clone().unwrap_or_default();
        if spec.selector.as_ref().is_none_or(BTreeMap::is_empty) || spec.type_.as_deref() == Some("ExternalName") {
            return Ok(Action::await_change());
        }
        if !self.expectations.are_met(key, &self.slice_lister) {
            return Ok(Action::await_change());
        }
        let known = self.slice_lister.by_index(SERVICE_INDEX, key.as_str());
        let known: Vec<_> =
            known.into_iter().filter(|slice| is_ours(slice) && slice.metadata.deletion_timestamp.is_none()).collect();
        let pods: Vec<_> = self
            .pod_lister
            .in_namespace(key.namespace())
            .into_iter()
            .filter(|pod| map_selects(spec.selector.as_ref(), pod.metadata.labels.as_ref()))
            .collect();
        let mut nodeless = 0;
        let mut changes = Changes::default();
        let address_types = AddressType::of(&service);
        for address_type in address_types.iter().copied() {
            let node = |pod: &Pod| self.node_lister.get(&ObjectKey::cluster(node_name(pod)));
            let mut wanted = Wanted::of(&service, &pods, address_type, node);
            nodeless += wanted.nodeless;
            wanted.set_hints(&service);
            let same_type: Vec<_> =
                known.iter().filter(|slice| slice.address_type == address_type.as_str()).cloned().collect();
            slices::plan(&service, address_type, wanted, same_type, self.max_per_slice, &mut changes);
        }
        // The Service may have had more families before.
        let surplus = known.iter().filter(|slice| !address_types.iter().any(|t| t.as_str() == slice.address_type));
        changes.delete.extend(surplus.cloned());
        let since = self.triggers.earliest(key, &service, &pods);
        changes.create.iter_mut().chain(&mut changes.update).for_each(|slice| annotate(slice, since.as_ref()));
        if let Err(err) = self.write(key, changes).await {
            if !err.is_namespace_terminating() && !err.is_conflict() {
                let message = format!("Error updating Endpoint Slices for Service {key}: {}", said(&err));
                self.recorder.warning(&reference(&*service), "FailedToUpdateEndpointSlices", message);
            }
            return Err(err.into());
        }
        if nodeless > 0 {
            return Err(SyncError::NotYet(format!("{nodeless} pods are on nodes that are not known yet")));
        }
        Ok(Action::await_change())
    }
}

impl EndpointSliceController {
    async fn write(&self, key: &ObjectKey, changes: Changes) -> Result<(), kube::Error> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), key.namespace());
        for slice in &changes.create {
            let created = api.create(&PostParams::default(), slice).await?;
            self.expectations.wrote(key, &created);
        }
        for slice in &changes.update {
            let updated = api.replace(&slice.name_any(), &PostParams::default(), slice).await?;
            self.expectations.wrote(key, &updated);
        }
        for slice in &changes.delete {
            let same = Preconditions { uid: slice.metadata.uid.clone(), resource_version: None };
            match api.delete(&slice.name_any(), &DeleteParams::default().preconditions(same)).await {
                Ok(_) => self.expectations.deleted(key, &**slice),
                Err(err) if err.is_not_found() => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }
}
