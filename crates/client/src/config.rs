//! From a kubeconfig, or from a service in the same process, to a [`kube::Client`].
//!
//! Both roads end in the same client: with a user agent, a request rate, and the fence of leader election if there is
//! one; nothing behind it can tell whether a socket is involved.

use std::{path::Path, sync::Arc};

use futures::future::BoxFuture;
use http::{
    HeaderValue, Request, Response,
    header::{AUTHORIZATION, USER_AGENT},
};
use kube::{
    Client,
    client::{Body, ConfigExt, retry::RetryPolicy},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, retry::RetryLayer};

use crate::{rate_limit::RateLimiter, transport::Transport};

/// The version that the project is compatible with, as user agents show it.
pub const KUBERNETES_VERSION: &str = "v1.36.2";

/// What a client is besides its address and its identity.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The whole `User-Agent` header; see [`user_agent`].
    pub user_agent: String,
    /// Requests per second over time; not positive means no limit.
    pub qps: f64,
    /// Requests that may go at once before `qps` holds.
    pub burst: u32,
}

impl ClientOptions {
    /// `component`'s own user agent, without a limit of requests.
    #[must_use]
    pub fn unlimited(component: &str) -> Self {
        Self { user_agent: user_agent(component, None), qps: -1.0, burst: 1 }
    }

    /// `component`'s own user agent with a limit of requests.
    #[must_use]
    pub fn limited(component: &str, qps: f64, burst: u32) -> Self {
        Self { qps, burst, ..Self::unlimited(component) }
    }
}

/// `kube-scheduler/v1.36.2 (linux/amd64) kubernetes/kelson`, with `/suffix` for the parts of a component that have an
/// identity of their own.
#[must_use]
pub fn user_agent(component: &str, suffix: Option<&str>) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let agent = format!("{component}/{KUBERNETES_VERSION} ({os}/{arch}) kubernetes/kelson", os = std::env::consts::OS);
    match suffix {
        Some(suffix) => format!("{agent}/{suffix}"),
        None => agent,
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("kubeconfig {path}")]
    Kubeconfig { path: String, source: Box<KubeconfigError> },
    #[error("connection of kubeconfig {path}")]
    Connection { path: String, source: Box<kube::Error> },
    #[error("client certificate {path}")]
    ClientCertificate { path: String, source: rustls::pki_types::pem::Error },
    #[error("key of client certificate {path} does not work")]
    ClientKey { path: String, source: rustls::Error },
    #[error("tls-server-name {0:?} is not a host name")]
    ServerName(String),
    #[error("user agent {0:?} is not a header value")]
    UserAgent(String),
}

/// Reads `path` and makes a client of its current context. Token files are read again when they change, and so are
/// client certificates: connections made with the old one are left to finish.
pub fn from_kubeconfig<'a>(path: &'a Path, options: &'a ClientOptions) -> BoxFuture<'a, Result<Client, ConfigError>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(async move {
        let named = || path.display().to_string();
        let unreadable = |source| ConfigError::Kubeconfig { path: named(), source: Box::new(source) };
        let kubeconfig = Kubeconfig::read_from(path).map_err(unreadable)?;
        from_parsed(kubeconfig, &named(), options).await
    })
}

/// The same from the text of a kubeconfig; relative paths in it are relative to the working directory.
pub fn from_kubeconfig_text<'a>(
    text: &'a str,
    options: &'a ClientOptions,
) -> BoxFuture<'a, Result<Client, ConfigError>> {
    Box::pin(async move {
        let inline = "(inline)".to_owned();
        let kubeconfig = Kubeconfig::from_yaml(text)
            .map_err(|source| ConfigError::Kubeconfig { path: inline.clone(), source: Box::new(source) })?;
        from_parsed(kubeconfig, &inline, options).await
    })
}

