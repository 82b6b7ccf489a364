//! Bootstrap tokens: Secrets of `kube-system` by which a new node introduces itself.

use std::sync::Arc;

use apimachinery::Value;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use jiff::Timestamp;

use super::{Authenticated, Authenticator, Outcome, bearer_token};
use crate::attributes::UserInfo;
use crate::lister::Lister;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

pub(crate) struct BootstrapTokens {
    pub lister: Arc<dyn Lister>,
}

impl BootstrapTokens {
    fn check(&self, token: &str) -> Option<Result<UserInfo, String>> {
        // `abcdef.0123456789abcdef`
        let (id, secret) = token.split_once('.')?;
        let plain = |s: &str| s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
            return None;
        }
        let object = self.lister.get("secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
        if object.is_deleting() || object.str_at(&["type"]) != TYPE {
            return None;
        }
        let data = |key: &str| decoded(&object["data"][key]);
        if !same(data("token-secret").as_bytes(), secret.as_bytes()) || data("token-id") != id {
            return Some(Err("the bootstrap token's secret is wrong".to_owned()));
        }
        let expiration = data("expiration");
        if !expiration.is_empty() && expiration.parse::<Timestamp>().is_ok_and(|t| t <= Timestamp::now()) {
            return Some(Err("the bootstrap token has expired".to_owned()));
        }
        if data("usage-bootstrap-authentication") != "true" {
            return Some(Err("the bootstrap token is not for authentication".to_owned()));
        }
        let extra = data("auth-extra-groups");
        let mut groups = vec![GROUP.to_owned()];
        for group in extra.split(',').map(str::trim).filter(|g| !g.is_empty()) {
            if !group.starts_with("system:bootstrappers:") {
                return Some(Err(format!("the bootstrap token's group {group} is not below system:bootstrappers:")));
            }
            groups.push(group.to_owned());
        }
        groups.push("system:authenticated".to_owned());
        Some(Ok(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() }))
    }
}

fn decoded(data: &Value) -> String {
    let bytes = data.as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Equal, in a time that does not tell how much of it was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

#[async_trait]
impl Authenticator for BootstrapTokens {
    async fn authenticate(&self, request: &Parts) -> Outcome {
        match bearer_token(request).and_then(|token| self.check(token)) {
            None => Outcome::Pass,
            Some(Ok(user)) => Outcome::User(Authenticated { user, audiences: Vec::new() }),
            Some(Err(why)) => Outcome::Failed(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    #[test]
    fn a_token_is_good_until_it_expires() {
        let lister = MapLister::default();
        let b64 = |s: &str| Value::from(STANDARD.encode(s));
        let mut secret = Value::from([("type", TYPE.into())]);
        secret.set(&["metadata", "name"], "bootstrap-token-abcdef");
        secret.set(&["metadata", "namespace"], "kube-system");
        let data =
            [("token-id", "abcdef"), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-authentication", "true")];
        for (key, value) in data {
            secret.set(&["data", key], b64(value));
        }
        lister.put("secrets", secret.clone());
        let tokens = BootstrapTokens { lister: Arc::new(lister) };
        let user = tokens.check("abcdef.0123456789abcdef").unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups[0].as_str()), ("system:bootstrap:abcdef", GROUP));
        assert!(tokens.check("abcdef.0123456789abcdee").unwrap().is_err());
        assert!(tokens.check("abcdeg.0123456789abcdef").is_none());
        secret.set(&["data", "expiration"], b64("2020-01-01T00:00:00Z"));
        let lister = MapLister::default();
        lister.put("secrets", secret);
        assert!(BootstrapTokens { lister: Arc::new(lister) }.check("abcdef.0123456789abcdef").unwrap().is_err());
    }
}
