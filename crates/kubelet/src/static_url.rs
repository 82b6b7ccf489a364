//! Static pods from a URL, which a task of its own asks again and again. What it said last counts until it says something
//! else; until it has said something, nobody knows which of the pods that run are its own.

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
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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
}

/// The pods that the URL named last; `None` while it has not answered.
pub(crate) type Named = Option<Vec<Arc<Pod>>>;

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
        Ok(UrlSource { url: url.to_owned(), headers, client })
    }

    /// Asks now and after each `period`, in a task of its own until `stop`.
    pub(crate) fn follow(self, node_name: String, period: Duration, stop: CancellationToken) -> watch::Receiver<Named> {
        let (told, named) = watch::channel(None);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(period.max(Duration::from_secs(1)));
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                match self.read(&node_name).await {
                    Ok(pods) => drop(told.send_if_modified(|known| replace(known, pods))),
                    Err(error) => tracing::warn!(url = self.url, error, "no static pods come from this URL"),
                }
            }
        });
        named
    }

    async fn read(&self, node_name: &str) -> Result<Vec<Pod>, String> {
        let asked = tokio::time::timeout(TIMEOUT, self.ask()).await;
        let text = asked.unwrap_or_else(|_| Err("it did not answer in time".to_owned()))?;
        static_pods::parse_answer(&text, &self.url, node_name)
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

/// True when other pods are named than before: a uid changes with whatever is said of its pod.
fn replace(known: &mut Named, pods: Vec<Pod>) -> bool {
    let uids = |all: &[Arc<Pod>]| all.iter().map(|p| p.metadata.uid.clone()).collect::<Vec<_>>();
    let pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
    let differs = known.as_ref().is_none_or(|known| uids(known) != uids(&pods));
    if differs {
        *known = Some(pods);
    }
    differs
}
