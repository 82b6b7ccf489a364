//! How pods reach each other and the world: the CNI configuration of this node, routes to the pods of the others, and the
//! node's address on packets that leave the cluster.
//!
//! It knows Nodes and their pod CIDRs, and nothing of Services (kube-proxy's business) or of pods (the runtime calls the
//! CNI plugins). Entry points: [`Config`], [`run`].
//!
//! Invariants: the CNI configuration appears whole or not at all, and only once the node has a pod CIDR, because the
//! runtime reports the network as ready when the file is there; a route is removed only if this crate made it (they carry
//! a protocol number of their own).

#![forbid(unsafe_code)]

mod cni;
mod masquerade;
mod plan;
mod routes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use futures::StreamExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio_util::sync::CancellationToken;

/// What the pod network of this node is made of.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// Where the runtime reads CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// Where the addresses that pods hold are kept.
    pub ipam_dir: PathBuf,
    /// The networks of all pods of the cluster.
    pub cluster_cidrs: Vec<IpNet>,
    /// The name of the bridge that the pods of this node are attached to.
    pub bridge: String,
    pub mtu: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write the CNI configuration")]
    Cni(#[source] std::io::Error),
    #[error("cannot talk to the kernel about routes")]
    Netlink(#[from] rtnetlink::Error),
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
}

/// Keeps the CNI configuration and the routes of this node true to the Nodes of the cluster, until `stop`.
///
/// # Errors
/// Only when the kernel or the file system refuses at the start; later failures are logged and tried again with the next
/// change of a Node.
pub fn run(config: Config, client: kube::Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(keep_routes(config, client, stop))
}

async fn keep_routes(config: Config, client: kube::Client, stop: CancellationToken) -> Result<(), Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    let netlink = tokio::spawn(connection);
    let mut events =
        std::pin::pin!(watcher::watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let mut nodes = BTreeMap::new();
    let mut listed = false;
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        let before = nodes.clone();
        let list_ends = matches!(event, Ok(watcher::Event::InitDone));
        match event {
            Ok(watcher::Event::Init) => nodes.clear(),
            Ok(watcher::Event::InitApply(node) | watcher::Event::Apply(node)) => {
                nodes.insert(node.metadata.name.clone().unwrap_or_default(), plan::network_of(&node));
            }
            Ok(watcher::Event::Delete(node)) => {
                nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
            }
            Ok(watcher::Event::InitDone) => listed = true,
            Err(error) => tracing::warn!(%error, "watching nodes failed, trying again"),
        }
        if list_ends || (listed && nodes != before) {
            sync(&config, &nodes, &handle).await;
        }
    }
    netlink.abort();
    Ok(())
}

async fn sync(config: &Config, nodes: &BTreeMap<String, plan::NodeNetwork>, handle: &rtnetlink::Handle) {
    if let Some(own) = nodes.get(&config.node_name).filter(|own| !own.pod_cidrs.is_empty())
        && let Err(error) = cni::write_conflist(&config.cni_conf_dir, &cni::conflist(config, &own.pod_cidrs))
    {
        tracing::error!(%error, dir = %config.cni_conf_dir.display(), "cannot write the CNI configuration");
    }
    let rules = masquerade::ruleset(&config.node_name, nodes, &config.cluster_cidrs);
    if let Err(error) = masquerade::write(&rules).await {
        tracing::error!(%error, "cannot write the rules for packets that leave the cluster");
    }
    if let Err(error) = routes::sync(handle, &plan::plan_routes(&config.node_name, nodes)).await {
        tracing::error!(%error, "cannot bring the routes up to date");
    }
}
