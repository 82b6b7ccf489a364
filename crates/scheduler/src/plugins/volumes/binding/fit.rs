//! Which volumes a pod could have on a node.

use std::sync::Arc;

use client::ObjectKey;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};

use super::super::{class_of, volume_name};
use super::{Claims, SELECTED_NODE, VolumeBinding};
use crate::cluster::NodeRef;
use crate::framework::FilterStatus;
use crate::quantity::Amount;
use crate::selector::{Labels, NodeMatcher, Selector, labels_of};

const REASON_NO_MATCH: &str = "node(s) didn't find available persistent volumes to bind";
const REASON_AFFINITY: &str = "node(s) didn't match PersistentVolume's node affinity";
const REASON_NO_SPACE: &str = "node(s) did not have enough free storage";
const REASON_NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// Volumes for the claims of a pod on one node.
#[derive(Clone, Default)]
pub(crate) struct Choice {
    /// Volumes that are there, each with the claim that gets it.
    pub(super) bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// Claims for which a volume is to be made.
    pub(super) provision: Vec<Arc<PersistentVolumeClaim>>,
}

impl Choice {
    pub(super) fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }
}

/// How much a claim asks for.
pub(super) fn requested(claim: &PersistentVolumeClaim) -> Amount {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.and_then(|requests| requests.get("storage")).map(Amount::of).unwrap_or_default()
}

fn capacity(volume: &PersistentVolume) -> Amount {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    capacity.and_then(|capacity| capacity.get("storage")).map(Amount::of).unwrap_or_default()
}

/// Whether the node is one that the volume can be reached from.
pub(super) fn reaches(volume: &PersistentVolume, node: &str, labels: &Labels) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|required| NodeMatcher::of(required).matches(node, labels))
}

impl VolumeBinding {
    /// The volumes for the claims on this node, or why there are none.
    pub(super) fn find(&self, claims: &Claims, node: NodeRef<'_>) -> Result<Choice, FilterStatus> {
        let mut reasons = Vec::new();
        for claim in &claims.bound {
            match self.listers.volumes.get(&ObjectKey::cluster(volume_name(claim))) {
                None => reasons.push(REASON_NO_VOLUME),
                Some(volume) if !reaches(&volume, node.name(), node.labels()) => reasons.push(REASON_AFFINITY),
                Some(_) => continue,
            }
            break;
        }
        let mut choice = Choice::default();
        if let Some(why) = self.find_new(&claims.waiting, node, &mut choice)? {
            reasons.push(why);
        }
        if reasons.is_empty() {
            return Ok(choice);
        }
        // In the order in which users know them.
        let order = [REASON_AFFINITY, REASON_NO_MATCH, REASON_NO_SPACE, REASON_NO_VOLUME];
        reasons.sort_by_key(|reason| order.iter().position(|own| own == reason));
        Err(FilterStatus::UnschedulableAndUnresolvable(reasons.into_iter().map(Into::into).collect()))
    }

