//! HTTP/2 (or 1.1) over TLS to the API server.
//!
//! One connection carries everything, as with upstream's client, until it has as many open streams as API servers
//! allow (100 by default); then the next connection is opened, so that watches never starve requests.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::client::{Body, ConfigExt};
use parking_lot::Mutex;
use rustls::{
    ClientConfig,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use tokio::time::Instant;
use tower::{BoxError, Service};

use crate::config::ConfigError;

/// Streams that one connection carries at most; servers' usual limit is 100.
const STREAMS_PER_CONNECTION: usize = 90;
/// How often client certificate files are looked at, while requests are made.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);
/// A connection with open streams that is silent for this long is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

type Hyper = HyperClient<HttpsConnector<HttpConnector>, Body>;

#[derive(Clone)]
pub(crate) struct Transport(Arc<Shared>);

struct Shared {
    tls: ClientConfig,
    server_name: Option<rustls::pki_types::ServerName<'static>>,
    identity: Option<Arc<FileIdentity>>,
    connections: Mutex<Connections>,
}

struct Connections {
    open: Vec<Connection>,
    /// When the certificate files were last looked at, and what they looked like.
    checked: Instant,
    stamp: Option<SystemTime>,
}

struct Connection {
    hyper: Hyper,
    streams: Arc<AtomicUsize>,
}

impl Transport {
    pub(crate) fn new(config: &kube::Config, path: &str) -> Result<Self, ConfigError> {
        let unusable = |source| ConfigError::Connection { path: path.to_owned(), source: Box::new(source) };
        let mut tls = config.rustls_client_config().map_err(unusable)?;
        let identity = match (&config.auth_info.client_certificate, &config.auth_info.client_key) {
            (Some(cert), Some(key)) if config.auth_info.client_certificate_data.is_none() => {
                let identity = Arc::new(FileIdentity::load(cert.into(), key.into())?);
                tls.client_auth_cert_resolver = identity.clone();
                Some(identity)
            }
            _ => None,
        };
        let server_name = match &config.tls_server_name {
            Some(name) => Some(
                rustls::pki_types::ServerName::try_from(name.clone())
                    .map_err(|_| ConfigError::ServerName(name.clone()))?,
            ),
            None => None,
        };
        let stamp = identity.as_ref().and_then(|identity| identity.stamp());
        let connections = Mutex::new(Connections { open: Vec::new(), checked: Instant::now(), stamp });
        Ok(Self(Arc::new(Shared { tls, server_name, identity, connections })))
    }
}

impl Shared {
    fn connect(&self) -> Hyper {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(30)));
        http.set_keepalive(Some(Duration::from_secs(30)));
        let mut builder = HttpsConnectorBuilder::new().with_tls_config(self.tls.clone()).https_or_http();
        if let Some(name) = &self.server_name {
            builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone()));
        }
        let connector = builder.enable_all_versions().wrap_connector(http);
        HyperClient::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_adaptive_window(true)
            .build(connector)
    }

    /// The connection for the next request, with one more stream counted on it.
    fn choose(&self) -> (Hyper, StreamGuard) {
        let mut connections = self.connections.lock();
        if let Some(identity) = &self.identity
            && connections.checked.elapsed() >= CERTIFICATE_CHECK
        {
            connections.checked = Instant::now();
            let stamp = identity.stamp();
            if stamp != connections.stamp && identity.reload() {
                connections.stamp = stamp;
                connections.open.clear();
            }
        }
        // Connections beyond the first are given up once nothing is open on them.
        while connections.open.len() > 1
            && connections.open.last().is_some_and(|last| last.streams.load(Ordering::Relaxed) == 0)
            && connections.open[0].streams.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION
        {
            connections.open.pop();
        }
        let free = connections.open.iter().position(|c| c.streams.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION);
        let index = free.unwrap_or_else(|| {
            connections.open.push(Connection { hyper: self.connect(), streams: Arc::default() });
            connections.open.len() - 1
        });
        let connection = &connections.open[index];
        connection.streams.fetch_add(1, Ordering::Relaxed);
        (connection.hyper.clone(), StreamGuard(connection.streams.clone()))
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<CountedBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (hyper, guard) = self.0.choose();
        Box::pin(async move {
            let response = hyper.request(request).await?;
            Ok(response.map(|inner| CountedBody { inner, _guard: guard }))
        })
    }
}

/// Counts a stream until the answer's last byte is read or given up.
struct StreamGuard(Arc<AtomicUsize>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body that keeps its stream counted.
pub(crate) struct CountedBody {
    inner: hyper::body::Incoming,
    _guard: StreamGuard,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.inner).poll_frame(cx).map_err(Into::into)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A client certificate in files, which somebody may replace while we run.
#[derive(Debug)]
struct FileIdentity {
    cert: PathBuf,
    key: PathBuf,
    current: Mutex<Arc<CertifiedKey>>,
}

impl FileIdentity {
    fn load(cert: PathBuf, key: PathBuf) -> Result<Self, ConfigError> {
        let current = Mutex::new(Arc::new(read_identity(&cert, &key)?));
        Ok(Self { cert, key, current })
    }

    /// The later modification time of the two files.
    fn stamp(&self) -> Option<SystemTime> {
        let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        modified(&self.cert).max(modified(&self.key))
    }

    /// Whether a new certificate was taken; a half-written pair is tried again at the next look.
    fn reload(&self) -> bool {
        match read_identity(&self.cert, &self.key) {
            Ok(identity) => {
                *self.current.lock() = Arc::new(identity);
                true
            }
            Err(err) => {
                tracing::warn!(cert = %self.cert.display(), %err, "client certificate cannot be reloaded, the old one stays");
                false
            }
        }
    }
}

fn read_identity(cert: &PathBuf, key: &PathBuf) -> Result<CertifiedKey, ConfigError> {
    let pem = |path: &PathBuf| {
        let path = path.display().to_string();
        move |source| ConfigError::ClientCertificate { path, source }
    };
    let chain =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(pem(cert))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(pem(key))?;
    let unusable = |source| ConfigError::ClientKey { path: cert.display().to_string(), source };
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(unusable)
}

impl ResolvesClientCert for FileIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.lock().clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}
