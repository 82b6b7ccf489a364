//! VolumeZone: volumes that carry labels of a zone or region are reached from there only.

use std::collections::BTreeSet;

use client::ObjectKey;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;

use super::{WAIT_FOR_CONSUMER, claim_of, class_of, hint_by_claim, volume_name, volumes_of};
use crate::cluster::{Cluster, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreFilter, Rejection, Reuse,
    Signature,
};
use crate::listers::Listers;
use crate::pod::PodInfo;

const REASON: &str = "node(s) had no available volume zone";

/// The older names of the labels, each with what nodes have today.
const LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

pub(in super::super) struct VolumeZone {
    listers: Listers,
}

/// Where a volume is: a label of it and today's name of that label, and the values that a node may have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    key: &'static str,
    key_today: &'static str,
    values: BTreeSet<String>,
}

/// Several zones stand in one label, parted by two underscores.
fn places_of(volume: &PersistentVolume) -> Vec<Place> {
    let labels = volume.metadata.labels.as_ref();
    let place = |(key, key_today): (&'static str, &'static str)| {
        let values: BTreeSet<String> = labels?.get(key)?.split("__").map(|zone| zone.trim().to_owned()).collect();
        (!values.contains("")).then_some(Place { key, key_today, values })
    };
    LABELS.into_iter().filter_map(place).collect()
}

impl VolumeZone {
    pub(in super::super) fn new(listers: &Listers) -> Self {
        Self { listers: listers.clone() }
    }

    fn places(&self, pod: &PodInfo) -> Result<Vec<Place>, Rejection> {
        let mut places = Vec::new();
        for claim in volumes_of(&pod.object).iter().filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
            let claim = claim_of(&self.listers, pod, &claim.claim_name)?;
            let name = volume_name(&claim);
            if name.is_empty() {
                let class = class_of(&claim);
                if class.is_empty() {
                    return Err(Rejection::unresolvable("PersistentVolumeClaim had no pv name and storageClass name"));
                }
                let Some(found) = self.listers.storage_classes.get(&ObjectKey::cluster(class)) else {
                    return Err(Rejection::unresolvable(format!("storageclass.storage.k8s.io {class:?} not found")));
                };
                match found.volume_binding_mode.as_deref() {
                    None => {
                        let why = format!("VolumeBindingMode not set for StorageClass {class:?}");
                        return Err(Rejection::unresolvable(why));
                    }
                    Some(WAIT_FOR_CONSUMER) => continue,
                    Some(_) => return Err(Rejection::unresolvable("PersistentVolume had no name")),
                }
            }
            let Some(volume) = self.listers.volumes.get(&ObjectKey::cluster(name)) else {
                return Err(Rejection::unresolvable(format!("persistentvolume {name:?} not found")));
            };
            places.extend(places_of(&volume));
        }
        Ok(places)
    }
}

impl Plugin for VolumeZone {
    const NAME: &'static str = "VolumeZone";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::StorageClass, Actions::ADD),
        ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_LABEL)),
        ClusterEvent::new(EventResource::PersistentVolumeClaim, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::PersistentVolume, Actions::ADD.or(Actions::UPDATE)),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        if let (_, Some(class)) = change.object::<StorageClass>() {
            return Hint::queue_if(class.volume_binding_mode.as_deref() == Some(WAIT_FOR_CONSUMER));
        }
        if let (Some(old), Some(new)) = change.object::<PersistentVolume>() {
            return Hint::queue_if(places_of(old) != places_of(new));
        }
        hint_by_claim(pod, change)
    }
}

impl Filter for VolumeZone {
    type State = Vec<Place>;

    fn sign(&self, pod: &PodInfo, _: &mut Signature) -> Reuse {
        super::reuse(pod)
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<Vec<Place>> {
        match self.places(pod) {
            Ok(places) if places.is_empty() => PreFilter::Skip,
            Ok(places) => PreFilter::Run(places),
            Err(rejection) => PreFilter::Reject(rejection),
        }
    }

    fn filter(&self, places: &Vec<Place>, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        let labels = node.labels();
        // In a cluster of one zone nodes need not say so.
        if !LABELS.iter().any(|(key, _)| labels.contains_key(*key)) {
            return FilterStatus::Success;
        }
        let reached = |place: &Place| {
            let value = labels.get(place.key).or_else(|| labels.get(place.key_today));
            value.is_some_and(|value| place.values.contains(value))
        };
        if places.iter().all(reached) { FilterStatus::Success } else { FilterStatus::unresolvable(REASON) }
    }
}
