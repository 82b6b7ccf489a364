//! A double of a kubelet: it serves logs that the test writes, and echoes what comes over an upgraded connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use component_base::tls::{load_roots, provider, self_signed};
use futures::StreamExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// What the kubelet was asked, and the log that it streams.
pub(crate) struct Kubelet {
    pub address: SocketAddr,
    log: Mutex<Option<mpsc::Sender<Bytes>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Kubelet {
    /// Takes only clients with the certificate `kubelet-client` of `dir`; its own is `kubelet.crt` there.
    pub(crate) async fn start(dir: &Path) -> Self {
        let hosts = ["127.0.0.1".to_owned()];
        let certificate = self_signed("kubelet", &hosts, Some(dir)).unwrap();
        self_signed("kubelet-client", &["apiserver".to_owned()], Some(dir)).unwrap();
        let clients = Arc::new(load_roots(&dir.join("kubelet-client.crt")).unwrap());
        let verifier = WebPkiClientVerifier::builder_with_provider(clients, provider()).build().unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(certificate);
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (log, lines) = mpsc::channel(8);
        let lines = Arc::new(Mutex::new(Some(lines)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(socket).await else { continue };
                let (seen, lines) = (Arc::clone(&seen), Arc::clone(&lines));
                let service = service_fn(move |request: Request<Incoming>| {
                    seen.lock().unwrap().push(request.uri().to_string());
                    let answer = answer(request, &lines);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection.with_upgrades());
            }
        });
        Kubelet { address, log: Mutex::new(Some(log)), asked }
    }

    /// Adds a line to the log.
    pub(crate) async fn write(&self, line: &'static str) {
        let log = self.log.lock().unwrap().clone().unwrap();
        log.send(Bytes::from(line)).await.unwrap();
    }

    /// The container has ended: so does its log.
    pub(crate) fn end_log(&self) {
        self.log.lock().unwrap().take();
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(request: Request<Incoming>, lines: &Mutex<Option<mpsc::Receiver<Bytes>>>) -> Answer {
    let path = request.uri().path().to_owned();
    let refused = |code: StatusCode, why: &'static str| {
        let mut answer = Response::new(Full::new(Bytes::from(why)).boxed());
        *answer.status_mut() = code;
        answer
    };
    if path.ends_with("/waiting") {
        return refused(
            StatusCode::BAD_REQUEST,
            "container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating",
        );
    }
    if path.starts_with("/containerLogs/") {
        let Some(lines) = lines.lock().unwrap().take() else { return refused(StatusCode::NOT_FOUND, "one log only") };
        let frames = ReceiverStream::new(lines).map(|line| Ok(Frame::data(line)));
        return Response::new(BodyExt::boxed(StreamBody::new(frames)));
    }
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        return refused(StatusCode::BAD_REQUEST, "you must upgrade");
    };
    if request.headers().contains_key(header::AUTHORIZATION) {
        return refused(StatusCode::BAD_REQUEST, "these credentials are not meant for a kubelet");
    }
    let protocols = request.headers().get("x-stream-protocol-version").cloned();
    tokio::spawn(echo(request));
    let mut answer = refused(StatusCode::SWITCHING_PROTOCOLS, "");
    answer.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
    answer.headers_mut().insert(header::UPGRADE, protocol);
    if let Some(protocols) = protocols {
        answer.headers_mut().insert("x-stream-protocol-version", protocols);
    }
    answer
}

/// Sends everything back in capitals.
async fn echo(request: Request<Incoming>) {
    let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
    let mut buffer = [0; 256];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        buffer[..read].make_ascii_uppercase();
        if stream.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