/// The same connection without the kubeconfig's user: for clients that get an identity of their own from
/// [`with_token`].
pub fn without_identity<'a>(path: &'a Path, options: &'a ClientOptions) -> BoxFuture<'a, Result<Client, ConfigError>> {
    Box::pin(async move {
        let named = path.display().to_string();
        let unreadable = |source| ConfigError::Kubeconfig { path: named.clone(), source: Box::new(source) };
        let mut kubeconfig = Kubeconfig::read_from(path).map_err(unreadable)?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(AuthInfo::default());
        }
        from_parsed(kubeconfig, &named, options).await
    })
}

/// Where a client's bearer token comes from; asked before every request, so it answers from memory whenever it can.
pub trait TokenSource: Send + Sync + 'static {
    /// The `Authorization` header.
    fn authorization(&self) -> BoxFuture<'_, Result<HeaderValue, BoxError>>;
}

/// A client over `client`'s connection that shows the tokens of `source`.
pub fn with_token(
    client: &Client,
    source: Arc<dyn TokenSource>,
    options: &ClientOptions,
) -> Result<Client, ConfigError> {
    let (namespace, client) = (client.default_namespace().to_owned(), client.clone());
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (client, source) = (client.clone(), source.clone());
        async move {
            let authorization = source.authorization().await?;
            request.headers_mut().insert(AUTHORIZATION, authorization);
            client.send(request).await.map_err(BoxError::from)
        }
    });
    finish(service, namespace, options)
}

async fn from_parsed(kubeconfig: Kubeconfig, path: &str, options: &ClientOptions) -> Result<Client, ConfigError> {
    let unreadable = |source| ConfigError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let unusable = |source| ConfigError::Connection { path: path.to_owned(), source: Box::new(source) };
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unreadable)?;
    let namespace = config.default_namespace.clone();
    let transport = Transport::new(&config, path)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .map_err(BoxError::from)
        .service(transport);
    // The authentication layer cannot be cloned, which the retry layer and the limiter below need.
    let service = tower::buffer::Buffer::new(service.boxed(), 1024);
    let service = ServiceBuilder::new().layer(RetryLayer::new(RetryPolicy::server_retry())).service(service);
    finish(service, namespace, options)
}

/// Makes a client of a service that answers API requests, such as an API server in the same process. The service has
/// to know by itself who is asking.
pub fn from_service<S, B>(service: S, options: &ClientOptions) -> Result<Client, ConfigError>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    finish(service, "default".to_owned(), options)
}

fn finish<S, B>(service: S, namespace: String, options: &ClientOptions) -> Result<Client, ConfigError>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let agent =
        HeaderValue::from_str(&options.user_agent).map_err(|_| ConfigError::UserAgent(options.user_agent.clone()))?;
    let limiter = RateLimiter::new(options.qps, options.burst);
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (service, limiter, agent) = (service.clone(), limiter.clone(), agent.clone());
        async move {
            limiter.turn().await;
            request.headers_mut().entry(USER_AGENT).or_insert(agent);
            service.oneshot(request).await.map_err(Into::<BoxError>::into)
        }
    });
    Ok(Client::new(service, namespace))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn user_agents_look_like_upstreams() {
        let agent = user_agent("kube-scheduler", None);
        assert!(agent.starts_with("kube-scheduler/v1.36.2 (linux/"), "{agent}");
        assert!(
            user_agent("kube-controller-manager", Some("replicaset-controller")).ends_with("/replicaset-controller")
        );
    }

    #[tokio::test]
    async fn an_in_process_service_answers_with_the_user_agent_seen() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            let agent = request.headers().get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
            Ok::<_, Infallible>(Response::new(Body::from(agent.into_bytes())))
        });
        let client = from_service(service, &ClientOptions::unlimited("kubelet")).unwrap();
        let request = Request::get("/version").body(Vec::new()).unwrap();
        assert_eq!(client.request_text(request).await.unwrap(), user_agent("kubelet", None));
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let err = from_kubeconfig(Path::new("/nonexistent/conf"), &ClientOptions::unlimited("x")).await.err().unwrap();
        assert_eq!(err.to_string(), "kubeconfig /nonexistent/conf");
    }
}
