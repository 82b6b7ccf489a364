//! One question to one webhook.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use component_base::tls::provider;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rand::seq::IndexedRandom;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::lister::Lister;

/// An answer that is longer is refused.
const MAX_ANSWER: usize = 3 << 20;
/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Where a webhook is.
struct Endpoint {
    /// As messages show it.
    url: String,
    host: String,
    port: u16,
    path_and_query: String,
    /// Where to dial; empty: wherever the host name leads.
    addresses: Vec<SocketAddr>,
}

/// Sends a review; gives what came back.
///
/// # Errors
/// Why there is no answer, in upstream's words.
pub(super) async fn ask(
    config: &Value,
    review: &Value,
    timeout: Duration,
    lister: &dyn Lister,
) -> Result<Value, String> {
    let endpoint = resolve(config, timeout, lister)?;
    let post = |why: String| format!("failed to call webhook: Post {:?}: {why}", endpoint.url);
    let body = serde_json::to_vec(review).map_err(|e| post(e.to_string()))?;
    let tls = tls_for(config.str_at(&["caBundle"]))?;
    let asked = tokio::time::timeout(timeout, exchange(&endpoint, tls, body)).await;
    let answer = asked.map_err(|_| post("context deadline exceeded".to_owned()))?.map_err(post)?;
    answer.map_err(|why| format!("failed to call webhook: {why}"))
}

fn resolve(config: &Value, timeout: Duration, lister: &dyn Lister) -> Result<Endpoint, String> {
    let timeout = format!("timeout={}s", timeout.as_secs());
    if let Some(url) = config["url"].as_str() {
        let uri: Uri = url.parse().map_err(|e| format!("failed to call webhook: {e}"))?;
        let host = uri.host().unwrap_or_default().trim_matches(|c| c == '[' || c == ']').to_owned();
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let joint = if path.contains('?') { '&' } else { '?' };
        return Ok(Endpoint {
            url: format!("{url}{joint}{timeout}"),
            host,
            port: uri.port_u16().unwrap_or(443),
            path_and_query: format!("{path}{joint}{timeout}"),
            addresses: Vec::new(),
        });
    }
    let service = &config["service"];
    let (namespace, name) = (service.str_at(&["namespace"]), service.str_at(&["name"]));
    let port = service["port"].as_i64().unwrap_or(443);
    let path = service["path"].as_str().filter(|p| !p.is_empty()).unwrap_or("/");
    let host = format!("{name}.{namespace}.svc");
    let url = format!("https://{host}:{port}{path}?{timeout}");
    let addresses = service_addresses(namespace, name, port, lister)
        .map_err(|why| format!("failed to call webhook: Post {url:?}: {why}"))?;
    Ok(Endpoint {
        url,
        host,
        port: u16::try_from(port).unwrap_or(443),
        path_and_query: format!("{path}?{timeout}"),
        addresses,
    })
}

/// One of a Service's ready endpoints, and its cluster address for want of one.
fn service_addresses(namespace: &str, name: &str, port: i64, lister: &dyn Lister) -> Result<Vec<SocketAddr>, String> {
    let service = lister.get("services", namespace, name).ok_or_else(|| format!("service {name:?} not found"))?;
    let ports = service.at(&["spec", "ports"]).items();
    let of_service = ports.iter().find(|p| p["port"].as_i64() == Some(port));
    let of_service = of_service.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let port_name = of_service.str_at(&["name"]);
    let slices = lister.list("endpointslices.discovery.k8s.io", namespace);
    let ready: Vec<SocketAddr> = slices
        .iter()
        .filter(|slice| slice.label("kubernetes.io/service-name") == Some(name))
        .flat_map(|slice| {
            let port = slice["ports"].items().iter().find(|p| p.str_at(&["name"]) == port_name);
            let port = port.and_then(|p| u16::try_from(p["port"].as_i64()?).ok());
            let is_ready = |e: &&Value| e.at(&["conditions", "ready"]).as_bool() != Some(false);
            let endpoints = slice["endpoints"].items().iter().filter(is_ready);
            let ips = endpoints.flat_map(|e| e["addresses"].items()).filter_map(|a| a.as_str()?.parse::<IpAddr>().ok());
            ips.filter_map(move |ip| Some(SocketAddr::new(ip, port?))).collect::<Vec<_>>()
        })
        .collect();
    if let Some(one) = ready.choose(&mut rand::rng()) {
        return Ok(vec![*one]);
    }
    if service.str_at(&["spec", "type"]) == "ExternalName" {
        return Ok(Vec::new());
    }
    Err(format!("no endpoints available for service {name:?}"))
}

fn tls_for(ca_bundle: &str) -> Result<Arc<ClientConfig>, String> {
    let unusable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let mut roots = RootCertStore::empty();
    let pems = if ca_bundle.is_empty() {
        SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default()
    } else {
        STANDARD.decode(ca_bundle).map_err(|_| unusable())?
    };
    for certificate in CertificateDer::pem_slice_iter(&pems).flatten() {
        let _ = roots.add(certificate);
    }
    if roots.is_empty() && !ca_bundle.is_empty() {
        return Err(unusable());
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// Outer failure: the connection; inner failure: the answer.
async fn exchange(endpoint: &Endpoint, tls: Arc<ClientConfig>, body: Vec<u8>) -> Result<Result<Value, String>, String> {
    let dialed = if endpoint.addresses.is_empty() {
        TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await
    } else {
        TcpStream::connect(endpoint.addresses.as_slice()).await
    };
    let socket = dialed.map_err(|e| match e.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            format!("dial tcp {}:{}: connect: connection refused", endpoint.host, endpoint.port)
        }
        _ => format!("dial tcp {}:{}: {e}", endpoint.host, endpoint.port),
    })?;
    // A question is small and wants to be there at once.
    let _ = socket.set_nodelay(true);
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| e.to_string())?;
    let stream = TlsConnector::from(tls).connect(name, socket).await.map_err(|e| format!("tls: {e}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let running = tokio::spawn(connection);
    let request = Request::post(endpoint.path_and_query.as_str())
        .header(header::HOST, format!("{}:{}", endpoint.host, endpoint.port))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
    running.abort();
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body);
        return Ok(Err(format!(
            "an error on the server ({:?}) has prevented the request from succeeding",
            text.trim()
        )));
    }
    Ok(serde_json::from_slice(&body).map_err(|e| format!("couldn't get version/kind; json parse error: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    #[test]
    fn services_lead_to_their_ready_endpoints() {
        let lister = MapLister::default();
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        lister.put(
            "services",
            json(r#"{"metadata":{"name":"s","namespace":"n"},"spec":{"ports":[{"name":"web","port":443}]}}"#),
        );
        let config = json(r#"{"service":{"name":"s","namespace":"n","path":"/x"}}"#);
        let asked =
            |lister: &MapLister| resolve(&config, Duration::from_secs(10), lister).map(|e| (e.url, e.addresses));
        assert_eq!(
            asked(&lister),
            Err("failed to call webhook: Post \"https://s.n.svc:443/x?timeout=10s\": no endpoints available for service \"s\"".to_owned())
        );
        lister.put(
            "endpointslices.discovery.k8s.io",
            json(r#"{"metadata":{"name":"e","namespace":"n","labels":{"kubernetes.io/service-name":"s"}},"ports":[{"name":"web","port":8443}],"endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"],"conditions":{"ready":false}}]}"#),
        );
        let (url, addresses) = asked(&lister).unwrap();
        assert_eq!(url, "https://s.n.svc:443/x?timeout=10s");
        assert_eq!(addresses, ["10.0.0.1:8443".parse().unwrap()]);
    }
}
