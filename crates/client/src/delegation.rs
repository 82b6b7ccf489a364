//! Lets the API server decide who may use a component's own endpoints: a `TokenReview` says who it is, a
//! `SubjectAccessReview` what they may do.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use component_base::serving::Guard;
use http::{StatusCode, header::AUTHORIZATION, request::Parts};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;

/// How long an answer is good, as upstream's components keep it.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// Answers kept at most.
const KEPT: usize = 1024;

/// Token, path and verb.
type Question = (String, String, String);

/// Guards a component's endpoints by asking the API server.
pub struct DelegatedGuard {
    /// Asked who somebody is.
    authentication: Client,
    /// Asked what they may do.
    authorization: Client,
    answers: Mutex<HashMap<Question, (StatusCode, Instant)>>,
}

impl DelegatedGuard {
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self::with_clients(client.clone(), client)
    }

    /// Asks the two questions of API servers that may differ.
    #[must_use]
    pub fn with_clients(authentication: Client, authorization: Client) -> Self {
        Self { authentication, authorization, answers: Mutex::default() }
    }

    async fn ask(&self, token: &str, path: &str, verb: &str) -> Result<StatusCode, kube::Error> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let review =
            Api::<TokenReview>::all(self.authentication.clone()).create(&PostParams::default(), &review).await?;
        let status = review.status.unwrap_or_default();
        let (Some(true), Some(user)) = (status.authenticated, status.user) else { return Ok(StatusCode::UNAUTHORIZED) };
        if self.may(&user, path, verb).await? { Ok(StatusCode::OK) } else { Ok(StatusCode::FORBIDDEN) }
    }

    async fn may(&self, user: &UserInfo, path: &str, verb: &str) -> Result<bool, kube::Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                groups: user.groups.clone(),
                uid: user.uid.clone(),
                extra: user.extra.clone(),
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.to_owned()),
                    verb: Some(verb.to_owned()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let review =
            Api::<SubjectAccessReview>::all(self.authorization.clone()).create(&PostParams::default(), &review).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}

#[async_trait]
impl Guard for DelegatedGuard {
    async fn allows(&self, request: &Parts) -> Result<(), StatusCode> {
        let token = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = token.and_then(|value| value.strip_prefix("Bearer ")) else {
            return Err(StatusCode::UNAUTHORIZED);
        };
        let (path, verb) = (request.uri.path(), request.method.as_str().to_lowercase());
        let key = (token.to_owned(), path.to_owned(), verb.clone());
        let known = self.answers.lock().get(&key).copied();
        let code = match known.filter(|(_, at)| at.elapsed() < GOOD_FOR) {
            Some((code, _)) => code,
            None => {
                let code = self.ask(token, path, &verb).await.map_err(|err| {
                    tracing::error!(%err, path, "the API server cannot be asked about a request");
                    StatusCode::INTERNAL_SERVER_ERROR
                })?;
                let mut answers = self.answers.lock();
                if answers.len() >= KEPT {
                    answers.retain(|_, (_, at)| at.elapsed() < GOOD_FOR);
                }
                if answers.len() < KEPT {
                    answers.insert(key, (code, Instant::now()));
                }
                code
            }
        };
        if code == StatusCode::OK { Ok(()) } else { Err(code) }
    }
}
