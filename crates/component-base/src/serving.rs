//! The small server that every component has beside its work: health, metrics and what it is configured with.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::connections;
use crate::metrics::{self, Metrics};
use crate::version;

/// A named check; `Err` says why it fails.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Decides whether a request may pass. Its extensions have the [`PeerCertificates`] of its connection.
#[async_trait]
pub trait Guard: Send + Sync {
    async fn allows(&self, request: &http::request::Parts) -> Result<(), Refused>;
}

/// Why a request may not pass.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    Unauthorized,
    Forbidden { message: String },
    Failed { message: String },
}

/// The certificate that a connection's client has proved to be its own, with what it sent besides; empty without one. Nobody
/// has judged them yet.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificates(pub Arc<Vec<CertificateDer<'static>>>);

/// What is served.
#[derive(Clone)]
pub struct Endpoints {
    pub component: &'static str,
    pub metrics: Metrics,
    /// Checks of `/healthz` and `/livez`.
    pub health: Vec<(&'static str, Check)>,
    /// Checks of `/readyz`, besides those of health.
    pub ready: Vec<(&'static str, Check)>,
    /// The component's configuration under its kind, for `/configz`.
    pub configz: serde_json::Value,
    /// Lines of `/flagz`.
    pub flags: Vec<(String, String)>,
    /// Further paths, with what they say.
    pub pages: Vec<(&'static str, String)>,
}

impl Endpoints {
    #[must_use]
    pub fn new(component: &'static str, metrics: Metrics) -> Self {
        let (health, ready, flags, pages) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Endpoints { component, metrics, health, ready, configz: serde_json::json!({}), flags, pages }
    }
}

/// A JSON answer of a server that says its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: StatusCode,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// Answers questions at a path; `None`: there is nothing.
pub type Respond = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// Answers at an address until `stop` in a task of its own, as load balancers ask about health.
///
/// # Errors
/// When the address cannot be bound.
pub fn answer(
    address: SocketAddr,
    respond: Respond,
    stop: CancellationToken,
) -> BoxFuture<'static, std::io::Result<SocketAddr>> {
    Box::pin(async move {
        let listener = connections::listen(address).await?;
        let bound = listener.local_addr()?;
        let serve = move |socket| {
            let respond = Arc::clone(&respond);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = respond(request.uri().path());
                async move { Ok::<_, std::convert::Infallible>(answered(answer)) }
            });
            async move { served(connections::http().serve_connection(TokioIo::new(socket), service).await) }
        };
        tokio::spawn(connections::accept(listener, stop, serve));
        Ok(bound)
    })
}

