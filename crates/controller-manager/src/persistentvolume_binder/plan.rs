//! What becomes of a claim, and of a volume, given the other.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};

use super::matching::{claim_ref, find, objection, refers_to};

pub(super) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(super) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub(super) const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub(super) const OLD_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";

pub(super) fn has_annotation(meta: &kube::core::ObjectMeta, name: &str) -> bool {
    meta.annotations.as_ref().is_some_and(|all| all.contains_key(name))
}

#[derive(Debug, PartialEq)]
pub(super) enum ClaimPlan {
    Bind(Arc<PersistentVolume>),
    /// Nothing serves it yet: a volume has to be made, or a pod to come.
    Unserved,
    /// The volume that it names is not to be had; with a warning's reason and text.
    Pending(Option<(&'static str, String)>),
    Lost(&'static str, &'static str),
}

/// Whether the claim's volume is chosen only with the node of its first pod.
pub(super) fn waits_for_consumer(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> bool {
    class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
        && !has_annotation(&claim.metadata, SELECTED_NODE)
}

/// `named`: the volume whose name the claim has.
pub(super) fn plan_claim(
    claim: &PersistentVolumeClaim,
    named: Option<Arc<PersistentVolume>>,
    volumes: &[Arc<PersistentVolume>],
    waits: bool,
) -> ClaimPlan {
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    if has_annotation(&claim.metadata, BIND_COMPLETED) {
        let Some(volume) = named else {
            return ClaimPlan::Lost(
                "ClaimLost",
                match name {
                    None => "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
                    Some(_) => "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
                },
            );
        };
        return match claim_ref(&volume) {
            Some(other) if other.uid.is_some() && other.uid != claim.metadata.uid => ClaimPlan::Lost(
                "ClaimMisbound",
                "Two claims are bound to the same volume, this one is bound incorrectly",
            ),
            _ => ClaimPlan::Bind(volume),
        };
    }
    let Some(name) = name else {
        return find(volumes, claim, waits).map_or(ClaimPlan::Unserved, |volume| ClaimPlan::Bind(volume.clone()));
    };
    let Some(volume) = named else { return ClaimPlan::Pending(None) };
    match claim_ref(&volume) {
        None => match objection(&volume, claim) {
            None => ClaimPlan::Bind(volume),
            Some(why) => {
                let text = format!("Cannot bind to requested volume {name:?}: {why}");
                ClaimPlan::Pending(Some(("VolumeMismatch", text)))
            }
        },
        Some(named) if refers_to(named, claim) => ClaimPlan::Bind(volume),
        Some(_) => {
            let text = format!("volume {name:?} already bound to a different claim.");
            ClaimPlan::Pending(Some(("FailedBinding", text)))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum VolumePlan {
    Available,
    Bound,
    /// Its claim is to decide first.
    AskClaim,
    /// Its claim is gone.
    Released,
    /// Its claim took another; the reference was ours or the user's.
    Unbind,
}

/// `claim`: what the volume's reference is to, as the server has it.
pub(super) fn plan_volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumePlan {
    let Some(reference) = claim_ref(volume) else { return VolumePlan::Available };
    let Some(uid) = reference.uid.as_ref().filter(|uid| !uid.is_empty()) else { return VolumePlan::Available };
    let Some(claim) = claim.filter(|claim| claim.metadata.uid.as_ref() == Some(uid)) else {
        return VolumePlan::Released;
    };
    match claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty()) {
        None => VolumePlan::AskClaim,
        Some(name) if Some(name) == volume.metadata.name.as_deref() => VolumePlan::Bound,
        Some(_) => {
            let is_made_for_it = has_annotation(&volume.metadata, PROVISIONED_BY)
                && volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref())
                    == Some("Delete");
            if is_made_for_it { VolumePlan::Released } else { VolumePlan::Unbind }
        }
    }
}

/// The CSI driver that took over from a provisioner that was once built in.
pub(super) fn migrated(provisioner: &str) -> &str {
    match provisioner {
        "kubernetes.io/aws-ebs" => "ebs.csi.aws.com",
        "kubernetes.io/gce-pd" => "pd.csi.storage.gke.io",
        "kubernetes.io/azure-disk" => "disk.csi.azure.com",
        "kubernetes.io/azure-file" => "file.csi.azure.com",
        "kubernetes.io/cinder" => "cinder.csi.openstack.org",
        "kubernetes.io/vsphere-volume" => "csi.vsphere.vmware.com",
        "kubernetes.io/portworx-volume" => "pxd.portworx.com",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(reference: Value) -> Arc<PersistentVolume> {
        let spec = json!({ "capacity": { "storage": "2Gi" }, "claimRef": reference });
        let object = json!({ "metadata": { "name": "v" }, "spec": spec, "status": { "phase": "Available" } });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn claim(bound: bool, volume: &str, size: &str) -> PersistentVolumeClaim {
        let annotations = if bound { json!({ BIND_COMPLETED: "yes" }) } else { json!({}) };
        serde_json::from_value(json!({
            "metadata": { "name": "c", "namespace": "ns", "uid": "u1", "annotations": annotations },
            "spec": { "volumeName": volume, "resources": { "requests": { "storage": size } } },
        }))
        .unwrap()
    }

    fn mine() -> Value {
        json!({ "name": "c", "namespace": "ns", "uid": "u1" })
    }

    fn foreign() -> Value {
        json!({ "name": "c", "namespace": "ns", "uid": "u2" })
    }

    #[track_caller]
    fn check_claim(claim: &PersistentVolumeClaim, named: Option<Value>, want: &str) {
        let named = named.map(volume);
        let all: Vec<_> = named.iter().cloned().collect();
        let is_named = claim.spec.as_ref().unwrap().volume_name.as_deref() == Some("v");
        let got = match plan_claim(claim, named.filter(|_| is_named), &all, false) {
            ClaimPlan::Bind(_) => "bind".to_owned(),
            ClaimPlan::Unserved => "unserved".to_owned(),
            ClaimPlan::Pending(why) => format!("pending {}", why.map(|(reason, _)| reason).unwrap_or_default()),
            ClaimPlan::Lost(reason, _) => format!("lost {reason}"),
        };
        assert_eq!(got.trim_end(), want);
    }

    #[test]
    fn claims_find_keep_and_lose_volumes() {
        check_claim(&claim(false, "", "1Gi"), Some(Value::Null), "bind");
        check_claim(&claim(false, "", "1Gi"), Some(foreign()), "unserved");
        check_claim(&claim(false, "v", "1Gi"), Some(Value::Null), "bind");
        check_claim(&claim(false, "v", "3Gi"), Some(Value::Null), "pending VolumeMismatch");
        check_claim(&claim(false, "v", "1Gi"), Some(mine()), "bind");
        check_claim(&claim(false, "v", "1Gi"), Some(foreign()), "pending FailedBinding");
        check_claim(&claim(false, "v", "1Gi"), None, "pending");
        check_claim(&claim(true, "v", "1Gi"), None, "lost ClaimLost");
        check_claim(&claim(true, "v", "1Gi"), Some(foreign()), "lost ClaimMisbound");
        check_claim(&claim(true, "v", "1Gi"), Some(mine()), "bind");
    }

    #[test]
    fn volumes_follow_their_claims() {
        let check = |reference: Value, claim: Option<&PersistentVolumeClaim>, want: VolumePlan| {
            assert_eq!(plan_volume(&volume(reference), claim), want);
        };
        check(Value::Null, None, VolumePlan::Available);
        check(json!({ "name": "c", "namespace": "ns" }), None, VolumePlan::Available);
        check(mine(), None, VolumePlan::Released);
        check(foreign(), Some(&claim(true, "v", "1Gi")), VolumePlan::Released);
        check(mine(), Some(&claim(false, "", "1Gi")), VolumePlan::AskClaim);
        check(mine(), Some(&claim(true, "v", "1Gi")), VolumePlan::Bound);
        check(mine(), Some(&claim(true, "w", "1Gi")), VolumePlan::Unbind);
    }
}
