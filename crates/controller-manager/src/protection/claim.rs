//! Claims that pods use.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Api, Client, api::ListParams};

use crate::{
    context::Context,
    error::SyncError,
    finalizers::{add_finalizer, has_finalizer, remove_finalizer},
    pod::{is_finished, node_name},
    pod_claims::{CLAIM_INDEX, claims_of, index_by_claim},
};

const FINALIZER: &str = "kubernetes.io/pvc-protection";

pub(crate) struct ClaimProtection {
    client: Client,
    claims: SharedInformer<PersistentVolumeClaim>,
    claim_lister: Lister<PersistentVolumeClaim>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
}

impl ClaimProtection {
    pub(crate) fn new(context: &Context) -> Self {
        let claims = context.informers.informer::<PersistentVolumeClaim>();
        let pods = context.informers.informer::<Pod>();
        pods.add_index(CLAIM_INDEX, index_by_claim);
        Self { client: context.client.clone(), claim_lister: claims.lister(), claims, pod_lister: pods.lister(), pods }
    }

    async fn is_used(&self, key: &ObjectKey) -> Result<bool, SyncError> {
        if self.pod_lister.by_index(CLAIM_INDEX, key.as_str()).iter().any(|pod| holds(pod)) {
            return Ok(true);
        }
        // The cache may lack a pod that was bound just now: what is let go cannot be taken back.
        let api = Api::<Pod>::namespaced(self.client.clone(), key.namespace());
        let pods = api.list(&ListParams::default()).await?;
        Ok(pods.items.iter().any(|pod| holds(pod) && claims_of(pod).any(|name| name == key.name())))
    }
}

/// A pod without a node has mounted nothing, one that ended does no more.
fn holds(pod: &Pod) -> bool {
    !node_name(pod).is_empty() && !is_finished(pod)
}

impl Controller for ClaimProtection {
    const NAME: &'static str = "pvcprotection";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.claims);
        watches.map(&self.pods, |event| {
            // Only a pod that lets go changes anything.
            let Some(old) = event.old().filter(|old| holds(old)) else { return Vec::new() };
            if event.now().is_some_and(|now| holds(now)) {
                return Vec::new();
            }
            claims_of(old).map(|name| ObjectKey::new(event.key().namespace(), &name)).collect()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(claim) = self.claim_lister.get(key) else { return Ok(Action::await_change()) };
        let api = Api::namespaced(self.client.clone(), key.namespace());
        match (claim.metadata.deletion_timestamp.is_some(), has_finalizer(&*claim, FINALIZER)) {
            (true, true) if !self.is_used(key).await? => {
                remove_finalizer(&api, &*claim, FINALIZER).await?;
            }
            (false, false) => add_finalizer(&api, &*claim, FINALIZER).await?,
            _ => {}
        }
        Ok(Action::await_change())
    }
}
