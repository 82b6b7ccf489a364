//! Gives every node its share of the cluster's pod network.

mod cidr_set;

use std::sync::Arc;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    events::Recorder,
    informer::{Event, Lister, SharedInformer},
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;

pub(crate) use cidr_set::CidrSet;

use crate::{context::Context, error::SyncError};

/// Upstream's `--cluster-cidr`, `--node-cidr-mask-size*` and `--service-cluster-ip-range`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIpamConfig {
    /// One or two networks, of different families, and the mask of a node's share of each.
    pub cluster_cidrs: Vec<(IpNet, u8)>,
    /// Networks that no node gets a share of.
    pub service_cidrs: Vec<IpNet>,
}

pub(crate) struct NodeIpamController {
    client: Client,
    recorder: Recorder,
    nodes: SharedInformer<Node>,
    lister: Lister<Node>,
    sets: Arc<Mutex<Vec<CidrSet>>>,
}

impl NodeIpamController {
    /// `None` if the networks cannot be shared out, which is logged.
    pub(crate) fn new(context: &Context, config: &NodeIpamConfig) -> Option<Self> {
        let mut sets = Vec::new();
        for (network, mask) in &config.cluster_cidrs {
            let Some(mut set) = CidrSet::new(*network, *mask) else {
                tracing::error!(%network, mask, "this network cannot be shared out with this mask");
                return None;
            };
            config.service_cidrs.iter().for_each(|reserved| set.occupy(reserved));
            sets.push(set);
        }
        let nodes = context.informers.informer::<Node>();
        Some(Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            lister: nodes.lister(),
            nodes,
            sets: Arc::new(Mutex::new(sets)),
        })
    }
}

fn cidrs_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.clone().unwrap_or_else(|| spec.pod_cidr.clone().into_iter().collect());
    all.iter().filter_map(|text| text.parse().ok()).collect()
}

impl Controller for NodeIpamController {
    const NAME: &'static str = "cidrallocator_node";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        let sets = self.sets.clone();
        watches.act(&self.nodes, move |event, queue| match event {
            // All that is taken is known before the first share is given out, since the first list comes first.
            Event::Added(node) if !cidrs_of(node).is_empty() => {
                let mut sets = sets.lock();
                cidrs_of(node).iter().for_each(|taken| sets.iter_mut().for_each(|set| set.occupy(taken)));
            }
            Event::Added(node) | Event::Updated { new: node, .. } => {
                if cidrs_of(node).is_empty() {
                    queue.add(event.key());
                }
            }
            Event::Deleted(node) => {
                let mut sets = sets.lock();
                cidrs_of(node).iter().for_each(|free| sets.iter_mut().for_each(|set| set.release(free)));
            }
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(node) = self.lister.get(key) else { return Ok(Action::await_change()) };
        if !cidrs_of(&node).is_empty() {
            return Ok(Action::await_change());
        }
        let Some(shares) = self.take_shares() else {
            self.tell(&node, "CIDRNotAvailable");
            return Err(SyncError::NotYet("no pod network is left for a node".to_owned()));
        };
        let texts: Vec<_> = shares.iter().map(ToString::to_string).collect();
        let patch = json!({
            // A cache that does not show an earlier assignment yet must not lead to a second one.
            "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
            "spec": { "podCIDR": texts.first(), "podCIDRs": texts },
        });
        let api = Api::<Node>::all(self.client.clone());
        match api.patch(key.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Action::await_change()),
            Err(err) => {
                // An answer that was lost may have been a yes: then the shares stay taken, and the node shows them.
                let is_no = matches!(err, kube::Error::Api(_));
                if is_no {
                    let mut sets = self.sets.lock();
                    sets.iter_mut().zip(&shares).for_each(|(set, share)| set.release(share));
                }
                if is_no && !matches!(&err, kube::Error::Api(status) if status.is_conflict()) {
                    self.tell(&node, "CIDRAssignmentFailed");
                }
                Err(err.into())
            }
        }
    }
}

impl NodeIpamController {
    /// A share of each network, or of none.
    fn take_shares(&self) -> Option<Vec<IpNet>> {
        let mut sets = self.sets.lock();
        let mut shares = Vec::with_capacity(sets.len());
        for index in 0..sets.len() {
            match sets[index].take() {
                Some(share) => shares.push(share),
                None => {
                    sets.iter_mut().zip(&shares).for_each(|(set, share)| set.release(share));
                    return None;
                }
            }
        }
        Some(shares)
    }

    fn tell(&self, node: &Node, status: &str) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: node.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        self.recorder.normal(&reference, status, format!("Node {name} status is now: {status}"));
    }
}
