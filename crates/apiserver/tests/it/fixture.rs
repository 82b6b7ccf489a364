//! A server on a free port, and a client for it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Config, Flags, Handle};
use bytes::Bytes;
use component_base::tls::{load_roots, provider};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Who the tests are: `admin` is a `system:masters`, `alice` is nobody special.
const USERS: &str = "admin-token,admin,1,\"system:masters\"\nalice-token,alice,2,\"dev\"\n";

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

pub(crate) struct Server {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    handle: Handle,
    dir: TempDir,
    tls: TlsConnector,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Code and message of an error.
    pub(crate) fn error(&self) -> (u16, String) {
        (self.code.as_u16(), self.json()["message"].as_str().unwrap_or_default().to_owned())
    }
}

/// Flags that every test's server has, its files being in `dir`.
pub(crate) fn config(dir: &Path, more: &[&str]) -> Config {
    std::fs::write(dir.join("users.csv"), USERS).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let mut flags = vec![
        format!("--data-dir={}", path("store")),
        format!("--cert-dir={}", path("certs")),
        format!("--token-auth-file={}", path("users.csv")),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
    ];
    if !more.iter().any(|flag| flag.starts_with("--authorization-mode")) {
        flags.push("--authorization-mode=RBAC".to_owned());
    }
    flags.extend(more.iter().map(ToString::to_string));
    let flags =
        component_base::flags::parse::<Flags>("kube-apiserver", flags).unwrap_or_else(|(why, _)| panic!("{why}"));
    let mut config = flags.complete().unwrap();
    config.serving.as_mut().unwrap().address.set_port(0);
    config
}

impl Server {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), flags);
        Self::start_with(dir, config).await
    }

    pub(crate) async fn start_with(dir: TempDir, config: Config) -> Self {
        let stop = CancellationToken::new();
        let handle = apiserver::start(config, stop.clone()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), handle.ready()).await.expect("the server becomes ready");
        let address = handle.local_addr().unwrap();
        let roots = load_roots(&dir.path().join("certs/apiserver.crt")).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Server { address, stop, handle, dir, tls: TlsConnector::from(Arc::new(tls)) }
    }

    /// Stops the server and returns its files.
    pub(crate) async fn end(self) -> TempDir {
        self.stop.cancel();
        self.handle.wait().await;
        self.dir
    }

    pub(crate) async fn open(&self) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        self.tls.connect("127.0.0.1".try_into().unwrap(), socket).await.unwrap()
    }

    /// A connection of HTTP/1.1.
    pub(crate) async fn connect(&self) -> SendRequest<Body> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.open().await)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        self.connect().await.send_request(request).await.unwrap()
    }

    /// Asks as `admin`, or as whoever `headers` name.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        read(self.send(request(method, path, headers, full(body))).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask(Method::POST, path, &[], body.to_owned()).await
    }

    /// As [`Self::post`], for what must succeed.
    pub(crate) async fn create(&self, path: &str, body: &str) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.code, 201, "{}", answer.text());
        answer.json()
    }
}

pub(crate) fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

pub(crate) fn request(method: Method, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    let all = request.headers_mut();
    all.insert(header::HOST, "127.0.0.1".parse().unwrap());
    all.insert(header::AUTHORIZATION, "Bearer admin-token".parse().unwrap());
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        all.insert(name, value.parse().unwrap());
    }
    request
}

pub(crate) async fn read(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    Answer { code: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
}

/// Waits until a condition holds that something else brings about.
pub(crate) async fn until<F>(what: &str, holds: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    testing::wait::until(what, Duration::from_secs(30), holds).await;
}
