//! Who owns a claim of a StatefulSet: nobody, the set, or the pod that is to take it along.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use super::pod::{ordinal, range};
use crate::owner::controller_reference;

/// The claim's owners as the retention policy has them; `None` if they are so already.
pub(super) fn plan(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> Option<Vec<OwnerReference>> {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
    let when_deleted = deletes(policy.and_then(|policy| policy.when_deleted.as_ref()));
    let when_scaled = deletes(policy.and_then(|policy| policy.when_scaled.as_ref()));
    let (start, end) = range(set);
    let is_beyond = !(start..end).contains(&ordinal(pod));
    let by_pod = when_scaled && is_beyond;
    let by_set = when_deleted && !by_pod;
    let old = claim.metadata.owner_references.as_deref().unwrap_or_default();
    let has = |uid: &Option<String>| old.iter().any(|owner| Some(&owner.uid) == uid.as_ref());
    if has(&set.metadata.uid) == by_set && has(&pod.metadata.uid) == by_pod {
        return None;
    }
    let ours = |owner: &&OwnerReference| {
        Some(&owner.uid) == set.metadata.uid.as_ref() || Some(&owner.uid) == pod.metadata.uid.as_ref()
    };
    let mut owners: Vec<_> = old.iter().filter(|owner| !ours(owner)).cloned().collect();
    if by_set {
        owners.push(controller_reference(set));
    }
    if by_pod {
        owners.push(controller_reference(pod));
    }
    Some(owners)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec};
    use kube::core::ObjectMeta;

    use super::*;

    #[track_caller]
    fn check(when_deleted: &str, when_scaled: &str, pod: &str, before: &[&str], want: Option<&[&str]>) {
        let meta = |name: &str| ObjectMeta { name: Some(name.into()), uid: Some(name.into()), ..ObjectMeta::default() };
        let policy = StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some(when_deleted.into()),
            when_scaled: Some(when_scaled.into()),
        };
        let set = StatefulSet {
            metadata: meta("web"),
            spec: Some(StatefulSetSpec {
                replicas: Some(1),
                persistent_volume_claim_retention_policy: Some(policy),
                ..StatefulSetSpec::default()
            }),
            status: None,
        };
        let owner = |uid: &&str| OwnerReference { uid: (*uid).to_owned(), ..OwnerReference::default() };
        let mut claim = PersistentVolumeClaim { metadata: meta("data"), ..PersistentVolumeClaim::default() };
        claim.metadata.owner_references = Some(before.iter().map(owner).collect());
        let owners = plan(&set, &Pod { metadata: meta(pod), ..Pod::default() }, &claim);
        let uids = owners.map(|owners| owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>());
        assert_eq!(uids, want.map(|uids| uids.iter().map(|uid| (*uid).to_owned()).collect()));
    }

    #[test]
    fn claims_go_with_the_set_or_with_the_pod_that_is_scaled_away() {
        check("Retain", "Retain", "web-0", &[], None);
        check("Retain", "Retain", "web-0", &["x", "web"], Some(&["x"]));
        check("Delete", "Retain", "web-0", &[], Some(&["web"]));
        check("Delete", "Retain", "web-0", &["web"], None);
        check("Delete", "Retain", "web-1", &["web"], None);
        check("Retain", "Delete", "web-1", &[], Some(&["web-1"]));
        check("Retain", "Delete", "web-0", &["web-0"], Some(&[]));
        check("Delete", "Delete", "web-1", &["web"], Some(&["web-1"]));
    }
}
