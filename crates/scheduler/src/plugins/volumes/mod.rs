//! The plugins about volumes, and what they have in common: which claims a pod has.

mod binding;
mod limits;
mod restrictions;
mod zone;

pub(super) use binding::VolumeBinding;
pub(super) use limits::NodeVolumeLimits;
pub(super) use restrictions::VolumeRestrictions;
pub(super) use zone::VolumeZone;

use std::sync::Arc;

use client::ObjectKey;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};

use crate::framework::{Change, Hint, Rejection, Reuse};
use crate::listers::Listers;
use crate::pod::PodInfo;

fn volumes_of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// The name of the claim behind a volume, and whether it is made for the pod.
fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some((claim.claim_name.clone(), false));
    }
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    volume.ephemeral.as_ref().map(|_| (format!("{pod}-{}", volume.name), true))
}

fn claim_names(pod: &Pod) -> impl Iterator<Item = (String, bool)> + '_ {
    volumes_of(pod).iter().filter_map(|volume| claim_name(pod, volume))
}

/// What is known of claims changes without the nodes: answers for pods that have some are never kept.
fn reuse(pod: &PodInfo) -> Reuse {
    if claim_names(&pod.object).next().is_some() { Reuse::Never } else { Reuse::PerNode }
}

fn uses(pod: &PodInfo, claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.namespace.as_deref() == Some(pod.namespace())
        && claim_names(&pod.object).any(|(name, _)| claim.metadata.name.as_ref() == Some(&name))
}

/// A change of a claim helps the pods that use it; other changes may help any.
fn hint_by_claim(pod: &PodInfo, change: &Change<'_>) -> Hint {
    match change.object::<PersistentVolumeClaim>() {
        (_, Some(claim)) => Hint::queue_if(uses(pod, claim)),
        (Some(claim), None) => Hint::queue_if(uses(pod, claim)),
        (None, None) => Hint::Queue,
    }
}

/// The pod's claim of a name, as the plugins say that it is missing.
fn claim_of(listers: &Listers, pod: &PodInfo, name: &str) -> Result<Arc<PersistentVolumeClaim>, Rejection> {
    let claim = listers.claims.get(&ObjectKey::new(pod.namespace(), name));
    claim.ok_or_else(|| Rejection::unresolvable(format!("persistentvolumeclaim {name:?} not found")))
}

/// The class of a claim, by its older annotation too.
fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let annotations = claim.metadata.annotations.as_ref();
    let beta = annotations.and_then(|own| own.get("volume.beta.kubernetes.io/storage-class"));
    let field = || claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    beta.or_else(field).map_or("", String::as_str)
}

/// The volume that a claim is for.
fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

const WAIT_FOR_CONSUMER: &str = "WaitForFirstConsumer";
