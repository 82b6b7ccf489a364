//! Fills the secrets in which users ask for a token that does not expire, and removes them with their account.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    informer::{Lister, Selection, SharedInformer},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{context::Context, error::SyncError};

const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// Finds secrets by `namespace/account`.
const ACCOUNT_INDEX: &str = "account";

/// Signs tokens as the API server's own issuer of old did.
#[derive(Clone)]
pub struct TokenSigner {
    key: EncodingKey,
    header: Header,
}

#[derive(Debug, thiserror::Error)]
#[error("service account key is neither an RSA nor an EC private key in PEM")]
pub struct KeyError;

impl TokenSigner {
    /// Reads an RSA or EC private key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let (key, algorithm) = match EncodingKey::from_rsa_pem(pem.as_bytes()) {
            Ok(key) => (key, Algorithm::RS256),
            Err(_) => (EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| KeyError)?, Algorithm::ES256),
        };
        let mut header = Header::new(algorithm);
        header.typ = None;
        // Upstream's key id: a digest of the public key. A key that this cannot be made of does without.
        header.kid = rcgen::KeyPair::from_pem(pem).ok().map(|pair| {
            use rcgen::PublicKeyData;
            URL_SAFE_NO_PAD.encode(Sha256::digest(pair.subject_public_key_info()))
        });
        Ok(Self { key, header })
    }

    fn token(&self, secret: &Secret, account: &ServiceAccount) -> Result<String, jsonwebtoken::errors::Error> {
        let namespace = account.metadata.namespace.as_deref().unwrap_or_default();
        let name = account.metadata.name.as_deref().unwrap_or_default();
        let claims = json!({
            "iss": "kubernetes/serviceaccount",
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret.metadata.name,
            "kubernetes.io/serviceaccount/service-account.name": name,
            "kubernetes.io/serviceaccount/service-account.uid": account.metadata.uid,
        });
        jsonwebtoken::encode(&self.header, &claims, &self.key)
    }
}

pub(crate) struct ServiceAccountTokenController {
    client: Client,
    signer: TokenSigner,
    root_ca: Option<String>,
    secrets: SharedInformer<Secret>,
    secret_lister: Lister<Secret>,
    accounts: SharedInformer<ServiceAccount>,
    account_lister: Lister<ServiceAccount>,
}

impl ServiceAccountTokenController {
    pub(crate) fn new(context: &Context, signer: TokenSigner) -> Self {
        let selection = Selection::fields("type=kubernetes.io/service-account-token");
        let secrets = context.informers.selected::<Secret>(selection);
        let accounts = context.informers.informer::<ServiceAccount>();
        secrets.add_index(ACCOUNT_INDEX, |secret| account_key(secret).into_iter().map(|key| key.to_string()).collect());
        Self {
            client: context.client.clone(),
            signer,
            root_ca: context.config.root_ca.clone(),
            secret_lister: secrets.lister(),
            secrets,
            account_lister: accounts.lister(),
            accounts,
        }
    }

    /// The secret with all that belongs into it; `None` if it has it already.
    fn plan(&self, secret: &Secret, account: &ServiceAccount) -> Result<Option<Secret>, SyncError> {
        let mut filled = secret.clone();
        let data = filled.data.get_or_insert_default();
        let is_empty = |data: Option<&ByteString>| data.is_none_or(|bytes| bytes.0.is_empty());
        if let Some(ca) = &self.root_ca {
            data.insert("ca.crt".to_owned(), ByteString(ca.clone().into_bytes()));
        }
        let namespace = secret.metadata.namespace.clone().unwrap_or_default();
        data.entry("namespace".to_owned()).or_insert_with(|| ByteString(namespace.into_bytes()));
        if is_empty(data.get("token")) {
            let token = self.signer.token(secret, account).map_err(|err| SyncError::Sign(Box::new(err)))?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        let annotations = filled.metadata.annotations.get_or_insert_default();
        annotations.insert(UID.to_owned(), account.metadata.uid.clone().unwrap_or_default());
        Ok((filled != *secret).then_some(filled))
    }
}

fn account_key(secret: &Secret) -> Option<ObjectKey> {
    let name = secret.metadata.annotations.as_ref()?.get(NAME)?;
    Some(ObjectKey::new(secret.metadata.namespace.as_deref().unwrap_or_default(), name))
}

impl Controller for ServiceAccountTokenController {
    const NAME: &'static str = "serviceaccount_tokens_secret";
    type Error = SyncError;

    /// Keys are secrets.
    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.secrets);
        let secrets = self.secret_lister.clone();
        watches.map(&self.accounts, move |event| {
            let of_account = secrets.by_index(ACCOUNT_INDEX, event.key().as_str());
            of_account.into_iter().map(|secret| ObjectKey::of(&*secret)).collect::<Vec<_>>()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(secret) = self.secret_lister.get(key) else { return Ok(Action::await_change()) };
        let Some(account_key) = account_key(&secret) else { return Ok(Action::await_change()) };
        let wanted_uid =
            secret.metadata.annotations.as_ref().and_then(|all| all.get(UID)).filter(|uid| !uid.is_empty());
        let is_its = |account: &ServiceAccount| wanted_uid.is_none_or(|uid| account.metadata.uid.as_ref() == Some(uid));
        let mut account = self.account_lister.get(&account_key).filter(|account| is_its(account));
        if account.is_none() {
            // The cache may be behind.
            let api = Api::<ServiceAccount>::namespaced(self.client.clone(), account_key.namespace());
            account = api.get_opt(account_key.name()).await?.filter(is_its).map(std::sync::Arc::new);
        }
        let api = Api::<Secret>::namespaced(self.client.clone(), key.namespace());
        match account {
            Some(account) => {
                if let Some(filled) = self.plan(&secret, &account)? {
                    match api.replace(key.name(), &PostParams::default(), &filled).await {
                        Err(err) if !err.is_not_found() => return Err(err.into()),
                        Ok(_) | Err(_) => {}
                    }
                }
            }
            None => {
                let same = Preconditions {
                    uid: secret.metadata.uid.clone(),
                    resource_version: secret.metadata.resource_version.clone(),
                };
                ignore_not_found(api.delete(key.name(), &DeleteParams::default().preconditions(same)).await)?;
            }
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;

    use super::*;

    #[test]
    fn a_token_names_account_and_secret() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let signer = TokenSigner::from_pem(&pair.serialize_pem()).unwrap();
        let named = |name: &str| ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some("u1".into()),
            ..ObjectMeta::default()
        };
        let secret = Secret { metadata: named("s"), ..Secret::default() };
        let account = ServiceAccount { metadata: named("robot"), ..ServiceAccount::default() };
        let token = signer.token(&secret, &account).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["sub"], "system:serviceaccount:ns:robot");
        assert_eq!(claims["kubernetes.io/serviceaccount/secret.name"], "s");
        assert!(signer.header.kid.is_some());
        assert!(TokenSigner::from_pem("nonsense").is_err());
    }
}