fn answered(answer: Option<Answer>) -> Response<Full<Bytes>> {
    let Some(Answer { code, headers, body }) = answer else {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    let mut response = with_type("application/json", body);
    *response.status_mut() = code;
    let nosniff = ("x-content-type-options", "nosniff".to_owned());
    for (name, value) in headers.into_iter().chain([nosniff]) {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn served<E: std::fmt::Display>(ended: Result<(), E>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

pub struct Server {
    pub address: SocketAddr,
    /// Without one the server speaks plain HTTP.
    pub tls: Option<ServerConfig>,
    pub endpoints: Endpoints,
    pub guard: Option<Arc<dyn Guard>>,
}

impl Server {
    /// Binds, and serves until `stop` in a task of its own. Returns the address that it listens on.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(self, stop: CancellationToken) -> BoxFuture<'static, std::io::Result<SocketAddr>> {
        // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
        Box::pin(self.bind_and_serve(stop))
    }

    async fn bind_and_serve(self, stop: CancellationToken) -> std::io::Result<SocketAddr> {
        let listener = connections::listen(self.address).await?;
        let address = listener.local_addr()?;
        let acceptor = self.tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let handler = Arc::new(Handler { endpoints: self.endpoints, guard: self.guard, started: Timestamp::now() });
        let serve = move |socket| serve(socket, acceptor.clone(), Arc::clone(&handler));
        tokio::spawn(connections::accept(listener, stop, serve));
        Ok(address)
    }
}

async fn serve(socket: TcpStream, acceptor: Option<TlsAcceptor>, handler: Arc<Handler>) {
    let service = |peer: PeerCertificates| {
        service_fn(move |request| {
            let (handler, peer) = (Arc::clone(&handler), peer.clone());
            async move { Ok::<_, std::convert::Infallible>(handler.answer(request, peer).await) }
        })
    };
    let served = match acceptor {
        None => connections::http().serve_connection(TokioIo::new(socket), service(PeerCertificates::default())).await,
        Some(acceptor) => match connections::agree_on_tls(&acceptor, socket).await {
            Some(tls) => {
                let chain = tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                let service = service(PeerCertificates(Arc::new(chain)));
                connections::http().serve_connection(TokioIo::new(tls), service).await
            }
            None => return,
        },
    };
    self::served(served);
}

struct Handler {
    endpoints: Endpoints,
    guard: Option<Arc<dyn Guard>>,
    started: Timestamp,
}

impl Handler {
    fn statusz(&self) -> String {
        let up = Timestamp::now().duration_since(self.started).as_secs();
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        format!(
            "\n{} statusz\n{NOT_FOR_MACHINES}\n\nStarted: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
             Binary version: {}\nEmulation version: {}.{}\n",
            self.endpoints.component,
            self.started.strftime("%a %b %e %H:%M:%S UTC %Y"),
            version::GIT_VERSION.trim_start_matches('v'),
            version::MAJOR,
            version::MINOR,
        )
    }

    async fn answer(&self, request: Request<Incoming>, peer: PeerCertificates) -> Response<Full<Bytes>> {
        let (mut parts, _) = request.into_parts();
        parts.extensions.insert(peer);
        if let Some(guard) = &self.guard
            && let Err(refused) = guard.allows(&parts).await
        {
            return status(&refused);
        }
        let path = parts.uri.path().trim_end_matches('/');
        let query = parts.uri.query().unwrap_or_default();
        let e = &self.endpoints;
        let both = || e.health.iter().chain(&e.ready);
        match path {
            "/healthz" | "/livez" => health(&path[1..], query, e.health.iter()),
            "/readyz" => health("readyz", query, both()),
            "/metrics" => with_type(metrics::CONTENT_TYPE, e.metrics.text()),
            "/version" => json(&serde_json::json!({
                "major": version::MAJOR, "minor": version::MINOR, "gitVersion": version::GIT_VERSION,
            })),
            "/configz" => json(&e.configz),
            "/flagz" => text(StatusCode::OK, &flagz(e)),
            "/statusz" => text(StatusCode::OK, &self.statusz()),
            other if e.pages.iter().any(|(path, _)| *path == other) => {
                let page = e.pages.iter().find(|(path, _)| *path == other);
                text(StatusCode::OK, page.map_or("", |(_, says)| says))
            }
            other => match other.split_once('/').and_then(|(_, rest)| rest.split_once('/')) {
                Some(("healthz" | "livez", name)) => one_check(name, e.health.iter()),
                Some(("readyz", name)) => one_check(name, both()),
                _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
            },
        }
    }
}

const NOT_FOR_MACHINES: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

fn flagz(endpoints: &Endpoints) -> String {
    let lines: Vec<String> = endpoints.flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    format!("\n{} flags\n{NOT_FOR_MACHINES}\n\n{}", endpoints.component, lines.concat())
}

/// The answer to somebody who may not have what he asks for.
fn status(refused: &Refused) -> Response<Full<Bytes>> {
    let (code, reason, message) = match refused {
        Refused::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"),
        Refused::Forbidden { message } => (StatusCode::FORBIDDEN, "Forbidden", message.as_str()),
        Refused::Failed { message } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message.as_str()),
    };
    let mut response = json(&serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    }));
    *response.status_mut() = code;
    response
}

fn one_check<'a>(name: &str, mut checks: impl Iterator<Item = &'a (&'static str, Check)>) -> Response<Full<Bytes>> {
    match checks.find(|(n, _)| *n == name) {
        Some((_, check)) => match check() {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("internal server error: {why}\n")),
        },
        None if name == "ping" => text(StatusCode::OK, "ok"),
        None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Upstream's health report: `ok`, or a line for each check with `?verbose` or when one fails.
fn health<'a>(
    endpoint: &str,
    query: &str,
    checks: impl Iterator<Item = &'a (&'static str, Check)>,
) -> Response<Full<Bytes>> {
    let has = |name: &str| query.split('&').any(|p| p == name || p.starts_with(&format!("{name}=")));
    let excluded: Vec<&str> = query.split('&').filter_map(|p| p.strip_prefix("exclude=")).collect();
    let mut report = String::from("[+]ping ok\n");
    let mut failed = false;
    for (name, check) in checks {
        let line = if excluded.contains(name) {
            format!("[+]{name} excluded: ok\n")
        } else {
            match check() {
                Ok(()) => format!("[+]{name} ok\n"),
                Err(why) => {
                    failed = true;
                    tracing::info!(check = name, why, "a health check failed");
                    format!("[-]{name} failed: reason withheld\n")
                }
            }
        };
        report.push_str(&line);
    }
    if failed {
        return text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{report}{endpoint} check failed\n"));
    }
    if has("verbose") {
        text(StatusCode::OK, &format!("{report}{endpoint} check passed\n"))
    } else {
        text(StatusCode::OK, "ok")
    }
}

