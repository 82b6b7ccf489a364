//! A double of a server outside: over HTTPS it answers what the test says, and remembers what it was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base64::Engine;
use bytes::Bytes;
use component_base::tls::{load_roots, provider, self_signed};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// It came with a certificate that the server takes.
    pub proved: bool,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

pub(crate) struct Outside {
    pub address: SocketAddr,
    certificate: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A code and a document.
type Answer = (u16, String);

impl Outside {
    /// Its certificate, for `hosts` and this machine, is `<name>.crt` of `dir`; so are those that clients may have.
    pub(crate) async fn start(
        dir: &Path,
        name: &str,
        hosts: &[&str],
        clients: Option<&Path>,
        answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let hosts: Vec<String> = hosts.iter().chain(&["localhost", "127.0.0.1"]).map(ToString::to_string).collect();
        let resolver = self_signed(name, &hosts, Some(dir)).unwrap();
        let builder =
            rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(load_roots(path).unwrap());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            }
        };
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_cert_resolver(resolver)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (remembered, answer) = (Arc::clone(&seen), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, remembered, answer) = (acceptor.clone(), Arc::clone(&remembered), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let proved = stream.get_ref().1.peer_certificates().is_some();
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (remembered, answer) = (Arc::clone(&remembered), Arc::clone(&answer));
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.map(http_body_util::Collected::to_bytes);
                            let seen = Seen {
                                path: parts.uri.to_string(),
                                headers: parts.headers,
                                body: body.unwrap_or_default(),
                                proved,
                            };
                            let (code, text) = answer(&seen);
                            remembered.lock().unwrap().push(seen);
                            let mut response = Response::new(Full::new(Bytes::from(text)));
                            *response.status_mut() = StatusCode::from_u16(code).unwrap();
                            let json = http::HeaderValue::from_static("application/json");
                            response.headers_mut().insert(http::header::CONTENT_TYPE, json);
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Outside { address, certificate: dir.join(format!("{name}.crt")), seen }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.address.port())
    }

    /// As a `caBundle` has it.
    pub(crate) fn ca_bundle(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(std::fs::read(&self.certificate).unwrap())
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}
