//! Service-account tokens: verifying those that pods show, and making those that TokenRequest asks for.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::meta::{Gvk, Gvr};
use apimachinery::status::Status;
use async_trait::async_trait;
use http::request::Parts;
use jiff::Timestamp;

use super::signer::{Signer, VerifyingKey};
use super::{Authenticated, Authenticator, Outcome, bearer_token};
use crate::attributes::UserInfo;
use crate::lister::Lister;

/// Tokens of less than ten minutes are refused, and none lives longer than 2^32 seconds.
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
const DEFAULT_SECONDS: i64 = 3600;
/// A pod's token of 3607 s (what admission asks for) lives a year, but its user is warned after the hour: old clients
/// that never read the file again go on working (KEP-1205).
const EXTENDED_ASK: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

pub struct ServiceAccountTokens {
    pub issuers: Vec<String>,
    pub audiences: Vec<String>,
    pub keys: Arc<Vec<VerifyingKey>>,
    pub lister: Arc<dyn Lister>,
}

/// What went wrong with a token.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It is none of ours.
    Foreign,
    Bad(String),
}

impl ServiceAccountTokens {
    /// The user of a token, if it is one of ours and good for one of `audiences`.
    fn check(&self, token: &str, audiences: &[String], now: i64) -> Result<Authenticated, Refusal> {
        let claimed = unverified_claims(token).ok_or(Refusal::Foreign)?;
        let issuer = claimed.str_at(&["iss"]);
        if !self.issuers.iter().any(|i| i == issuer) {
            return Err(Refusal::Foreign);
        }
        let bad = |why: &str| Refusal::Bad(why.to_owned());
        let claims = self.keys.iter().find_map(|k| k.verify(token)).ok_or_else(|| bad("the signature is not ours"))?;
        let time = |name: &str| claims[name].as_f64();
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit a float")]
        let now = now as f64;
        if time("exp").is_none_or(|exp| exp <= now) {
            return Err(bad("service account token has expired"));
        }
        if time("nbf").is_some_and(|nbf| nbf > now + 10.0) {
            return Err(bad("service account token is not valid yet"));
        }
        let of_token: Vec<String> = match &claims["aud"] {
            Value::String(one) => vec![one.to_string()],
            list => list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        };
        let good: Vec<String> = audiences.iter().filter(|a| of_token.contains(a)).cloned().collect();
        if good.is_empty() {
            return Err(Refusal::Bad(format!(
                "token audiences {of_token:?} is invalid for the target audiences {audiences:?}"
            )));
        }
        let private = &claims["kubernetes.io"];
        let namespace = private.str_at(&["namespace"]);
        let account = &private["serviceaccount"];
        let name = account.str_at(&["name"]);
        match self.lister.get("serviceaccounts", namespace, name) {
            None => return Err(Refusal::Bad(format!("serviceaccounts \"{name}\" not found"))),
            Some(present) => check_uid("service account", "", present.uid(), account.str_at(&["uid"]))?,
        }
        let mut extra = std::collections::BTreeMap::new();
        if let Some(id) = claims["jti"].as_str() {
            extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")]);
        }
        for (kind, resource) in [("pod", "pods"), ("secret", "secrets"), ("node", "nodes")] {
            let reference = &private[kind];
            if reference.is_null() {
                continue;
            }
            let (name, uid) = (reference.str_at(&["name"]), reference.str_at(&["uid"]));
            let ns = if kind == "node" { "" } else { namespace };
            // A node that a pod's token mentions is a fact about the pod; only a token bound to the node falls with it.
            let binding = kind != "node" || private["pod"].is_null();
            if binding {
                let present = self.lister.get(resource, ns, name);
                let present = present.ok_or_else(|| bad("service account token has been invalidated"))?;
                check_uid(kind, &format!("service account {kind} ref "), present.uid(), uid)?;
            }
            if kind != "secret" {
                extra.insert(format!("authentication.kubernetes.io/{kind}-name"), vec![name.to_owned()]);
                extra.insert(format!("authentication.kubernetes.io/{kind}-uid"), vec![uid.to_owned()]);
            }
        }
        let user = UserInfo {
            name: format!("system:serviceaccount:{namespace}:{}", account.str_at(&["name"])),
            uid: account.str_at(&["uid"]).to_owned(),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            extra,
        };
        Ok(Authenticated { user, audiences: good })
    }

    /// As the authenticator, for a TokenReview: with audiences of its own.
    #[must_use]
    pub fn review(&self, token: &str, audiences: &[String]) -> Outcome {
        let audiences = if audiences.is_empty() { &self.audiences } else { audiences };
        match self.check(token, audiences, Timestamp::now().as_second()) {
            Ok(user) => Outcome::User(user),
            Err(Refusal::Foreign) => Outcome::Pass,
            // Upstream joins the findings of its authenticators; the plainest one is always among them.
            Err(Refusal::Bad(why)) => Outcome::Failed(format!("[invalid bearer token, {why}]")),
        }
    }
}

