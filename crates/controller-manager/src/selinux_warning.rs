//! Warns of pods that share a volume and could not both use it once volumes are mounted with SELinux labels.

use std::sync::Arc;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    events::{Recorder, reference},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::core::v1::{Pod, SELinuxOptions};

use crate::{
    context::Context,
    error::SyncError,
    pod::is_finished,
    pod_claims::{CLAIM_INDEX, claims_of, index_by_claim},
};

pub(crate) struct SelinuxWarningController {
    recorder: Recorder,
    pods: SharedInformer<Pod>,
    lister: Lister<Pod>,
}

impl SelinuxWarningController {
    pub(crate) fn new(context: &Context) -> Self {
        let pods = context.informers.informer::<Pod>();
        pods.add_index(CLAIM_INDEX, index_by_claim);
        Self { recorder: context.recorder.clone(), lister: pods.lister(), pods }
    }
}

/// `user:role:type:level` of the pod; empty where nothing is said.
fn label_of(pod: &Pod) -> String {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let Some(options) = context.and_then(|context| context.se_linux_options.as_ref()) else { return String::new() };
    let SELinuxOptions { user, role, type_, level } = options;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    [part(user), part(role), part(type_), part(level)].join(":")
}

fn policy_of(pod: &Pod) -> &str {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.se_linux_change_policy.as_deref()).unwrap_or("MountOption")
}

/// Reason and text of what is wrong for `pod` with `other` on the same volume.
fn conflict(pod: &Pod, other: &Pod) -> Option<(&'static str, String)> {
    let name = other.metadata.name.as_deref().unwrap_or_default();
    // Users may see only the pods of their own namespace.
    let name = if pod.metadata.namespace == other.metadata.namespace { name } else { "in another namespace" };
    let (mine, theirs) = (policy_of(pod), policy_of(other));
    if mine != theirs {
        let text = format!(
            "SELinuxChangePolicy {mine:?} conflicts with pod {name} that uses the same volume as this pod with SELinuxChangePolicy {theirs:?}. If both pods land on the same node, only one of them may access the volume."
        );
        return Some(("SELinuxChangePolicyConflict", text));
    }
    let (mine, theirs) = (label_of(pod), label_of(other));
    (mine != theirs && policy_of(pod) == "MountOption").then(|| {
        let text = format!(
            "SELinuxLabel {mine:?} conflicts with pod {name} that uses the same volume as this pod with SELinuxLabel {theirs:?}. If both pods land on the same node, only one of them may access the volume."
        );
        ("SELinuxLabelConflict", text)
    })
}

impl Controller for SelinuxWarningController {
    const NAME: &'static str = "selinux_warning";
    type Error = SyncError;

    /// Keys are claims.
    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.pods, |event| {
            let is_new = event.old().is_none();
            let pod = event.object();
            let claims = if is_new { claims_of(pod).collect() } else { Vec::new() };
            let namespace = event.key();
            claims.into_iter().map(move |name| ObjectKey::new(namespace.namespace(), &name))
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let mut pods = self.lister.by_index(CLAIM_INDEX, key.as_str());
        pods.retain(|pod| !is_finished(pod));
        pods.sort_by_key(|pod| pod.metadata.name.clone());
        for pod in &pods {
            let other = |other: &&Arc<Pod>| !Arc::ptr_eq(pod, other);
            if let Some((reason, text)) = pods.iter().filter(other).find_map(|other| conflict(pod, other)) {
                self.recorder.warning(&reference(&**pod), reason, text);
            }
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(level: &str, policy: Option<&str>) -> Pod {
        let context = json!({ "seLinuxOptions": { "level": level }, "seLinuxChangePolicy": policy });
        serde_json::from_value(
            json!({ "metadata": { "name": "p" }, "spec": { "containers": [], "securityContext": context } }),
        )
        .unwrap()
    }

    #[track_caller]
    fn check(a: &Pod, b: &Pod, want: Option<&str>) {
        assert_eq!(conflict(a, b).map(|(reason, _)| reason), want);
    }

    #[test]
    fn labels_matter_only_where_volumes_are_mounted_with_them() {
        check(&pod("s0:c1", None), &pod("s0:c1", None), None);
        check(&pod("s0:c1", None), &pod("s0:c2", None), Some("SELinuxLabelConflict"));
        check(&pod("s0:c1", Some("Recursive")), &pod("s0:c2", Some("Recursive")), None);
        check(&pod("s0:c1", Some("Recursive")), &pod("s0:c1", None), Some("SELinuxChangePolicyConflict"));
    }
}
