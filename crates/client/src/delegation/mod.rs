//! A component's secure port, where the API server decides who may use it: a `TokenReview` says who somebody with a token
//! is, a `SubjectAccessReview` what he may do. Certificates and proxies are judged here, by the authorities that the flags
//! or the cluster name.

mod authentication;
mod authorities;
mod authorization;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use component_base::secure_port::SecurePort;
use component_base::serving::{Endpoints, Guard, Refused, Server};
use component_base::tls::TlsError;
use futures::future::BoxFuture;
use http::request::Parts;
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Client;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::config::{ClientOptions, ConfigError, from_kubeconfig};
use authentication::Authentication;
use authorization::Authorization;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server for authentication and authorization")]
    Client(#[from] ConfigError),
    #[error("serving certificate")]
    Tls(#[from] TlsError),
    #[error("unable to load the authorities of kube-system/extension-apiserver-authentication")]
    Lookup(#[source] kube::Error),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// Serves the endpoints on the secure port until `stop`, in a task of its own. `client` is the component's own connection.
/// Returns the address that it listens on.
pub fn serve<'a>(
    port: &'a SecurePort,
    client: &'a Client,
    endpoints: Endpoints,
    stop: CancellationToken,
) -> BoxFuture<'a, Result<SocketAddr, Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(bind_and_serve(port, client, endpoints, stop))
}

async fn bind_and_serve(
    port: &SecurePort,
    client: &Client,
    endpoints: Endpoints,
    stop: CancellationToken,
) -> Result<SocketAddr, Error> {
    let component = endpoints.component;
    let asked = async |kubeconfig: &Option<PathBuf>| match kubeconfig {
        Some(path) => from_kubeconfig(path, &ClientOptions::unlimited(component)).await,
        None => Ok(client.clone()),
    };
    let guard = DelegatedGuard {
        authentication: Authentication::new(port, asked(&port.authentication).await?).await?,
        authorization: Authorization::new(port, asked(&port.authorization).await?),
    };
    let tls = Some(port.tls(component)?);
    let address = port.address;
    let server = Server { address, tls, endpoints, guard: Some(Arc::new(guard)) };
    server.start(stop).await.map_err(|source| Error::Listen { address, source })
}

struct DelegatedGuard {
    authentication: Authentication,
    authorization: Authorization,
}

#[async_trait]
impl Guard for DelegatedGuard {
    async fn allows(&self, request: &Parts) -> Result<(), Refused> {
        let failed = |what: &str, error: kube::Error| {
            tracing::error!(%error, path = request.uri.path(), "the API server cannot be asked about a request");
            Refused::Failed { message: format!("Internal error occurred: {what} failed") }
        };
        let user = self.authentication.user_of(request).await.map_err(|error| failed("authentication", error))?;
        let user = user.ok_or(Refused::Unauthorized)?;
        let (path, verb) = (request.uri.path(), request.method.as_str().to_lowercase());
        if self.authorization.allows(&user, path, &verb).await.map_err(|error| failed("authorization", error))? {
            return Ok(());
        }
        let name = user.username.unwrap_or_default();
        Err(Refused::Forbidden { message: format!("forbidden: User {name:?} cannot {verb} path {path:?}") })
    }
}

/// A user of the API's, with the groups that go with it.
fn user(name: &str, groups: impl IntoIterator<Item = String>) -> UserInfo {
    UserInfo { username: Some(name.to_owned()), groups: Some(groups.into_iter().collect()), ..UserInfo::default() }
}

/// Answers that are believed for a while.
struct Answers<Q, A>(Mutex<HashMap<Q, (A, Instant)>>);

impl<Q: Hash + Eq, A: Clone> Answers<Q, A> {
    /// Answers kept at most.
    const KEPT: usize = 1024;

    fn new() -> Self {
        Answers(Mutex::default())
    }

    fn get(&self, question: &Q) -> Option<A> {
        let answers = self.0.lock();
        answers.get(question).filter(|(_, until)| Instant::now() < *until).map(|(answer, _)| answer.clone())
    }

    fn keep(&self, question: Q, answer: A, good_for: Duration) {
        let mut answers = self.0.lock();
        let now = Instant::now();
        if answers.len() >= Self::KEPT {
            answers.retain(|_, (_, until)| now < *until);
        }
        if answers.len() < Self::KEPT {
            answers.insert(question, (answer, now + good_for));
        }
    }
}

#[cfg(test)]
mod tests;
