//! Binds volumes to claims through the API server, and waits until that is done.

use std::time::Duration;

use client::ObjectKey;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use super::super::volume_name;
use super::fit::Choice;
use super::{SELECTED_NODE, VolumeBinding, is_bound};
use crate::pod::PodInfo;

/// How often it is looked whether the volumes are bound.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl VolumeBinding {
    pub(super) fn forget(&self, choice: &Choice) {
        let mut assumed = self.assumed.lock();
        for (volume, _) in &choice.bind {
            assumed.volumes.remove(volume.metadata.name.as_deref().unwrap_or_default());
        }
        for claim in &choice.provision {
            assumed.nodes.remove(&ObjectKey::of(&**claim));
        }
    }

    /// Says in the volumes whom they are for, and in the claims where a volume is wanted; the volume controller and
    /// provisioners do the rest.
    pub(super) async fn bind(&self, client: &Client, choice: &Choice, pod: &PodInfo, node: &str) -> Result<(), String> {
        for (volume, claim) in &choice.bind {
            prebind(client, volume, claim).await.map_err(|err| err.to_string())?;
        }
        for claim in &choice.provision {
            select_node(client, claim, node).await.map_err(|err| err.to_string())?;
        }
        let deadline = Instant::now() + self.timeout;
        while !self.is_done(choice, node)? {
            if Instant::now() >= deadline {
                return Err(format!("binding volumes: context deadline exceeded, pod {}", pod.key.as_str()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn is_done(&self, choice: &Choice, node: &str) -> Result<bool, String> {
        let claims = choice.bind.iter().map(|(_, claim)| (claim, false));
        for (claim, provisioned) in claims.chain(choice.provision.iter().map(|claim| (claim, true))) {
            let key = ObjectKey::of(&**claim);
            let Some(now) = self.listers.claims.get(&key) else {
                return Err(format!("binding volumes: failed to check binding: could not find PVC {:?}", key.as_str()));
            };
            if is_bound(&now) {
                let known = self.listers.volumes.get(&ObjectKey::cluster(volume_name(&now))).is_some();
                if known {
                    continue;
                }
                return Ok(false);
            }
            let selected = now.metadata.annotations.as_ref().and_then(|own| own.get(SELECTED_NODE));
            let seen = now.metadata.resource_version != claim.metadata.resource_version;
            // A provisioner that fails takes the node away.
            if provisioned && seen && selected.map(String::as_str) != Some(node) {
                return Err(format!("binding volumes: provisioning failed for PVC {:?}", key.name()));
            }
            return Ok(false);
        }
        Ok(true)
    }
}

async fn prebind(client: &Client, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> kube::Result<()> {
    let patch = json!({
        "metadata": {
            "resourceVersion": volume.metadata.resource_version,
            "annotations": { "pv.kubernetes.io/bound-by-controller": "yes" },
        },
        "spec": { "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": claim.metadata.namespace,
            "name": claim.metadata.name,
            "uid": claim.metadata.uid,
            "resourceVersion": claim.metadata.resource_version,
        } },
    });
    let already = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|own| own.uid.as_deref());
    if already.is_some_and(|uid| Some(uid) == claim.metadata.uid.as_deref()) {
        return Ok(());
    }
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

async fn select_node(client: &Client, claim: &PersistentVolumeClaim, node: &str) -> kube::Result<()> {
    let key = ObjectKey::of(claim);
    let patch = json!({ "metadata": {
        "uid": claim.metadata.uid,
        "annotations": { SELECTED_NODE: node },
    } });
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), key.namespace());
    api.patch(key.name(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}
