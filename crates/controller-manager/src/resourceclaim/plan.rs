//! Who still uses a claim, and what becomes of it then.

use k8s_openapi::api::{
    core::v1::{Pod, PodResourceClaim},
    resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus, ResourceClaimTemplate},
};
use kube::core::ObjectMeta;

use crate::{
    owner::controller_reference,
    pod::{is_finished, is_leaving, node_name},
};

/// Which entry of its pod a claim was made for.
pub(super) const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Set by who allocates, taken off by us.
pub(super) const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// A pod that will not run any more, or never.
pub(super) fn is_done(pod: &Pod) -> bool {
    is_finished(pod) || (is_leaving(pod) && node_name(pod).is_empty())
}

/// The claim for an entry that names a template.
pub(super) fn new_claim(pod: &Pod, entry: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let from = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = from.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.to_owned(), entry.name.clone());
    let mut prefix = format!("{}-{}-", pod.metadata.name.as_deref().unwrap_or_default(), entry.name);
    // The server cuts no further than the suffix needs.
    prefix.truncate(247);
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            namespace: pod.metadata.namespace.clone(),
            labels: from.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// The claim's status without users that are gone; without any user it has no devices any more.
pub(super) fn without_stale(
    status: &ResourceClaimStatus,
    stays: impl Fn(&ResourceClaimConsumerReference) -> bool,
) -> Option<ResourceClaimStatus> {
    let mut kept = status.clone();
    let users = kept.reserved_for.take().unwrap_or_default();
    let before = users.len();
    let users: Vec<_> = users.into_iter().filter(stays).collect();
    let is_changed = users.len() != before || (users.is_empty() && kept.allocation.is_some() && before > 0);
    if users.is_empty() && before > 0 {
        kept.allocation = None;
        kept.devices = None;
    }
    kept.reserved_for = (!users.is_empty()).then_some(users);
    is_changed.then_some(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(users: Value, living: &[&str], want: Value) {
        let status = json!({ "allocation": { "devices": {} }, "reservedFor": users });
        let status: ResourceClaimStatus = serde_json::from_value(status).unwrap();
        let kept = without_stale(&status, |user| living.contains(&user.uid.as_str()));
        let got = kept.map(|kept| {
            let users: Vec<_> = kept.reserved_for.into_iter().flatten().map(|user| user.uid).collect();
            json!({ "users": users, "allocated": kept.allocation.is_some() })
        });
        assert_eq!(got.unwrap_or_default(), want);
    }

    #[test]
    fn a_claim_without_users_gives_its_devices_back() {
        let user = |uid: &str| json!({ "resource": "pods", "name": uid, "uid": uid });
        check(json!([user("a"), user("b")]), &["a", "b"], Value::Null);
        check(json!([user("a"), user("b")]), &["b"], json!({ "users": ["b"], "allocated": true }));
        check(json!([user("a")]), &[], json!({ "users": [], "allocated": false }));
        check(json!([]), &[], Value::Null);
    }

    #[test]
    fn a_claim_of_a_template_knows_its_pod_and_entry() {
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "ns", "uid": "u" } })).unwrap();
        let template: ResourceClaimTemplate = serde_json::from_value(json!({
            "metadata": { "name": "t" },
            "spec": { "metadata": { "labels": { "a": "b" } }, "spec": {} },
        }))
        .unwrap();
        let entry = PodResourceClaim { name: "gpu".into(), ..PodResourceClaim::default() };
        let claim = new_claim(&pod, &entry, &template);
        assert_eq!(claim.metadata.generate_name.as_deref(), Some("web-gpu-"));
        assert_eq!(claim.metadata.annotations.unwrap()[POD_CLAIM], "gpu");
    }
}
