//! Static pods from a URL, which the kubelet asks again and again. What it said last counts until it says something else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Pod;

use crate::static_pods;

const TIMEOUT: Duration = Duration::from_secs(10);
/// No list of static pods is longer, in bytes.
const LIMIT: usize = 10 << 20;
/// Where distributions keep the authorities that they trust.
const AUTHORITIES: &[&str] = &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

pub(crate) struct UrlSource {
    url: String,
    headers: Vec<(String, String)>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    last: Vec<Arc<Pod>>,
}

impl UrlSource {
    pub(crate) fn new(url: &str, headers: Vec<(String, String)>) -> Result<Self, rustls::Error> {
        let roots =
            AUTHORITIES.iter().find_map(|file| component_base::tls::load_roots(std::path::Path::new(file)).ok());
        let tls = rustls::ClientConfig::builder_with_provider(component_base::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots.unwrap_or_else(rustls::RootCertStore::empty))
            .with_no_client_auth();
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(UrlSource { url: url.to_owned(), headers, client, last: Vec::new() })
    }

    /// The pods that the URL names now, or named when it last answered.
    pub(crate) async fn read(&mut self, node_name: &str) -> Vec<Arc<Pod>> {
        let asked = tokio::time::timeout(TIMEOUT, self.ask()).await;
        let answer = asked.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
        match answer.and_then(|text| static_pods::parse_answer(&text, &self.url, node_name)) {
            Ok(pods) => self.last = pods.into_iter().map(Arc::new).collect(),
            Err(error) => tracing::warn!(url = self.url, error, "no static pods come from this URL"),
        }
        self.last.clone()
    }

    async fn ask(&self) -> Result<String, String> {
        let mut request = Request::get(&self.url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
        let answer = self.client.request(request).await.map_err(|e| e.to_string())?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("it answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), LIMIT).collect().await.map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }
}
