//! Tokens of issuers outside (OpenID Connect): by `AuthenticationConfiguration` or by the `--oidc-…` flags.
//!
//! `settings` says whom to believe, `keys` fetches their keys, `claims` makes a user of what a token says.

mod claims;
mod keys;
pub(crate) mod settings;

use std::sync::Arc;

use apimachinery::Value;
use async_trait::async_trait;
use http::request::Parts;
use jiff::Timestamp;
use parking_lot::RwLock;

use super::service_account::unverified_claims;
use super::{Authenticated, Authenticator, Outcome, bearer_token};
use keys::Keys;
use settings::Issuer;

/// How much earlier than it says a token is taken: clocks differ. In seconds, as upstream's library has it.
const NOT_BEFORE_LEEWAY: f64 = 300.0;

/// The issuers that are believed. They may be exchanged while the server runs.
#[derive(Default)]
pub(crate) struct JwtIssuers(RwLock<Arc<Vec<Arc<Trusted>>>>);

struct Trusted {
    issuer: Issuer,
    keys: Keys,
}

impl JwtIssuers {
    /// Believes these from now on. What is known of issuers that stay stays known.
    pub(crate) fn set(&self, issuers: Vec<Issuer>) {
        let before = Arc::clone(&self.0.read());
        let trusted = issuers.into_iter().map(|issuer| match before.iter().find(|t| t.issuer == issuer) {
            Some(same) => Arc::clone(same),
            None => Arc::new(Trusted { keys: Keys::new(&issuer), issuer }),
        });
        let trusted = trusted.collect();
        *self.0.write() = Arc::new(trusted);
    }

    async fn review(&self, token: &str) -> Outcome {
        let Some(claimed) = unverified_claims(token) else { return Outcome::Pass };
        let issuers = Arc::clone(&self.0.read());
        let Some(trusted) = issuers.iter().find(|t| t.issuer.url == claimed.str_at(&["iss"])) else {
            return Outcome::Pass;
        };
        match trusted.user_of(token).await {
            Ok(authenticated) => Outcome::User(authenticated),
            Err(why) => Outcome::Failed(format!("oidc: {why}")),
        }
    }
}

#[async_trait]
impl Authenticator for JwtIssuers {
    async fn authenticate(&self, request: &Parts) -> Outcome {
        match bearer_token(request) {
            Some(token) => self.review(token).await,
            None => Outcome::Pass,
        }
    }
}

impl Trusted {
    async fn user_of(&self, token: &str) -> Result<Authenticated, String> {
        let claims = self.keys.verify(token).await?;
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit a float")]
        check_claims(&self.issuer, &claims, Timestamp::now().as_second() as f64)?;
        let mut user = claims::user_of(&self.issuer, &claims)?;
        user.groups.push("system:authenticated".to_owned());
        Ok(Authenticated { user, audiences: Vec::new() })
    }
}

/// Is the token meant for this server, and good now?
fn check_claims(issuer: &Issuer, claims: &Value, now: f64) -> Result<(), String> {
    match claims["exp"].as_f64() {
        None => return Err("verify token: token has no expiry".to_owned()),
        Some(expiry) if expiry < now => return Err("verify token: oidc: token is expired".to_owned()),
        Some(_) => {}
    }
    if claims["nbf"].as_f64().is_some_and(|nbf| nbf > now + NOT_BEFORE_LEEWAY) {
        return Err("verify token: oidc: current time is before the nbf (not before) time".to_owned());
    }
    let audiences: Vec<&str> = match &claims["aud"] {
        Value::String(one) => vec![one.as_str()],
        list => list.items().iter().filter_map(Value::as_str).collect(),
    };
    if !issuer.audiences.iter().any(|wanted| audiences.contains(&wanted.as_str())) {
        return Err(format!("expected audience in {:?} got {audiences:?}", issuer.audiences));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(claims: &str, want: Result<(), &str>) {
        let issuer = Issuer { audiences: vec!["kubernetes".to_owned()], ..Issuer::default() };
        let claims = serde_json::from_str(claims).unwrap();
        assert_eq!(check_claims(&issuer, &claims, 1000.0), want.map_err(str::to_owned));
    }

    #[test]
    fn a_token_is_for_us_and_good_now() {
        check(r#"{"exp":2000,"aud":"kubernetes"}"#, Ok(()));
        check(r#"{"exp":2000,"aud":["x","kubernetes"],"nbf":1200}"#, Ok(()));
        check(r#"{"aud":"kubernetes"}"#, Err("verify token: token has no expiry"));
        check(r#"{"exp":999,"aud":"kubernetes"}"#, Err("verify token: oidc: token is expired"));
        check(
            r#"{"exp":2000,"aud":"kubernetes","nbf":1400}"#,
            Err("verify token: oidc: current time is before the nbf (not before) time"),
        );
        check(r#"{"exp":2000,"aud":"x"}"#, Err(r#"expected audience in ["kubernetes"] got ["x"]"#));
    }
}
