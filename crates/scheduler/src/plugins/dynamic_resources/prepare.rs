//! Writes allocations and reservations of claims.

use std::sync::Arc;

use client::ObjectKey;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::pod::PodInfo;

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a write is tried again because somebody else wrote.
const RETRIES: usize = 5;

fn api_of(client: &Client, claim: &ResourceClaim) -> (Api<ResourceClaim>, String) {
    let key = ObjectKey::of(claim);
    (Api::namespaced(client.clone(), key.namespace()), key.name().to_owned())
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Reserves the claim for the pod, with the devices that were chosen if it has none.
pub(super) async fn reserve(
    client: &Client,
    claim: &ResourceClaim,
    allocation: Option<&AllocationResult>,
    pod: &PodInfo,
) -> Result<(), String> {
    let (api, name) = api_of(client, claim);
    for _ in 0..RETRIES {
        let mut now = api.get(&name).await.map_err(|err| err.to_string())?;
        if now.metadata.uid != claim.metadata.uid {
            return Err(format!("claim {name} got deleted in the meantime"));
        }
        if now.metadata.deletion_timestamp.is_some() {
            return Err(format!("claim {name} got deleted in the meantime"));
        }
        let finalizers = now.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|own| own == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            match api.replace(&name, &PostParams::default(), &now).await {
                Ok(written) => now = written,
                Err(error) if is_conflict(&error) => continue,
                Err(error) => return Err(format!("add finalizer to claim {name}: {error}")),
            }
        }
        let status = now.status.get_or_insert_default();
        if status.allocation.is_none() {
            status.allocation = allocation.cloned();
        }
        let users = status.reserved_for.get_or_insert_default();
        if users.iter().any(|user| user.uid == pod.uid.as_str()) {
            return Ok(());
        }
        users.push(ResourceClaimConsumerReference {
            resource: "pods".to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid.as_str().to_owned(),
            api_group: None,
        });
        match api.replace_status(&name, &PostParams::default(), &now).await {
            Ok(_) => return Ok(()),
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(format!("add allocation and reservation to claim {name}: {error}")),
        }
    }
    Err(format!("add reservation to claim {name}: too many conflicts"))
}

/// Gives the claim's devices back, beside the decisions; what comes of it is seen in the claim.
pub(super) fn start_to_deallocate(client: &Client, claim: &Arc<ResourceClaim>) {
    let (client, claim) = (client.clone(), claim.clone());
    tokio::spawn(async move {
        let (api, name) = api_of(&client, &claim);
        let mut freed = ResourceClaim::clone(&claim);
        let status = freed.status.get_or_insert_default();
        status.allocation = None;
        status.reserved_for = None;
        if let Err(error) = api.replace_status(&name, &PostParams::default(), &freed).await {
            tracing::warn!(claim = name, %error, "a claim's devices could not be given back");
        }
    });
}

/// Takes the pod's reservations back, beside the decisions.
pub(super) fn start_to_unreserve(client: &Client, claims: Vec<Arc<ResourceClaim>>, pod: &PodInfo) {
    let (client, uid) = (client.clone(), pod.uid.clone());
    tokio::spawn(async move {
        for claim in claims {
            let (api, name) = api_of(&client, &claim);
            for _ in 0..RETRIES {
                let Ok(mut now) = api.get(&name).await else { break };
                let users = now.status.get_or_insert_default().reserved_for.get_or_insert_default();
                let before = users.len();
                users.retain(|user| user.uid != uid.as_str());
                if users.len() == before {
                    break;
                }
                match api.replace_status(&name, &PostParams::default(), &now).await {
                    Err(error) if is_conflict(&error) => {}
                    Err(error) => {
                        tracing::warn!(claim = name, %error, "a claim's reservation could not be taken back");
                        break;
                    }
                    Ok(_) => break,
                }
            }
        }
    });
}
