//! The keys of an issuer: found through its discovery document, fetched again when a token names one that is not known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::Value;
use http::HeaderMap;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::RwLock;
use tokio::sync::Mutex;

use super::settings::Issuer;
use crate::outbound::{Endpoint, trust};

/// How long an issuer may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever sends tokens of unknown keys makes the issuer be asked no more often than this.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Keys {
    issuer: String,
    discovery: String,
    authority: Option<String>,
    algorithms: Vec<Algorithm>,
    known: RwLock<Arc<Vec<Jwk>>>,
    /// One at a time asks the issuer. When that was last.
    asked: Mutex<Option<Instant>>,
}

impl Keys {
    pub(super) fn new(issuer: &Issuer) -> Self {
        let usual = || format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'));
        Keys {
            issuer: issuer.url.clone(),
            discovery: issuer.discovery_url.clone().unwrap_or_else(usual),
            authority: issuer.certificate_authority.clone(),
            algorithms: issuer.algorithms.clone(),
            known: RwLock::default(),
            asked: Mutex::default(),
        }
    }

    /// The claims of a token that the issuer has signed.
    ///
    /// # Errors
    /// Why it is none of the issuer's.
    pub(super) async fn verify(&self, token: &str) -> Result<Value, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| format!("malformed jwt: {e}"))?;
        if !self.algorithms.contains(&header.alg) {
            return Err(format!("id token signed with unsupported algorithm, got {:?}", header.alg));
        }
        let known = || {
            let keys = Arc::clone(&self.known.read());
            verified(&keys, token, header.kid.as_deref(), header.alg)
        };
        if let Some(claims) = known() {
            return Ok(claims);
        }
        let mut asked = self.asked.lock().await;
        // Others that waited for this may have asked after the same key.
        if let Some(claims) = known() {
            return Ok(claims);
        }
        if asked.is_none_or(|asked| asked.elapsed() >= PAUSE) {
            // Also if whoever waits for it goes away.
            *asked = Some(Instant::now());
            let fetched = self.fetch().await;
            *asked = Some(Instant::now());
            *self.known.write() = Arc::new(fetched.map_err(|why| format!("verify token: fetching keys {why}"))?);
        }
        known()
            .ok_or_else(|| "verify token: failed to verify signature: failed to verify id token signature".to_owned())
    }

    async fn fetch(&self) -> Result<Vec<Jwk>, String> {
        let document: Value = self.get(&self.discovery).await?;
        let told = document.str_at(&["issuer"]);
        if told != self.issuer {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {told:?}",
                self.issuer
            ));
        }
        let set: JwkSet = self.get(document.str_at(&["jwks_uri"])).await?;
        Ok(set.keys)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let endpoint = Endpoint::of_url(url)?;
        let roots = match &self.authority {
            Some(pem) => trust::Roots::Pem(pem.clone().into_bytes()),
            None => trust::Roots::System,
        };
        let tls = trust::verified(roots, None)?;
        let answer = endpoint.get(Some(tls), HeaderMap::new(), TIMEOUT).await?;
        if !answer.status.is_success() {
            return Err(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body)));
        }
        serde_json::from_slice(&answer.body).map_err(|e| format!("failed to decode {url}: {e}"))
    }
}

fn verified(keys: &[Jwk], token: &str, id: Option<&str>, algorithm: Algorithm) -> Option<Value> {
    let fits = |key: &&Jwk| id.is_none() || key.common.key_id.as_deref() == id;
    let mut validation = Validation::new(algorithm);
    // Times and audiences are looked at by whoever asks.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    keys.iter().filter(fits).find_map(|key| {
        let key = DecodingKey::from_jwk(key).ok()?;
        jsonwebtoken::decode::<Value>(token, &key, &validation).ok().map(|data| data.claims)
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use jsonwebtoken::{EncodingKey, Header};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn known_keys_are_used_while_others_are_asked_for() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Issuer {
            url: format!("https://{}", silent.local_addr().unwrap()),
            algorithms: vec![Algorithm::HS256],
            ..Issuer::default()
        };
        let keys = Arc::new(Keys::new(&issuer));
        let secret = EncodingKey::from_secret(b"secret");
        let jwk = Jwk { ..Jwk::from_encoding_key(&secret, Algorithm::HS256).unwrap() };
        *keys.known.write() = Arc::new(vec![jwk]);
        let token = |key: &EncodingKey| {
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &Value::from([("sub", "jane".into())]), key).unwrap()
        };
        let (good, bad) = (token(&secret), token(&EncodingKey::from_secret(b"other")));
        let asking = Arc::clone(&keys);
        let asking = tokio::spawn(async move { asking.verify(&bad).await });
        let (_connection, _) = silent.accept().await.unwrap();
        let claims = keys.verify(&good).now_or_never().expect("it waits for nobody").unwrap();
        assert_eq!(claims.str_at(&["sub"]), "jane");
        asking.abort();
    }
}
