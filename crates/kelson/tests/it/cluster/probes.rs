//! Probes that need a server of their own: gRPC and HTTPS. The servers are on the host, and the pod is in its network.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use testing::netns::inside;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::OneNode;

const GRPC: u16 = 25051;
const HTTPS: u16 = 25443;
const READY: &str = "jsonpath={.status.containerStatuses[*].ready}";

#[test]
fn grpc_and_https_probes_decide_readiness() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    let servers = Servers::start(host.namespace(), &host.address);
    let container = |name: &str, probe: &str| {
        format!(
            r#"{{"name":"{name}","image":"kelson.local/hello:1","imagePullPolicy":"Never","command":["sleep","1000"],
            "readinessProbe":{{{probe},"periodSeconds":1,"failureThreshold":1}}}}"#
        )
    };
    let grpc = container("grpc", &format!(r#""grpc":{{"port":{GRPC},"service":"shop"}}"#));
    let headers = r#"[{"name":"X-Asked-By","value":"probe"}]"#;
    let get = format!(r#""httpGet":{{"scheme":"HTTPS","port":{HTTPS},"path":"/health","httpHeaders":{headers}}}"#);
    let https = container("https", &get);
    let pod = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"probed"}},
        "spec":{{"hostNetwork":true,"terminationGracePeriodSeconds":0,"containers":[{grpc},{https}]}}}}"#
    );
    host.kubectl_ok(&["apply", "-f", "-"], &pod);
    host.until(&["get", "pod", "probed", "-o", READY], |ready| ready == "true true");
    servers.healthy.store(false, Ordering::Relaxed);
    host.until(&["get", "pod", "probed", "-o", READY], |ready| ready == "false false");
    let said = host.until(&["get", "events", "-o", "jsonpath={.items[?(@.reason=='Unhealthy')].message}"], |said| {
        said.contains("Readiness probe failed: HTTP probe failed with statuscode: 503")
    });
    assert!(said.contains("Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")"), "{said}");
    servers.healthy.store(true, Ordering::Relaxed);
    host.until(&["get", "pod", "probed", "-o", READY], |ready| ready == "true true");
}

/// A gRPC health service and a page over TLS, both of which say whether all is well.
struct Servers {
    healthy: Arc<AtomicBool>,
    _stop: DropGuard,
}

impl Servers {
    fn start(namespace: PathBuf, address: &str) -> Self {
        let healthy = Arc::new(AtomicBool::new(true));
        let stop = CancellationToken::new();
        let key = rcgen::generate_simple_self_signed([address.to_owned()]).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(component_base::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], key.signing_key.serialize_der().try_into().unwrap())
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let (well, ended) = (Arc::clone(&healthy), stop.clone());
        let address = address.parse().unwrap();
        std::thread::spawn(move || {
            inside(&namespace, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let both = async {
                    tokio::join!(
                        serve_grpc(SocketAddr::new(address, GRPC), &well),
                        serve_https(SocketAddr::new(address, HTTPS), &well, &tls)
                    );
                };
                runtime.block_on(ended.run_until_cancelled(both));
            });
        });
        Servers { healthy, _stop: stop.drop_guard() }
    }
}

/// Answers `grpc.health.v1.Health/Check`: a message of one field, the status (1 SERVING, 2 NOT_SERVING).
async fn serve_grpc(address: SocketAddr, healthy: &Arc<AtomicBool>) {
    let listener = TcpListener::bind(address).await.unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        let healthy = Arc::clone(healthy);
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let status = if healthy.load(Ordering::Relaxed) { 1 } else { 2 };
            async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await.unwrap().to_bytes();
                assert!(asked.ends_with(b"shop"), "{asked:?}");
                let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let body = Full::new(message).with_trailers(std::future::ready(Some(Ok::<_, Infallible>(trailers))));
                Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
            }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(socket), answer);
        tokio::spawn(connection);
    }
}

/// Answers 200 or 503 to who brings the probe's header, and 400 to others.
async fn serve_https(address: SocketAddr, healthy: &Arc<AtomicBool>, tls: &TlsAcceptor) {
    let listener = TcpListener::bind(address).await.unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        let (healthy, tls) = (Arc::clone(healthy), tls.clone());
        tokio::spawn(async move {
            let Ok(socket) = tls.accept(socket).await else { return };
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let asked = request.headers().get("x-asked-by").is_some_and(|value| value == "probe");
                let code = match (asked && request.uri().path() == "/health", healthy.load(Ordering::Relaxed)) {
                    (false, _) => 400,
                    (true, true) => 200,
                    (true, false) => 503,
                };
                let answer = Response::builder().status(code).body(Full::new(Bytes::new())).unwrap();
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            // A prober may go away.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}
