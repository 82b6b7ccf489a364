//! The resource metrics API (metrics.k8s.io/v1beta1): what nodes and pods use of CPU and memory now, for `kubectl top` and
//! for autoscalers.
//!
//! It asks kubelets through the API server and answers the API server alone, which has authenticated and authorized whoever
//! asks it (an extension behind an APIService). It must not know the kubelet's insides: it reads `/metrics/resource`, which
//! every kubelet serves. Entry points: [`Config`], [`run`].
//!
//! Invariants:
//! - Only who shows a certificate of the front proxy's authority, under one of its names, gets an answer.
//! - A figure is the difference of two measurements of the same container; there is none before the second.

#![forbid(unsafe_code)]

mod exposition;
mod serve;
mod usage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use usage::Window;

/// How often kubelets are asked.
const RESOLUTION: Duration = Duration::from_secs(15);
/// The first figures come sooner.
const FIRST: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Config {
    pub address: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The authority of the API server's certificate as a front proxy, and the names that it may bear.
    pub front_proxy_ca: PathBuf,
    pub front_proxy_names: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] component_base::tls::TlsError),
}

/// By node: its last measurements.
type Windows = Arc<RwLock<BTreeMap<String, Window>>>;

/// Measures and answers until `stop`.
///
/// # Errors
/// When its port or its certificates cannot be used.
pub fn run(config: Config, client: Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(measure_and_answer(config, client, stop))
}

async fn measure_and_answer(config: Config, client: Client, stop: CancellationToken) -> Result<(), Error> {
    let windows = Windows::default();
    let server = serve::Server::new(config, client.clone(), Arc::clone(&windows));
    server.start(stop.clone()).await?;
    let mut pause = Duration::ZERO;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let is_first = windows.read().values().all(|w| !w.is_complete());
        measure(&client, &windows).await;
        pause = if is_first { FIRST } else { RESOLUTION };
    }
    Ok(())
}

async fn measure(client: &Client, windows: &Windows) {
    let nodes = match Api::<Node>::all(client.clone()).list_metadata(&ListParams::default()).await {
        Ok(nodes) => nodes.items,
        Err(error) => {
            tracing::warn!(%error, "the nodes could not be listed");
            return;
        }
    };
    let names: Vec<String> = nodes.into_iter().filter_map(|node| node.metadata.name).collect();
    let asked = join_all(names.iter().map(|node| async move { (node, ask(client, node).await) })).await;
    let mut windows = windows.write();
    windows.retain(|node, _| names.contains(node));
    for (node, answer) in asked {
        match answer {
            Ok(text) => windows.entry(node.clone()).or_default().add(usage::Sample::of(&exposition::parse(&text))),
            Err(error) => {
                tracing::warn!(node, error, "the node could not be measured");
                windows.remove(node);
            }
        }
    }
}

async fn ask(client: &Client, node: &str) -> Result<String, String> {
    let path = format!("/api/v1/nodes/{node}/proxy/metrics/resource");
    let request = http::Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
    let answer = tokio::time::timeout(TIMEOUT, client.request_text(request)).await;
    answer.map_err(|_| "it did not answer in time".to_owned())?.map_err(|e| e.to_string())
}
