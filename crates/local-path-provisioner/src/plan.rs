//! Which claims get a volume here and what it looks like, and which volumes go. Pure.

use std::path::Path;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use crate::PROVISIONER;

const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const PROVISIONER_OF_CLAIM: &str = "volume.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Holds a volume that is deleted by hand until its data is gone (KEP-2644).
pub(crate) const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// Where this provisioner is.
pub(crate) struct Place<'a> {
    pub(crate) node_name: &'a str,
    pub(crate) dir: &'a Path,
}

#[derive(Debug, PartialEq)]
pub(crate) enum ClaimPlan {
    /// It has a volume, waits for its first pod, or is somebody else's.
    Leave,
    Refuse(&'static str),
    Make(Box<PersistentVolume>),
}

pub(crate) fn plan_claim(claim: &PersistentVolumeClaim, class: Option<&StorageClass>, place: &Place) -> ClaimPlan {
    let annotation = |name: &str| claim.metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
    let Some(class) = class.filter(|c| c.provisioner == PROVISIONER) else { return ClaimPlan::Leave };
    let Some(spec) = &claim.spec else { return ClaimPlan::Leave };
    let is_ours = annotation(PROVISIONER_OF_CLAIM) == Some(PROVISIONER);
    let is_here = annotation(SELECTED_NODE) == Some(place.node_name);
    let is_bound = spec.volume_name.as_deref().is_some_and(|name| !name.is_empty());
    if !is_ours || !is_here || is_bound || claim.metadata.deletion_timestamp.is_some() {
        return ClaimPlan::Leave;
    }
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.iter().any(|mode| mode != "ReadWriteOnce" && mode != "ReadWriteOncePod") {
        return ClaimPlan::Refuse("a directory of one node can only be ReadWriteOnce or ReadWriteOncePod");
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return ClaimPlan::Refuse("a directory cannot be a block device");
    }
    if spec.selector.is_some() {
        return ClaimPlan::Refuse("claim.Spec.Selector is not supported");
    }
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let reclaim = class.reclaim_policy.as_deref().unwrap_or("Delete");
    let volume = json!({
        "metadata": {
            "name": name,
            "annotations": { PROVISIONED_BY: PROVISIONER },
            "finalizers": [FINALIZER],
        },
        "spec": {
            "accessModes": modes,
            "capacity": spec.resources.as_ref().and_then(|r| r.requests.clone()),
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.metadata.namespace,
                "name": claim.metadata.name,
                "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
            },
            "local": { "path": place.dir.join(&name) },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": HOSTNAME, "operator": "In", "values": [place.node_name] }] }] } },
            "persistentVolumeReclaimPolicy": reclaim,
            "storageClassName": class.metadata.name,
            "volumeMode": "Filesystem",
        },
    });
    serde_json::from_value(volume).map_or(ClaimPlan::Leave, |volume| ClaimPlan::Make(Box::new(volume)))
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VolumePlan {
    Leave,
    /// Nobody claims it any more: it goes, and its data before it.
    Remove,
}

pub(crate) fn plan_volume(volume: &PersistentVolume, place: &Place) -> VolumePlan {
    let meta = &volume.metadata;
    let by = meta.annotations.as_ref().and_then(|all| all.get(PROVISIONED_BY)).map(String::as_str);
    let Some(spec) = volume.spec.as_ref().filter(|_| by == Some(PROVISIONER)) else { return VolumePlan::Leave };
    let name = meta.name.as_deref().unwrap_or_default();
    let is_here = spec.local.as_ref().is_some_and(|l| Path::new(&l.path) == place.dir.join(name));
    let terms = spec.node_affinity.iter().filter_map(|a| a.required.as_ref()).flat_map(|r| &r.node_selector_terms);
    let mut nodes = terms.flat_map(|t| t.match_expressions.iter().flatten()).filter(|e| e.key == HOSTNAME);
    let is_ours = nodes.any(|e| e.values.iter().flatten().any(|node| node == place.node_name));
    let is_released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
    let is_held = meta.finalizers.iter().flatten().any(|f| f == FINALIZER);
    let goes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete")
        && is_released
        && (meta.deletion_timestamp.is_none() || is_held);
    if is_here && is_ours && goes && !name.contains('/') { VolumePlan::Remove } else { VolumePlan::Leave }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const PLACE: fn() -> Place<'static> = || Place { node_name: "n1", dir: Path::new("/data") };

    fn class(provisioner: &str) -> StorageClass {
        let class = json!({ "metadata": { "name": "local" }, "provisioner": provisioner, "reclaimPolicy": "Retain" });
        serde_json::from_value(class).unwrap()
    }

    fn claim(node: &str, more: Value) -> PersistentVolumeClaim {
        let mut spec = json!({ "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "resources": { "requests": { "storage": "1Gi" } } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let annotations = json!({ PROVISIONER_OF_CLAIM: PROVISIONER, SELECTED_NODE: node });
        let meta = json!({ "name": "c", "namespace": "ns", "uid": "u1", "annotations": annotations });
        serde_json::from_value(json!({ "metadata": meta, "spec": spec })).unwrap()
    }

    fn made() -> PersistentVolume {
        match plan_claim(&claim("n1", json!({})), Some(&class(PROVISIONER)), &PLACE()) {
            ClaimPlan::Make(volume) => *volume,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_claim_whose_pod_comes_here_gets_a_volume_of_this_node() {
        let volume = made();
        assert_eq!(volume.metadata.name.as_deref(), Some("pvc-u1"));
        let spec = volume.spec.unwrap();
        assert_eq!(spec.local.unwrap().path, "/data/pvc-u1");
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("u1"));
        assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    }

    #[test]
    fn other_claims_are_left_or_refused() {
        let check = |claim: PersistentVolumeClaim, provisioner: &str, want: &str| {
            let got = match plan_claim(&claim, Some(&class(provisioner)), &PLACE()) {
                ClaimPlan::Leave => "leave",
                ClaimPlan::Refuse(why) => why,
                ClaimPlan::Make(_) => "make",
            };
            assert_eq!(got, want);
        };
        check(claim("n2", json!({})), PROVISIONER, "leave");
        check(claim("n1", json!({})), "somebody.else", "leave");
        check(claim("n1", json!({ "volumeName": "v" })), PROVISIONER, "leave");
        let many = json!({ "accessModes": ["ReadWriteMany"] });
        let words = "a directory of one node can only be ReadWriteOnce or ReadWriteOncePod";
        check(claim("n1", many), PROVISIONER, words);
        check(claim("n1", json!({ "volumeMode": "Block" })), PROVISIONER, "a directory cannot be a block device");
    }

    #[test]
    fn a_volume_goes_when_its_claim_is_gone_and_its_class_says_so() {
        let check = |change: &dyn Fn(&mut Value), want: VolumePlan| {
            let mut volume = serde_json::to_value(made()).unwrap();
            volume["status"] = json!({ "phase": "Released" });
            volume["spec"]["persistentVolumeReclaimPolicy"] = "Delete".into();
            change(&mut volume);
            assert_eq!(plan_volume(&serde_json::from_value(volume).unwrap(), &PLACE()), want);
        };
        check(&|_| {}, VolumePlan::Remove);
        check(&|v| v["status"]["phase"] = "Bound".into(), VolumePlan::Leave);
        check(&|v| v["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into(), VolumePlan::Leave);
        check(&|v| v["spec"]["local"]["path"] = "/etc".into(), VolumePlan::Leave);
        check(&|v| v["metadata"]["annotations"] = json!({}), VolumePlan::Leave);
        let gone = "2026-01-01T00:00:00Z";
        check(&|v| v["metadata"]["deletionTimestamp"] = gone.into(), VolumePlan::Remove);
        check(
            &|v| {
                v["metadata"]["deletionTimestamp"] = gone.into();
                v["metadata"]["finalizers"] = json!([]);
            },
            VolumePlan::Leave,
        );
    }
}
