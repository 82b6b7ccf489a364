//! The claims of a pod.

use std::sync::Arc;

use client::ObjectKey;
use k8s_openapi::api::core::v1::PodResourceClaim;
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::framework::Rejection;
use crate::listers::Listers;
use crate::pod::PodInfo;

pub(super) fn has_claims(pod: &PodInfo) -> bool {
    pod.spec().and_then(|spec| spec.resource_claims.as_ref()).is_some_and(|claims| !claims.is_empty())
}

/// A claim's name; `None` for a template of which it is decided that it needs no claim. The flag says that the claim is
/// made for this pod alone.
fn name_of(pod: &PodInfo, own: &PodResourceClaim) -> Result<Option<(String, bool)>, Rejection> {
    if let Some(name) = &own.resource_claim_name {
        return Ok(Some((name.clone(), false)));
    }
    let statuses = pod.object.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
    let made = statuses.into_iter().flatten().find(|status| status.name == own.name);
    match made {
        Some(made) => Ok(made.resource_claim_name.clone().map(|name| (name, true))),
        None => {
            let key = pod.key.as_str();
            Err(Rejection::unresolvable(format!("pod {key:?}: ResourceClaim not created yet")))
        }
    }
}

/// All claims of the pod, or which of them is not there or not to be used.
pub(super) fn claims_of(listers: &Listers, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, Rejection> {
    let mut claims = Vec::new();
    for own in pod.spec().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default() {
        let Some((name, made_for_pod)) = name_of(pod, own)? else { continue };
        let Some(claim) = listers.resource_claims.get(&ObjectKey::new(pod.namespace(), &name)) else {
            return Err(Rejection::unresolvable(format!("resourceclaim.resource.k8s.io {name:?} not found")));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(Rejection::unresolvable(format!("resourceclaim {name:?} is being deleted")));
        }
        let mut owners = claim.metadata.owner_references.iter().flatten();
        if made_for_pod && !owners.any(|owner| owner.controller == Some(true) && owner.uid == pod.uid.as_str()) {
            let (claim, pod) = (ObjectKey::of(&*claim), pod.key.as_str());
            let why = format!("ResourceClaim {} was not created for Pod {pod} (Pod is not owner)", claim.as_str());
            return Err(Rejection::unresolvable(why));
        }
        claims.push(claim);
    }
    Ok(claims)
}
