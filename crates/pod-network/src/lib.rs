//! How pods reach each other and the world: the CNI configuration of this node, routes to the pods of the others, and the
//! node's address on packets that leave the cluster; and which of them NetworkPolicies keep apart.
//!
//! It knows Nodes and their pod CIDRs, policies and the pods that they are about, and nothing of Services (kube-proxy's
//! business); the runtime calls the CNI plugins. Entry points: [`Config`], [`run`].
//!
//! Invariants: the CNI configuration appears whole or not at all, and only once the node has a pod CIDR, because the
//! runtime reports the network as ready when the file is there; a route is removed only if this crate made it (they carry
//! a protocol number of their own).

#![forbid(unsafe_code)]

mod cni;
#[cfg(test)]
mod kernel;
mod masquerade;
mod nft;
mod plan;
mod policy;
mod routes;
mod tunnel;

use std::collections::BTreeMap;
use std::path::PathBuf;

use client::events::{Dialect, Recorder};
use futures::StreamExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio_util::sync::CancellationToken;

pub use plan::Backend;
use plan::Nodes;

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
    /// The size of pods' packets; `None`: what the node's link takes, less what the back end adds.
    pub mtu: Option<u32>,
    pub backend: Backend,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
}

/// The least that IPv6 demands of a link (RFC 8200).
const SMALLEST_MTU: u32 = 1280;

/// What a sync needs.
struct Network {
    config: Config,
    netlink: rtnetlink::Handle,
    recorder: Recorder,
}

/// Keeps the CNI configuration and the routes of this node true to the Nodes of the cluster, and its pods apart where
/// policies say so, until `stop`.
///
/// # Errors
/// Only when the kernel refuses at the start; later failures are logged and tried again with the next change of a Node.
pub fn run(config: Config, client: kube::Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(keep_network(config, client, stop))
}

async fn keep_network(config: Config, client: kube::Client, stop: CancellationToken) -> Result<(), Error> {
    let policies = tokio::spawn(policy::run(config.node_name.clone(), client.clone(), stop.clone()));
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    let connection = tokio::spawn(connection);
    let recorder = Recorder::start(client.clone(), Dialect::Core, "pod-network", &config.node_name, stop.clone());
    let network = Network { config, netlink, recorder };
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
            network.sync(&nodes).await;
        }
    }
    connection.abort();
    if let Err(error) = policies.await {
        tracing::error!(%error, "network policies are no longer enforced");
    }
    Ok(())
}

impl Network {
    async fn sync(&self, nodes: &Nodes) {
        let config = &self.config;
        let refused = plan::overlaps(nodes);
        for (name, overlap) in &refused {
            self.refuse(name, overlap);
        }
        let plan = plan::plan(&config.node_name, nodes, config.backend);
        let own = nodes.get(&config.node_name).filter(|own| !own.pod_cidrs.is_empty());
        let own = own.filter(|_| !refused.contains_key(&config.node_name));
        let mtu = self.pod_mtu(nodes, &plan).await;
        if let Some(own) = own {
            let conflist = cni::conflist(config, &own.pod_cidrs, mtu);
            if let Err(error) = cni::write_conflist(&config.cni_conf_dir, &conflist) {
                tracing::error!(%error, dir = %config.cni_conf_dir.display(), "cannot write the CNI configuration");
            }
        }
        let rules = masquerade::ruleset(&config.node_name, nodes, &config.cluster_cidrs);
        if let Err(error) = masquerade::write(&rules).await {
            tracing::error!(%error, "cannot write the rules for packets that leave the cluster");
        }
        let device = tunnel::sync(&self.netlink, plan.tunnel.as_ref(), mtu.unwrap_or(SMALLEST_MTU)).await;
        let routed = match device {
            Ok(device) => routes::sync(&self.netlink, &plan.routes, device).await,
            Err(error) => Err(error),
        };
        if let Err(error) = routed {
            tracing::error!(%error, "cannot bring the routes up to date");
        }
    }

    /// The size of pods' packets, as far as it is known or matters.
    async fn pod_mtu(&self, nodes: &Nodes, plan: &plan::Plan) -> Option<u32> {
        if self.config.mtu.is_some() {
            return self.config.mtu;
        }
        let own = nodes.get(&self.config.node_name)?;
        match tunnel::link_mtu(&self.netlink, &own.addresses).await {
            Ok(link) => Some(plan::pod_mtu(link?, plan.tunnel.as_ref())),
            Err(error) => {
                tracing::warn!(%error, "cannot see how large the packets of this node's link may be");
                None
            }
        }
    }

    /// Says why a node's pods have no network.
    fn refuse(&self, name: &str, overlap: &plan::Overlap) {
        let plan::Overlap { cidr, other, others } = overlap;
        let message = format!("Pod CIDR {cidr} of node {name} overlaps with {others} of node {other} and is not used");
        tracing::error!("{message}");
        if name == self.config.node_name {
            let node = ObjectReference {
                kind: Some("Node".to_owned()),
                api_version: Some("v1".to_owned()),
                name: Some(name.to_owned()),
                // As upstream's node components refer to their node, and `kubectl describe node` looks for it.
                uid: Some(name.to_owned()),
                ..ObjectReference::default()
            };
            self.recorder.warning(&node, "PodCIDROverlap", message);
        }
    }
}