    fn find_new(
        &self,
        waiting: &[Arc<PersistentVolumeClaim>],
        node: NodeRef<'_>,
        choice: &mut Choice,
    ) -> Result<Option<&'static str>, FilterStatus> {
        let mut unmatched = Vec::new();
        for claim in waiting {
            match self.selected_node(claim) {
                Some(selected) if *selected != **node.name() => return Ok(Some(REASON_NO_MATCH)),
                Some(_) => choice.provision.push(claim.clone()),
                None => unmatched.push(claim),
            }
        }
        for claim in unmatched {
            match self.matching_volume(claim, node, choice) {
                Some(volume) => choice.bind.push((volume, claim.clone())),
                None => choice.provision.push(claim.clone()),
            }
        }
        for claim in &choice.provision {
            if let Some(why) = self.cannot_provision(claim, node)? {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    fn selected_node(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        let annotated = claim.metadata.annotations.as_ref().and_then(|own| own.get(SELECTED_NODE)).cloned();
        annotated.or_else(|| self.assumed.lock().nodes.get(&ObjectKey::of(claim)).cloned())
    }

    /// The smallest volume that does for the claim; one that is meant for it goes before all others.
    fn matching_volume(
        &self,
        claim: &PersistentVolumeClaim,
        node: NodeRef<'_>,
        choice: &Choice,
    ) -> Option<Arc<PersistentVolume>> {
        let key = ObjectKey::of(claim);
        let spec = claim.spec.as_ref()?;
        let selector = spec.selector.as_ref().map(Selector::of);
        let class = class_of(claim);
        let taken =
            |volume: &PersistentVolume| choice.bind.iter().any(|(own, _)| own.metadata.name == volume.metadata.name);
        let filesystem = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
        let mut best: Option<Arc<PersistentVolume>> = None;
        let assumed = self.assumed.lock();
        let volumes = self.listers.volumes.filter(|volume| {
            volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default() == class
        });
        for volume in volumes {
            let Some(own) = volume.spec.as_ref() else { continue };
            let meant = own.claim_ref.as_ref().map(|claim_ref| {
                claim_ref.name == claim.metadata.name
                    && claim_ref.namespace == claim.metadata.namespace
                    && (claim_ref.uid.as_deref().unwrap_or_default().is_empty() || claim_ref.uid == claim.metadata.uid)
            });
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let promised = assumed.volumes.get(name).is_some_and(|other| *other != key);
            if promised
                || meant == Some(false)
                || taken(&volume)
                || volume.metadata.deletion_timestamp.is_some()
                || capacity(&volume) < requested(claim)
                || filesystem(&own.volume_mode) != filesystem(&spec.volume_mode)
                || own.volume_attributes_class_name.as_deref().unwrap_or_default()
                    != spec.volume_attributes_class_name.as_deref().unwrap_or_default()
            {
                continue;
            }
            let reached = reaches(&volume, node.name(), node.labels());
            if meant == Some(true) {
                return reached.then_some(volume);
            }
            let modes = own.access_modes.as_deref().unwrap_or_default();
            let does = reached
                && volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available")
                && selector.as_ref().is_none_or(|own| own.matches(labels_of(volume.metadata.labels.as_ref())))
                && spec.access_modes.iter().flatten().all(|mode| modes.contains(mode));
            let better = |best: &Arc<PersistentVolume>| {
                (capacity(&volume), &volume.metadata.name) < (capacity(best), &best.metadata.name)
            };
            if does && best.as_ref().is_none_or(better) {
                best = Some(volume);
            }
        }
        best
    }

    /// Why no volume can be made for the claim on this node.
    fn cannot_provision(
        &self,
        claim: &PersistentVolumeClaim,
        node: NodeRef<'_>,
    ) -> Result<Option<&'static str>, FilterStatus> {
        let name = class_of(claim);
        let Some(class) = self.listers.storage_classes.get(&ObjectKey::cluster(name)) else {
            return Err(FilterStatus::Error(format!("failed to find storage class {name:?}")));
        };
        let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
        if matches!(&*class.provisioner, "" | "kubernetes.io/no-provisioner") || !is_allowed(topologies, node.labels())
        {
            return Ok(Some(REASON_NO_MATCH));
        }
        let driver = self.listers.csi_drivers.get(&ObjectKey::cluster(&class.provisioner));
        let size = requested(claim);
        if size == Amount::ZERO || driver.and_then(|driver| driver.spec.storage_capacity) != Some(true) {
            return Ok(None);
        }
        let enough = self.listers.csi_capacities.filter(|capacity| {
            let most = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
            let here = capacity.node_topology.as_ref().is_some_and(|own| Selector::of(own).matches(node.labels()));
            capacity.storage_class_name == name && here && most.is_some_and(|most| Amount::of(most) >= size)
        });
        Ok(enough.is_empty().then_some(REASON_NO_SPACE))
    }
}

/// Without terms every node is.
fn is_allowed(terms: &[TopologySelectorTerm], labels: &Labels) -> bool {
    let matches = |term: &TopologySelectorTerm| {
        let mut requirements = term.match_label_expressions.iter().flatten();
        requirements.all(|own| labels.get(&own.key).is_some_and(|value| own.values.contains(value)))
    };
    terms.is_empty() || terms.iter().any(matches)
}