fn text(code: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = with_type("text/plain; charset=utf-8", body.to_owned());
    *response.status_mut() = code;
    response.headers_mut().insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
    response
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    with_type("application/json", value.to_string())
}

fn with_type(content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let answer = whole(address, path).await;
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn head(address: SocketAddr, path: &str) -> String {
        whole(address, path).await.split_once("\r\n\r\n").unwrap().0.to_owned()
    }

    async fn whole(address: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_is_reported_as_upstream_reports_it() {
        let mut endpoints = Endpoints::new("kube-thing", Metrics::new());
        endpoints.health.push(("leaderElection", Arc::new(|| Ok(()))));
        endpoints.ready.push(("informers", Arc::new(|| Err("not synced".into()))));
        let server = Server { address: ([127, 0, 0, 1], 0).into(), tls: None, endpoints, guard: None };
        let stop = CancellationToken::new();
        let address = server.start(stop.clone()).await.unwrap();
        assert_eq!(get(address, "/healthz").await, (200, "ok".into()));
        let verbose = "[+]ping ok\n[+]leaderElection ok\nlivez check passed\n";
        assert_eq!(get(address, "/livez?verbose").await, (200, verbose.into()));
        let failed = "[+]ping ok\n[+]leaderElection ok\n[-]informers failed: reason withheld\nreadyz check failed\n";
        assert_eq!(get(address, "/readyz").await, (500, failed.into()));
        assert_eq!(get(address, "/readyz?exclude=informers").await, (200, "ok".into()));
        assert_eq!(get(address, "/healthz/leaderElection").await, (200, "ok".into()));
        assert_eq!(get(address, "/nothing").await.0, 404);
        assert!(get(address, "/metrics").await.1.contains("process_cpu_seconds_total"));
        stop.cancel();
    }

    #[tokio::test]
    async fn a_server_may_say_its_own() {
        let busy = Answer {
            code: StatusCode::SERVICE_UNAVAILABLE,
            headers: vec![("x-load-balancing-endpoint-weight", "0".to_owned())],
            body: "{}".to_owned(),
        };
        let respond: Respond = Arc::new(move |path| (path == "/healthz").then(|| busy.clone()));
        let stop = CancellationToken::new();
        let address = answer(([127, 0, 0, 1], 0).into(), respond, stop.clone()).await.unwrap();
        let head = head(address, "/healthz?x=1").await;
        for line in ["HTTP/1.1 503", "content-type: application/json", "x-load-balancing-endpoint-weight: 0"] {
            assert!(head.contains(line), "{line}: {head}");
        }
        assert_eq!(get(address, "/healthz").await, (503, "{}".into()));
        assert_eq!(get(address, "/").await, (404, "404 page not found\n".into()));
        stop.cancel();
    }

    struct Nobody;

    #[async_trait]
    impl Guard for Nobody {
        async fn allows(&self, _: &http::request::Parts) -> Result<(), Refused> {
            Err(Refused::Forbidden { message: "forbidden: not you".to_owned() })
        }
    }

    #[tokio::test]
    async fn who_may_not_pass_gets_a_status() {
        let endpoints = Endpoints::new("kube-thing", Metrics::new());
        let guard: Option<Arc<dyn Guard>> = Some(Arc::new(Nobody));
        let server = Server { address: ([127, 0, 0, 1], 0).into(), tls: None, endpoints, guard };
        let address = server.start(CancellationToken::new()).await.unwrap();
        let (code, body) = get(address, "/metrics").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (code, body["reason"].as_str(), body["message"].as_str()),
            (403, Some("Forbidden"), Some("forbidden: not you"))
        );
    }

    #[tokio::test]
    async fn pages_of_state_are_headed_as_upstream_heads_them() {
        let mut endpoints = Endpoints::new("kube-thing", Metrics::new());
        endpoints.flags.push(("v".to_owned(), "2".to_owned()));
        let server = Server { address: ([127, 0, 0, 1], 0).into(), tls: None, endpoints, guard: None };
        let address = server.start(CancellationToken::new()).await.unwrap();
        let (_, status) = get(address, "/statusz").await;
        assert!(status.starts_with(&format!("\nkube-thing statusz\n{NOT_FOR_MACHINES}\n\nStarted: ")), "{status}");
        assert!(status.contains("\nUp: 0 hr 00 min 0") && status.contains("\nBinary version: 1.36"), "{status}");
        assert_eq!(get(address, "/flagz").await.1, format!("\nkube-thing flags\n{NOT_FOR_MACHINES}\n\nv=2\n"));
    }
}
