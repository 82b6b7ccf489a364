//! NodeVolumeLimits: a node can have only so many volumes of a CSI driver attached.

use std::collections::{BTreeMap, BTreeSet};

use client::ObjectKey;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::VolumeAttachment;

use super::{claim_names, class_of, hint_by_claim, volume_name};
use crate::cluster::{Cluster, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreFilter, Reuse, Signature,
};
use crate::listers::Listers;
use crate::pod::PodInfo;

const REASON: &str = "node(s) exceed max volume count";

pub(in super::super) struct NodeVolumeLimits {
    listers: Listers,
}

/// Driver and name of a volume.
type Attached = BTreeSet<(String, String)>;

impl NodeVolumeLimits {
    pub(in super::super) fn new(listers: &Listers) -> Self {
        Self { listers: listers.clone() }
    }

    /// The CSI volumes of a pod. One that is yet to be provisioned counts under its claim's name.
    fn volumes(&self, pod: &PodInfo) -> Attached {
        let claims = claim_names(&pod.object);
        let found = claims.filter_map(|(name, _)| self.listers.claims.get(&ObjectKey::new(pod.namespace(), &name)));
        found.filter_map(|claim| self.volume(&claim)).collect()
    }

    fn volume(&self, claim: &PersistentVolumeClaim) -> Option<(String, String)> {
        let volume = self.listers.volumes.get(&ObjectKey::cluster(volume_name(claim)));
        if let Some(volume) = volume {
            let csi = volume.spec.as_ref()?.csi.as_ref()?;
            return Some((csi.driver.clone(), csi.volume_handle.clone()));
        }
        let class = self.listers.storage_classes.get(&ObjectKey::cluster(class_of(claim)))?;
        let key = ObjectKey::of(claim);
        Some((class.provisioner.clone(), format!("{}-{}", class_of(claim), key.as_str())))
    }

    /// By driver: how many volumes the node can have.
    fn limits(&self, node: &str) -> BTreeMap<String, usize> {
        let Some(node) = self.listers.csi_nodes.get(&ObjectKey::cluster(node)) else { return BTreeMap::new() };
        let limit = |driver: &k8s_openapi::api::storage::v1::CSINodeDriver| {
            let count = driver.allocatable.as_ref()?.count?;
            Some((driver.name.clone(), usize::try_from(count).unwrap_or_default()))
        };
        node.spec.drivers.iter().filter_map(limit).collect()
    }

    /// What is attached to the node, or is being attached, though no pod there says so.
    fn attachments(&self, node: &str) -> Attached {
        let here = self.listers.volume_attachments.filter(|own| own.spec.node_name == node);
        let volume = |attachment: &VolumeAttachment| {
            let name = attachment.spec.source.persistent_volume_name.as_deref()?;
            let volume = self.listers.volumes.get(&ObjectKey::cluster(name))?;
            let csi = volume.spec.as_ref()?.csi.as_ref()?;
            Some((csi.driver.clone(), csi.volume_handle.clone()))
        };
        here.iter().filter_map(|attachment| volume(attachment)).collect()
    }
}

impl Plugin for NodeVolumeLimits {
    const NAME: &'static str = "NodeVolumeLimits";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::CsiNode, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE),
        ClusterEvent::new(EventResource::PersistentVolumeClaim, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::VolumeAttachment, Actions::DELETE),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        match change {
            Change::AssignedPod { old: Some(gone), .. } => Hint::queue_if(claim_names(&gone.object).next().is_some()),
            _ => hint_by_claim(pod, change),
        }
    }
}

impl Filter for NodeVolumeLimits {
    type State = Attached;

    fn sign(&self, pod: &PodInfo, _: &mut Signature) -> Reuse {
        super::reuse(pod)
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<Attached> {
        let volumes = self.volumes(pod);
        if volumes.is_empty() { PreFilter::Skip } else { PreFilter::Run(volumes) }
    }

    fn filter(&self, wanted: &Attached, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        let limits = self.limits(node.name());
        if !wanted.iter().any(|(driver, _)| limits.contains_key(driver)) {
            return FilterStatus::Success;
        }
        let mut all = self.attachments(node.name());
        for other in node.pods() {
            all.extend(self.volumes(other));
        }
        let new: Vec<_> = wanted.difference(&all).cloned().collect();
        let count = |volumes: &mut dyn Iterator<Item = &(String, String)>, driver: &str| {
            volumes.filter(|(own, _)| own == driver).count()
        };
        let exceeds = |(driver, limit): (&String, &usize)| {
            let more = count(&mut new.iter(), driver);
            more > 0 && count(&mut all.iter(), driver) + more > *limit
        };
        if limits.iter().any(exceeds) { FilterStatus::unschedulable(REASON) } else { FilterStatus::Success }
    }
}
