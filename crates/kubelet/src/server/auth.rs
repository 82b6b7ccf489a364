//! Who may use the kubelet's API: client certificates and TokenReview, then SubjectAccessReview on `nodes/…`.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;

use super::Refused;
use crate::config::Config;

/// How long an answer of the apiserver is believed.
const ALLOWED_FOR: Duration = Duration::from_secs(300);
const REFUSED_FOR: Duration = Duration::from_secs(30);
const CACHE_LIMIT: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
}

/// Who wants to do what (verb, subresource of the node).
type Question = (User, &'static str, &'static str);

pub(super) struct Auth {
    client: Option<kube::Client>,
    anonymous: bool,
    tokens: bool,
    authorize: bool,
    reviewed: Mutex<HashMap<String, (Option<User>, Instant)>>,
    decided: Mutex<HashMap<Question, (bool, Instant)>>,
}

impl Auth {
    pub(super) fn new(client: Option<kube::Client>, config: &Config) -> Self {
        Auth {
            client,
            anonymous: config.anonymous_auth,
            tokens: config.webhook_authentication,
            authorize: config.webhook_authorization,
            reviewed: Mutex::default(),
            decided: Mutex::default(),
        }
    }

    pub(super) async fn check(
        &self,
        request: &Request<Incoming>,
        peer: Option<&[u8]>,
        node: &str,
    ) -> Result<(), Refused> {
        let unauthorized = || Refused(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        let user = match (peer.and_then(user_of_certificate), bearer(request)) {
            (Some(user), _) => user,
            (None, Some(token)) => self.review(&token).await.ok_or_else(unauthorized)?,
            (None, None) if self.anonymous => User {
                name: "system:anonymous".into(),
                groups: vec!["system:unauthenticated".into()],
                ..User::default()
            },
            (None, None) => return Err(unauthorized()),
        };
        if !self.authorize {
            return Ok(());
        }
        let verb = verb_of(request.method());
        let subresources = subresources_of(request.uri().path());
        for subresource in subresources {
            if self.allowed(&user, verb, subresource, node).await {
                return Ok(());
            }
        }
        let shown = subresources.last().copied().unwrap_or("proxy");
        let text = format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{shown}])\n", user.name);
        Err(Refused(StatusCode::FORBIDDEN, text))
    }

    async fn review(&self, token: &str) -> Option<User> {
        if !self.tokens {
            return None;
        }
        if let Some((user, until)) = self.reviewed.lock().get(token)
            && Instant::now() < *until
        {
            return user.clone();
        }
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone()?);
        let status = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status?,
            Err(error) => {
                tracing::warn!(%error, "a token could not be reviewed");
                return None;
            }
        };
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|u| User {
            name: u.username.unwrap_or_default(),
            uid: u.uid.unwrap_or_default(),
            groups: u.groups.unwrap_or_default(),
        });
        let until = Instant::now() + if user.is_some() { ALLOWED_FOR / 3 } else { REFUSED_FOR };
        let mut reviewed = self.reviewed.lock();
        if reviewed.len() >= CACHE_LIMIT {
            reviewed.clear();
        }
        reviewed.insert(token.to_owned(), (user.clone(), until));
        user
    }

    async fn allowed(&self, user: &User, verb: &'static str, subresource: &'static str, node: &str) -> bool {
        let key = (user.clone(), verb, subresource);
        if let Some((allowed, until)) = self.decided.lock().get(&key)
            && Instant::now() < *until
        {
            return *allowed;
        }
        let Some(client) = self.client.clone() else { return false };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(BTreeMap::new()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(node.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let allowed = match Api::<SubjectAccessReview>::all(client).create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.is_some_and(|s| s.allowed),
            Err(error) => {
                tracing::warn!(%error, "a request to the kubelet could not be authorized");
                return false;
            }
        };
        let until = Instant::now() + if allowed { ALLOWED_FOR } else { REFUSED_FOR };
        let mut decided = self.decided.lock();
        if decided.len() >= CACHE_LIMIT {
            decided.clear();
        }
        decided.insert(key, (allowed, until));
        allowed
    }
}

fn bearer(request: &Request<Incoming>) -> Option<String> {
    let value = request.headers().get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned()).filter(|t| !t.is_empty())
}

/// The certificate has been verified by the TLS handshake.
fn user_of_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = certificate.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned);
    let groups = groups.chain(["system:authenticated".to_owned()]).collect();
    Some(User { name, groups, ..User::default() })
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// Fine-grained rights first (KEP-2862), `nodes/proxy` for everything.
fn subresources_of(path: &str) -> &'static [&'static str] {
    match path.trim_matches('/').split('/').next().unwrap_or_default() {
        "stats" => &["stats", "proxy"],
        "metrics" => &["metrics", "proxy"],
        "logs" => &["log", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "checkpoint" => &["checkpoint"],
        _ => &["proxy"],
    }
}
