//! Pods that wait for room which preemption made for them, by the node on which it did.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pod::{PodInfo, Uid};

#[derive(Debug, Default)]
pub struct Nominations {
    by_node: HashMap<Box<str>, Vec<Arc<PodInfo>>>,
    nodes: HashMap<Uid, Box<str>>,
}

impl Nominations {
    /// Nominates the pod for a node; an earlier nomination is void.
    pub fn add(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove(&pod.uid);
        self.nodes.insert(pod.uid.clone(), node.into());
        self.by_node.entry(node.into()).or_default().push(pod);
    }

    pub fn remove(&mut self, uid: &Uid) -> Option<Box<str>> {
        let node = self.nodes.remove(uid)?;
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|pod| pod.uid != *uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
        Some(node)
    }

    #[must_use]
    pub fn node_of(&self, uid: &Uid) -> Option<&str> {
        self.nodes.get(uid).map(|node| &**node)
    }

    #[must_use]
    pub fn on(&self, node: &str) -> &[Arc<PodInfo>] {
        self.by_node.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// Nodes for which pods are nominated.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.by_node.keys().map(|node| &**node)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}
