//! Signs the public description of the cluster with every token, so that who has a token can trust it.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Lister, Selection, SharedInformer},
};
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, api::PostParams};
use sha2::Sha256;

use super::{informer, signing};
use crate::{context::Context, error::SyncError};

const PUBLIC: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
const CONTENT: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

pub(crate) struct BootstrapSigner {
    client: Client,
    secrets: SharedInformer<Secret>,
    secret_lister: Lister<Secret>,
    maps: SharedInformer<ConfigMap>,
    map_lister: Lister<ConfigMap>,
}

impl BootstrapSigner {
    pub(crate) fn new(context: &Context) -> Self {
        let secrets = informer(context);
        let selection = Selection::fields(&format!("metadata.name={CLUSTER_INFO}"));
        let maps = context.informers.namespaced::<ConfigMap>(PUBLIC, selection);
        Self {
            client: context.client.clone(),
            secret_lister: secrets.lister(),
            secrets,
            map_lister: maps.lister(),
            maps,
        }
    }
}

/// A JWS without its content.
fn sign(content: &str, id: &str, key: &str) -> Option<String> {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).ok()?;
    mac.update(format!("{header}.{}", URL_SAFE_NO_PAD.encode(content)).as_bytes());
    Some(format!("{header}..{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())))
}

/// The map's data with exactly the signatures of `tokens`.
fn plan(data: &BTreeMap<String, String>, tokens: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    let content = data.get(CONTENT)?;
    let mut signed = data.clone();
    signed.retain(|name, _| !name.starts_with(SIGNATURE));
    for (id, key) in tokens {
        signed.insert(format!("{SIGNATURE}{id}"), sign(content, id, key)?);
    }
    (signed != *data).then_some(signed)
}

impl Controller for BootstrapSigner {
    const NAME: &'static str = "bootstrap_signer_queue";
    type Error = SyncError;

    /// The only key is the map.
    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.maps);
        watches.map(&self.secrets, |_| Some(ObjectKey::new(PUBLIC, CLUSTER_INFO)));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(map) = self.map_lister.get(key) else { return Ok(Action::await_change()) };
        let secrets = self.secret_lister.list();
        let now = Timestamp::now();
        let tokens: Vec<_> = secrets.iter().filter_map(|secret| signing(secret, now)).collect();
        let Some(data) = plan(&map.data.clone().unwrap_or_default(), &tokens) else {
            return Ok(Action::await_change());
        };
        let mut written = (*map).clone();
        written.data = Some(data);
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), PUBLIC);
        api.replace(key.name(), &PostParams::default(), &written).await?;
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_signs_and_old_signatures_go() {
        let data: BTreeMap<_, _> =
            [("kubeconfig".to_owned(), "content".to_owned()), ("jws-kubeconfig-oldold".to_owned(), "x".to_owned())]
                .into();
        let signed = plan(&data, &[("joshua", "ztsssecret012345")]).unwrap();
        let names: Vec<_> = signed.keys().map(String::as_str).collect();
        assert_eq!(names, ["jws-kubeconfig-joshua", "kubeconfig"]);
        let signature = &signed["jws-kubeconfig-joshua"];
        assert!(signature.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9.."), "{signature}");
        assert_eq!(plan(&signed, &[("joshua", "ztsssecret012345")]), None);
        assert_eq!(plan(&BTreeMap::new(), &[("joshua", "ztsssecret012345")]), None);
    }
}
