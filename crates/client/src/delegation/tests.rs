//! A port on loopback, asked with certificates and tokens.

use std::sync::Arc;

use component_base::metrics::Metrics;
use component_base::tls::{AnyServer, provider};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

/// Knows one token, whose user may look at metrics.
fn api_server() -> Client {
    let answer = |path: &str, body: &Value| match path.rsplit('/').next() {
        Some("tokenreviews") if body["spec"]["token"] == "good" => {
            json!({"spec": {"token": ""}, "status": {"authenticated": true, "user": {"username": "monitor", "groups": ["g"]}}})
        }
        Some("tokenreviews") => json!({"spec": {"token": ""}, "status": {"authenticated": false}}),
        _ => {
            let spec = &body["spec"];
            let allowed = spec["user"] == "monitor"
                && spec["nonResourceAttributes"] == json!({"path": "/metrics", "verb": "get"});
            json!({"spec": {}, "status": {"allowed": allowed}})
        }
    };
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| async move {
        use http_body_util::BodyExt;
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let said = answer(parts.uri.path(), &body).to_string();
        let response = http::Response::builder().status(201).body(kube::client::Body::from(said.into_bytes()));
        response.map_err(tower::BoxError::from)
    });
    Client::new(service, "default")
}

/// An authority, its certificate as a file, and whom it signs for.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, name: &str, group: &str) -> ClientConfig {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        trusting().with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
    }
}

fn trusting() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer::new()))
}

/// Code and body of the answer.
async fn get(address: SocketAddr, config: ClientConfig, path: &str, headers: &str) -> (u16, String) {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // A peer may close the connection without TLS' own goodbye.
    let _ = tls.read_to_string(&mut answer).await;
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn who_asks_and_for_what_decides() {
    let (users, proxies, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let mut port = SecurePort::new(([127, 0, 0, 1], 0).into());
    port.client_ca = Some(file("users", &users.pem));
    let header = |name: &str| vec![name.to_owned()];
    port.proxies = Some(component_base::secure_port::Proxies {
        ca: file("proxies", &proxies.pem),
        headers: component_base::secure_port::ProxyHeaders {
            allowed_names: header("front"),
            user: header("x-remote-user"),
            group: header("x-remote-group"),
            ..Default::default()
        },
    });
    let stop = CancellationToken::new();
    let endpoints = Endpoints::new("kube-thing", Metrics::new());
    let address = serve(&port, &api_server(), endpoints, stop.clone()).await.unwrap();
    let nobody = || trusting().with_no_client_auth();
    let check = async |config: ClientConfig, path: &str, headers: &str, want: u16, says: &str| {
        let (code, body) = get(address, config, path, headers).await;
        assert!(code == want && body.contains(says), "{path} {headers:?}: {code} {body}");
    };
    let anonymous = r#"forbidden: User \"system:anonymous\" cannot get path \"/metrics\""#;
    check(nobody(), "/healthz", "", 200, "ok").await;
    check(nobody(), "/metrics", "", 403, anonymous).await;
    check(nobody(), "/metrics", "Authorization: Bearer good\r\n", 200, "process_").await;
    check(nobody(), "/configz", "Authorization: Bearer good\r\n", 403, "monitor").await;
    check(nobody(), "/metrics", "Authorization: Bearer bad\r\n", 401, "Unauthorized").await;
    check(users.sign("root", "system:masters"), "/configz", "", 200, "{}").await;
    check(users.sign("monitor", "g"), "/metrics", "", 200, "process_").await;
    check(users.sign("joe", "g"), "/metrics", "", 403, "joe").await;
    check(strangers.sign("root", "system:masters"), "/metrics", "", 401, "Unauthorized").await;
    let speaks = "X-Remote-User: monitor\r\n";
    check(proxies.sign("front", "g"), "/metrics", speaks, 200, "process_").await;
    check(proxies.sign("other", "g"), "/metrics", speaks, 401, "Unauthorized").await;
    check(users.sign("joe", "g"), "/metrics", speaks, 403, "joe").await;
    check(nobody(), "/metrics", speaks, 403, "system:anonymous").await;
    stop.cancel();
}
