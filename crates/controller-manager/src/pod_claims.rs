//! The claims that a pod's volumes name, its own ephemeral ones among them.

use k8s_openapi::api::core::v1::Pod;

/// Finds pods by `namespace/claim`.
pub(crate) const CLAIM_INDEX: &str = "claim";

/// Values of [`CLAIM_INDEX`].
pub(crate) fn index_by_claim(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    claims_of(pod).map(|name| format!("{namespace}/{name}")).collect()
}

pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(move |volume| {
        let claim = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        claim.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)))
    })
}