#[async_trait]
impl Authenticator for ServiceAccountTokens {
    async fn authenticate(&self, request: &Parts) -> Outcome {
        match bearer_token(request) {
            Some(token) => self.review(token, &[]),
            None => Outcome::Pass,
        }
    }
}

/// An object of the same name that was made later is another one.
fn check_uid(shown: &str, claim: &str, present: &str, claimed: &str) -> Result<(), Refusal> {
    if present == claimed {
        return Ok(());
    }
    Err(Refusal::Bad(format!("{shown} UID ({present}) does not match {claim}claim ({claimed})")))
}

/// The claims of something that looks like a JWT, before anything is believed.
pub(super) fn unverified_claims(token: &str) -> Option<Value> {
    use base64::Engine;
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// Makes tokens for TokenRequest.
pub struct TokenIssuer {
    pub signer: Signer,
    pub issuer: String,
    pub audiences: Vec<String>,
    pub max_seconds: Option<i64>,
    pub extend: bool,
    pub lister: Arc<dyn Lister>,
}

impl TokenIssuer {
    /// Answers a TokenRequest for an account.
    ///
    /// # Errors
    /// What is wrong with the request, as a Status.
    pub fn issue(&self, account: &Value, mut request: Value) -> Result<Value, Status> {
        let gvk = Gvk::new("authentication.k8s.io", "v1", "TokenRequest");
        request.set(&["kind"], "TokenRequest");
        request.set(&["apiVersion"], "authentication.k8s.io/v1");
        if request["spec"]["audiences"].items().is_empty() {
            let audiences: Vec<Value> = self.audiences.iter().map(|a| a.as_str().into()).collect();
            request.set(&["spec", "audiences"], audiences);
        }
        request.set_default(&["spec", "expirationSeconds"], DEFAULT_SECONDS);
        let spec = Cursor::root(&request).field("spec");
        let mut errs = FieldErrors::new();
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or_default();
        if seconds < MIN_SECONDS {
            errs.invalid(&spec.field("expirationSeconds"), "may not specify a duration less than 10 minutes");
        }
        if seconds > MAX_SECONDS {
            errs.invalid(&spec.field("expirationSeconds"), "may not specify a duration larger than 2^32 seconds");
        }
        if !errs.is_empty() {
            return Err(Status::invalid(&gvk, "", &errs));
        }
        let namespace = account.namespace().to_owned();
        let bound = self.bound_object(&request["spec"]["boundObjectRef"], account)?;

        let seconds = self.max_seconds.map_or(seconds, |max| seconds.min(max));
        let now = Timestamp::now();
        let extended = self.extend && bound.as_ref().is_some_and(|(kind, _)| *kind == "pod") && seconds == EXTENDED_ASK;
        let life = if extended { EXTENDED_SECONDS } else { seconds };
        let mut private = Value::from([
            ("namespace", namespace.into()),
            ("serviceaccount", Value::from([("name", account.name().into()), ("uid", account.uid().into())])),
        ]);
        if extended {
            private.set(&["warnafter"], now.as_second() + seconds);
        }
        if let Some((kind, object)) = &bound {
            private.set(&[kind], Value::from([("name", object.name().into()), ("uid", object.uid().into())]));
            if *kind == "pod"
                && let Some(node) = self.lister.get("nodes", "", object.str_at(&["spec", "nodeName"]))
            {
                private.set(&["node"], Value::from([("name", node.name().into()), ("uid", node.uid().into())]));
            }
        }
        let claims = Value::from([
            ("iss", self.issuer.as_str().into()),
            ("sub", format!("system:serviceaccount:{}:{}", account.namespace(), account.name()).into()),
            ("aud", request["spec"]["audiences"].clone()),
            ("iat", now.as_second().into()),
            ("nbf", now.as_second().into()),
            ("exp", (now.as_second() + life).into()),
            ("jti", uuid::Uuid::new_v4().to_string().into()),
            ("kubernetes.io", private),
        ]);
        let token =
            self.signer.sign(&claims).map_err(|why| Status::internal(format!("failed to generate token: {why}")))?;
        let expires =
            Timestamp::from_second(now.as_second() + seconds).map_or_else(|_| String::new(), |t| t.to_string());
        request.set(&["spec", "expirationSeconds"], seconds);
        request.set(&["status"], Value::from([("token", token.into()), ("expirationTimestamp", expires.into())]));
        let meta = request.entry(&["metadata"]).make_object();
        meta.insert("name", account.name());
        meta.insert("namespace", account.namespace());
        meta.insert("uid", account.uid());
        meta.insert("creationTimestamp", now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        Ok(request)
    }

    /// The pod, Secret or Node that the token shall fall with.
    fn bound_object(&self, reference: &Value, account: &Value) -> Result<Option<(&'static str, Arc<Value>)>, Status> {
        if reference.is_null() {
            return Ok(None);
        }
        let (kind, name, uid) = (reference.str_at(&["kind"]), reference.str_at(&["name"]), reference.str_at(&["uid"]));
        let (word, resource, namespace) = match (kind, reference.str_at(&["apiVersion"])) {
            ("Pod", "v1") => ("pod", "pods", account.namespace()),
            ("Secret", "v1") => ("secret", "secrets", account.namespace()),
            ("Node", "v1") => ("node", "nodes", ""),
            (kind, version) => {
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                let shown = format!("{group}/{version}, Kind={kind}");
                return Err(Status::bad_request(format!("cannot bind token to object of type {shown}")));
            }
        };
        let gvr = Gvr::new("", "v1", resource);
        let object = self.lister.get(resource, namespace, name).ok_or_else(|| Status::not_found(&gvr, name))?;
        if !uid.is_empty() && object.uid() != uid {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(&gvr, name, &why));
        }
        if word == "pod" {
            let pods_account = object.str_at(&["spec", "serviceAccountName"]);
            if pods_account != account.name() {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                    account.name()
                )));
            }
        }
        Ok(Some((word, object)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2\nOF/2NxApJCzGCEDdfSp6VQO30hyhRANCAAQRWz+jn65BtOMvdyHKcvjBeBSDZH2r\n1RTwjmYSi9R/zpBnuQ4EiMnCqfMPWiZqB4QdbAd0E7oH50VpuZ1P087G\n-----END PRIVATE KEY-----\n";

    fn setup() -> (TokenIssuer, ServiceAccountTokens, Arc<MapLister>, Value) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sa.key");
        std::fs::write(&path, KEY).unwrap();
        let lister = Arc::new(MapLister::default());
        let put = |resource: &str, text: &str| lister.put(resource, serde_json::from_str(text).unwrap());
        let account = r#"{"metadata":{"name":"bot","namespace":"dev","uid":"u1"}}"#;
        put("serviceaccounts", account);
        put("pods", r#"{"metadata":{"name":"p","namespace":"dev","uid":"u2"},"spec":{"serviceAccountName":"bot"}}"#);
        let audiences = vec!["https://issuer".to_owned()];
        let issuer = TokenIssuer {
            signer: Signer::load(&path).unwrap(),
            issuer: "https://issuer".into(),
            audiences: audiences.clone(),
            max_seconds: None,
            extend: true,
            lister: Arc::clone(&lister) as Arc<dyn Lister>,
        };
        let tokens = ServiceAccountTokens {
            issuers: vec!["https://issuer".into()],
            audiences,
            keys: Arc::new(VerifyingKey::load(&path).unwrap()),
            lister: Arc::clone(&lister) as Arc<dyn Lister>,
        };
        (issuer, tokens, lister, serde_json::from_str(account).unwrap())
    }

    fn request(spec: &str) -> Value {
        serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap()
    }

    #[test]
    fn a_token_is_its_accounts_until_its_pod_goes() {
        let (issuer, tokens, lister, account) = setup();
        let made = issuer
            .issue(&account, request(r#"{"expirationSeconds":3607,"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"p","uid":"u2"}}"#))
            .unwrap();
        let token = made.str_at(&["status", "token"]);
        match tokens.review(token, &[]) {
            Outcome::User(a) => {
                assert_eq!(a.user.name, "system:serviceaccount:dev:bot");
                assert_eq!(a.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(tokens.review(token, &["else".to_owned()]), Outcome::Failed(_)));
        assert!(matches!(tokens.review("not.a.token", &[]), Outcome::Pass));
        let forged = format!("{}x", &token[..token.len() - 4]);
        assert!(matches!(tokens.review(&forged, &[]), Outcome::Failed(_)));
        lister.put("pods", serde_json::from_str(r#"{"metadata":{"name":"p","namespace":"dev","uid":"u3"}}"#).unwrap());
        assert!(matches!(tokens.review(token, &[]), Outcome::Failed(_)));
    }

    #[test]
    fn a_token_ends() {
        let (issuer, tokens, _, account) = setup();
        let made = issuer.issue(&account, request("{}")).unwrap();
        let token = made.str_at(&["status", "token"]);
        let at = |seconds: i64| tokens.check(token, &tokens.audiences, Timestamp::now().as_second() + seconds).is_ok();
        assert!(at(3590) && !at(3610));
        assert_eq!(made["spec"]["expirationSeconds"].as_i64(), Some(3600));
    }

    #[test]
    fn bad_requests_are_refused() {
        let (issuer, _, _, account) = setup();
        assert_eq!(issuer.issue(&account, request(r#"{"expirationSeconds":60}"#)).unwrap_err().code, 422);
        let missing = r#"{"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"none"}}"#;
        assert_eq!(issuer.issue(&account, request(missing)).unwrap_err().code, 404);
        let replaced = r#"{"boundObjectRef":{"kind":"Pod","apiVersion":"v1","name":"p","uid":"x"}}"#;
        assert_eq!(issuer.issue(&account, request(replaced)).unwrap_err().code, 409);
    }
}
