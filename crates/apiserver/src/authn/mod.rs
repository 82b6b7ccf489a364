//! Authentication: from a request's credentials to a user.

pub(crate) mod anonymous;
pub(crate) mod bootstrap_token;
pub mod certificate;
pub(crate) mod jwt;
pub(crate) mod request_header;
pub mod service_account;
pub mod signer;
pub(crate) mod token_file;
pub(crate) mod webhook;

use async_trait::async_trait;
use http::request::Parts;

use crate::attributes::UserInfo;

/// The outcome of one authenticator.
#[derive(Debug)]
pub enum Outcome {
    /// The credentials are valid.
    User(Authenticated),
    /// This authenticator has nothing to say: no credentials of its kind are there.
    Pass,
    /// There were credentials of its kind, and they are not valid.
    Failed(String),
}

#[derive(Clone, Debug, Default)]
pub struct Authenticated {
    pub user: UserInfo,
    /// Audiences that the token was valid for; empty: the server's own.
    pub audiences: Vec<String>,
}

/// The client certificates of the connection, verified chain first, in DER. In the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificates(pub std::sync::Arc<Vec<Vec<u8>>>);

/// The same, of a proxy that may speak for its users.
#[derive(Clone, Debug)]
pub(crate) struct ProxyCertificates(pub PeerCertificates);

#[async_trait]
pub trait Authenticator: Send + Sync {
    async fn authenticate(&self, request: &Parts) -> Outcome;
}

/// The bearer token of a request.
#[must_use]
pub fn bearer_token(request: &Parts) -> Option<&str> {
    let value = request.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
