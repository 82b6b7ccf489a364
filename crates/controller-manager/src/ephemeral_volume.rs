//! Makes the claims of pods' ephemeral volumes.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Event, Lister, SharedInformer},
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};

use crate::{
    context::Context,
    error::SyncError,
    owner::{controller_reference, is_controlled_by},
    pod::is_leaving,
};

pub(crate) struct EphemeralVolumeController {
    client: Client,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    claims: SharedInformer<PersistentVolumeClaim>,
    claim_lister: Lister<PersistentVolumeClaim>,
}

impl EphemeralVolumeController {
    pub(crate) fn new(context: &Context) -> Self {
        let pods = context.informers.informer::<Pod>();
        let claims = context.informers.informer::<PersistentVolumeClaim>();
        Self { client: context.client.clone(), pod_lister: pods.lister(), pods, claim_lister: claims.lister(), claims }
    }
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.ephemeral.is_some())
}

/// The claim of a volume. The pod owns it, so that it goes with the pod.
fn new_claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let from = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.metadata.name.as_deref()?, volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

impl Controller for EphemeralVolumeController {
    const NAME: &'static str = "ephemeral_volume";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.pods, |event| match event {
            Event::Added(pod) if ephemeral(pod).next().is_some() => Some(event.key()),
            _ => None,
        });
        watches.map(&self.claims, |event| match event {
            Event::Deleted(claim) => client::controller::controller_key::<Pod>(&**claim),
            Event::Added(_) | Event::Updated { .. } => None,
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(pod) = self.pod_lister.get(key).filter(|pod| !is_leaving(pod)) else {
            return Ok(Action::await_change());
        };
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), key.namespace());
        for volume in ephemeral(&pod) {
            let Some(wanted) = new_claim(&pod, volume) else { continue };
            let name = wanted.metadata.name.clone().unwrap_or_default();
            let mut known = self.claim_lister.get(&ObjectKey::new(key.namespace(), &name));
            if known.is_none() {
                match api.create(&PostParams::default(), &wanted).await {
                    Err(err) if err.is_already_exists() => known = Some(api.get(&name).await?.into()),
                    created => {
                        created?;
                    }
                }
            }
            if known.is_some_and(|claim| !is_controlled_by(&*claim, &*pod)) {
                let message = format!("PVC {name} was not created for pod {} (pod is not owner)", key.name());
                return Err(SyncError::NotYet(message));
            }
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_named_after_pod_and_volume_and_owned_by_the_pod() {
        let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "storageClassName": "fast" } });
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "u1" },
            "spec": { "containers": [], "volumes": [
                { "name": "plain", "emptyDir": {} },
                { "name": "data", "ephemeral": { "volumeClaimTemplate": template } },
            ] },
        }))
        .unwrap();
        let claims: Vec<_> = ephemeral(&pod).filter_map(|volume| new_claim(&pod, volume)).collect();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].metadata.name.as_deref(), Some("web-data"));
        assert!(is_controlled_by(&claims[0], &pod));
        assert_eq!(claims[0].spec.as_ref().unwrap().storage_class_name.as_deref(), Some("fast"));
    }
}
