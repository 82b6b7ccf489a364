//! Publishes the authority of the API server's certificate as a ClusterTrustBundle, for pods that project it.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    informer::{Lister, Selection, SharedInformer},
};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    core::ObjectMeta,
};
use sha2::{Digest, Sha256};

use crate::{context::Context, error::SyncError};

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

pub(crate) struct ClusterTrustBundlePublisher {
    client: Client,
    /// PEM.
    anchors: String,
    name: String,
    bundles: SharedInformer<ClusterTrustBundle>,
    lister: Lister<ClusterTrustBundle>,
}

impl ClusterTrustBundlePublisher {
    pub(crate) fn new(context: &Context, anchors: String) -> Self {
        let selection = Selection::fields(&format!("spec.signerName={SIGNER}"));
        let bundles = context.informers.selected::<ClusterTrustBundle>(selection);
        let name = name_of(&anchors);
        Self { client: context.client.clone(), anchors, name, lister: bundles.lister(), bundles }
    }
}

/// A bundle with other anchors has another name, so that both are there while pods change over.
fn name_of(anchors: &str) -> String {
    let hash = Sha256::digest(anchors.as_bytes());
    let hash: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{hash}", SIGNER.replace('/', ":"))
}

impl Controller for ClusterTrustBundlePublisher {
    const NAME: &'static str = "kube-apiserver-serving-clustertrustbundle-publisher";
    type Error = SyncError;

    /// There is one key: the bundle that is to be there.
    fn watches(&self, watches: &mut Watches) {
        let ours = ObjectKey::cluster(&self.name);
        watches.queue().add(ours.clone());
        watches.map(&self.bundles, move |_| Some(ours.clone()));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let api = Api::<ClusterTrustBundle>::all(self.client.clone());
        let spec = ClusterTrustBundleSpec { signer_name: Some(SIGNER.to_owned()), trust_bundle: self.anchors.clone() };
        let params = PostParams::default();
        match self.lister.get(key) {
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                match api.create(&params, &ClusterTrustBundle { metadata, spec }).await {
                    Err(err) if !err.is_already_exists() => return Err(err.into()),
                    _ => {}
                }
            }
            Some(known) if known.spec.trust_bundle != self.anchors => {
                api.replace(&self.name, &params, &ClusterTrustBundle { spec, ..(*known).clone() }).await?;
            }
            Some(_) => {}
        }
        for other in self.lister.list() {
            let name = other.metadata.name.as_deref().unwrap_or_default();
            if name != self.name && other.metadata.deletion_timestamp.is_none() {
                ignore_not_found(api.delete(name, &DeleteParams::default()).await)?;
            }
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundles_name_tells_its_signer_and_what_it_holds() {
        let name = name_of("pem");
        assert_eq!(name.strip_prefix("kubernetes.io:kube-apiserver-serving:").map(str::len), Some(24));
        assert_ne!(name, name_of("other"));
    }
}
