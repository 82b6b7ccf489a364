//! Which volume serves a claim.

use std::sync::Arc;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};

use crate::{
    pod_resources::quantity,
    selector::{selector_of, selects},
};

const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn annotation<'a>(meta: &'a kube::core::ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The class of a claim, empty for none.
pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, OLD_CLASS).or(spec).unwrap_or_default()
}

/// Whether somebody decided about the class, be it that there is none.
pub(super) fn names_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, OLD_CLASS).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

pub(super) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, OLD_CLASS).or(spec).unwrap_or_default()
}

pub(super) fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()).and_then(|all| all.requests.as_ref());
    requests.and_then(|requests| requests.get("storage")).map(quantity).unwrap_or_default()
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    capacity.and_then(|capacity| capacity.get("storage")).map(quantity).unwrap_or_default()
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether the reference is to this claim; one without a uid is to whichever has the name.
pub(super) fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

pub(super) fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

fn offers_modes(spec: &PersistentVolumeSpec, claim: &PersistentVolumeClaim) -> bool {
    let offered = spec.access_modes.as_deref().unwrap_or_default();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| offered.contains(mode))
}

fn named(name: Option<&String>) -> &str {
    name.map_or("", String::as_str)
}

/// Why the volume cannot serve the claim that asks for it by name.
pub(super) fn objection(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (Some(offer), Some(wish)) = (&volume.spec, &claim.spec) else { return Some("incomplete volume or claim") };
    if volume.metadata.deletion_timestamp.is_some() {
        return Some("the volume is marked for deletion");
    }
    if capacity(volume) < requested(claim) {
        return Some("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim) {
        return Some("storageClassName does not match");
    }
    let classes = (offer.volume_attributes_class_name.as_ref(), wish.volume_attributes_class_name.as_ref());
    if named(classes.0) != named(classes.1) {
        return Some("volumeAttributesClassName does not match");
    }
    if mode(offer.volume_mode.as_ref()) != mode(wish.volume_mode.as_ref()) {
        return Some("incompatible volumeMode");
    }
    if !offers_modes(offer, claim) {
        return Some("incompatible accessMode");
    }
    None
}

/// The volume that was set aside for the claim, else the smallest of those that fit. A claim that waits for its first
/// consumer takes only the former.
pub(super) fn find<'a>(
    volumes: &'a [Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    waits: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let selector = selector_of(claim.spec.as_ref().and_then(|spec| spec.selector.as_ref())).ok()?;
    let fits = |volume: &&Arc<PersistentVolume>| objection(volume, claim).is_none();
    let reserved = volumes.iter().filter(|volume| claim_ref(volume).is_some_and(|named| refers_to(named, claim)));
    if let Some(reserved) =
        reserved.filter(|volume| objection(volume, claim).is_none()).min_by_key(|volume| capacity(volume))
    {
        return Some(reserved);
    }
    if waits {
        return None;
    }
    let is_free = |volume: &&Arc<PersistentVolume>| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        claim_ref(volume).is_none() && phase == Some("Available")
    };
    let is_selected = |volume: &&Arc<PersistentVolume>| {
        selector.as_ref().is_none_or(|selector| selects(selector, volume.metadata.labels.as_ref()))
    };
    let candidates = volumes.iter().filter(is_free).filter(is_selected).filter(fits);
    candidates.min_by_key(|volume| (capacity(volume), volume.metadata.name.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut spec =
            json!({ "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"], "storageClassName": "s" });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let object = json!({
            "metadata": { "name": name, "labels": { "disk": name } },
            "spec": spec,
            "status": { "phase": "Available" },
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn claim(size: &str, more: Value) -> PersistentVolumeClaim {
        let mut spec = json!({ "accessModes": ["ReadWriteOnce"], "storageClassName": "s",
                               "resources": { "requests": { "storage": size } } });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let metadata = json!({ "name": "c", "namespace": "ns", "uid": "u1" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    #[track_caller]
    fn check(size: &str, more: Value, waits: bool, want: &str) {
        let volumes = [
            volume("big", "10Gi", json!({})),
            volume("small", "2Gi", json!({})),
            volume("tiny", "1Gi", json!({})),
            volume("raw", "1Gi", json!({ "volumeMode": "Block" })),
            volume("other", "2Gi", json!({ "storageClassName": "t" })),
            volume("taken", "2Gi", json!({ "claimRef": { "name": "x", "namespace": "ns" } })),
            volume("kept", "5Gi", json!({ "storageClassName": "k", "claimRef": { "name": "c", "namespace": "ns" } })),
        ];
        let found = find(&volumes, &claim(size, more), waits);
        assert_eq!(found.and_then(|volume| volume.metadata.name.as_deref()).unwrap_or("none"), want);
    }

    #[test]
    fn the_smallest_that_fits_is_taken() {
        check("2Gi", json!({}), false, "small");
        check("1Gi", json!({ "volumeMode": "Block" }), false, "raw");
        check("3Gi", json!({}), false, "big");
        check("11Gi", json!({}), false, "none");
        check("1Gi", json!({ "selector": { "matchLabels": { "disk": "big" } } }), false, "big");
        check("1Gi", json!({ "accessModes": ["ReadWriteMany"] }), false, "none");
        check("1Gi", json!({ "storageClassName": "t" }), false, "other");
    }

    #[test]
    fn a_volume_set_aside_is_taken_even_by_a_claim_that_waits() {
        check("1Gi", json!({ "storageClassName": "k" }), true, "kept");
        check("1Gi", json!({}), true, "none");
    }
}
