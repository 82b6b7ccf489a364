//! How pods reach each other and the world: the CNI configuration of this node, routes to the pods of the others, and the
//! node's address on packets that leave the cluster; and which of them NetworkPolicies keep apart.
//!
//! It knows Nodes and their pod CIDRs, policies and the pods that they are about, and nothing of Services (kube-proxy's
//! business); the runtime calls the CNI plugins. Entry points: [`Config`], [`run`], [`clean_up`].
//!
//! Invariants: the CNI configuration appears whole or not at all, and only once the node has a pod CIDR, because the
//! runtime reports the network as ready when the file is there; a route is removed only if this crate made it (they carry
//! a protocol number of their own).

#![forbid(unsafe_code)]

mod clean_up;
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
use std::time::Duration;

use client::events::{Dialect, Recorder};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use clean_up::{CleanUpError, clean_up};
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
    #[error("network policies are no longer enforced")]
    Policies(#[source] JoinError),
}

/// The least that IPv6 demands of a link (RFC 8200).
const SMALLEST_MTU: u32 = 1280;

/// How often it is looked whether somebody changed what was written.
const LOOKS: Duration = Duration::from_secs(30);
/// How long until what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What a sync needs.
struct Network {
    config: Config,
    netlink: rtnetlink::Handle,
    recorder: Recorder,
    masquerade: nft::Writer,
    /// The nodes whose pod networks are not used, which is said once.
    refused: BTreeMap<String, plan::Overlap>,
}

/// Keeps the CNI configuration and the routes of this node true to the Nodes of the cluster, and its pods apart where
/// policies say so, until `stop`.
///
/// # Errors
/// When the kernel refuses at the start, or nobody enforces policies any more; other failures are logged and tried again.
pub fn run(config: Config, client: kube::Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(keep_network(config, client, stop))
}

async fn keep_network(config: Config, client: kube::Client, stop: CancellationToken) -> Result<(), Error> {
    let policies = tokio::spawn(policy::run(config.node_name.clone(), client.clone(), stop.clone()));
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    let connection = tokio::spawn(connection);
    let recorder = Recorder::start(client.clone(), Dialect::Core, "pod-network", &config.node_name, stop.clone());
    let network = Network::new(config, netlink, recorder);
    let events =
        std::pin::pin!(watcher::watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let ended = network.keep(events, policies, (LOOKS, RETRY), stop).await;
    connection.abort();
    ended
}

impl Network {
    fn new(config: Config, netlink: rtnetlink::Handle, recorder: Recorder) -> Self {
        let masquerade = nft::Writer::new(masquerade::TABLE);
        Network { config, netlink, recorder, masquerade, refused: BTreeMap::new() }
    }

    /// Follows the nodes, and looks every so often whether the kernel still has what was written; sooner after a failure.
    async fn keep(
        mut self,
        mut events: impl Stream<Item = Result<watcher::Event<Node>, watcher::Error>> + Unpin,
        mut policies: JoinHandle<()>,
        (pause, retry): (Duration, Duration),
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let mut nodes = Nodes::new();
        let mut listed = false;
        let mut next_look = Instant::now();
        loop {
            let is_due = tokio::select! {
                () = stop.cancelled() => break,
                ended = &mut policies => return ended.map_err(Error::Policies),
                event = events.next() => {
                    let Some(event) = event else { break };
                    let before = nodes.clone();
                    let list_ends = matches!(event, Ok(watcher::Event::InitDone));
                    listed |= list_ends;
                    match event {
                        Ok(event) => follow(&mut nodes, event),
                        Err(error) => tracing::warn!(%error, "watching nodes failed, trying again"),
                    }
                    list_ends || (listed && nodes != before)
                }
                () = tokio::time::sleep_until(next_look), if listed => {
                    if !self.masquerade.is_whole().await {
                        tracing::warn!("the rules for packets that leave the cluster were changed by somebody else and are restored");
                    }
                    true
                }
            };
            if is_due {
                let written = self.sync(&nodes).await;
                next_look = Instant::now() + if written { pause } else { retry };
            }
        }
        policies.await.map_err(Error::Policies)
    }

    /// Makes the node what these nodes ask for. Whether all of it succeeded.
    async fn sync(&mut self, nodes: &Nodes) -> bool {
        let refused = plan::overlaps(nodes);
        for (name, overlap) in refused.iter().filter(|(name, overlap)| self.refused.get(*name) != Some(*overlap)) {
            self.refuse(name, overlap);
        }
        self.refused = refused;
        let config = &self.config;
        let plan = plan::plan(&config.node_name, nodes, config.backend);
        let own = nodes.get(&config.node_name).filter(|own| !own.pod_cidrs.is_empty());
        let own = own.filter(|_| !self.refused.contains_key(&config.node_name));
        let mtu = self.pod_mtu(nodes, &plan).await;
        let mut all_written = true;
        if let Some(own) = own {
            let conflist = cni::conflist(config, &own.pod_cidrs, mtu);
            if let Err(error) = cni::write_conflist(&config.cni_conf_dir, &conflist) {
                tracing::error!(%error, dir = %config.cni_conf_dir.display(), "cannot write the CNI configuration");
                all_written = false;
            }
        }
        let rules = masquerade::table(&config.node_name, nodes, &config.cluster_cidrs, config.backend);
        if let Err(error) = self.masquerade.write(rules).await {
            tracing::error!(%error, "cannot write the rules for packets that leave the cluster");
            all_written = false;
        }
        let device = tunnel::sync(&self.netlink, plan.tunnel.as_ref(), mtu.unwrap_or(SMALLEST_MTU)).await;
        let routed = match device {
            Ok(device) => routes::sync(&self.netlink, &plan.routes, device).await,
            Err(error) => Err(error),
        };
        if let Err(error) = routed {
            tracing::error!(%error, "cannot bring the routes up to date");
            all_written = false;
        }
        all_written
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

/// Takes in what a watch of the nodes says.
fn follow(nodes: &mut Nodes, event: watcher::Event<Node>) {
    match event {
        watcher::Event::Init => nodes.clear(),
        watcher::Event::InitApply(node) | watcher::Event::Apply(node) => {
            nodes.insert(node.metadata.name.clone().unwrap_or_default(), plan::network_of(&node));
        }
        watcher::Event::Delete(node) => {
            nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
        }
        watcher::Event::InitDone => {}
    }
}
