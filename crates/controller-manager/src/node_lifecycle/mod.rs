//! Notices nodes that fall silent, and shows the state of nodes as conditions and taints.
//!
//! Nothing is polled: a node's heartbeats (its Lease, its status) are noted as they come, and each node is looked at when
//! its next heartbeat would be overdue.

mod heartbeats;
mod plan;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ignore_not_found,
    events::Recorder,
    informer::{Event, Lister, Selection, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, ObjectReference, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use self::{
    heartbeats::Heartbeats,
    plan::{
        Eviction, ZoneState, is_silent, next_taints, pause, plan_eviction, readiness, silenced, zone_of, zone_state,
    },
};
use crate::{
    context::Context,
    error::SyncError,
    pod::{NODE_INDEX, index_by_node, is_ready},
};

/// Upstream's `--node-monitor-grace-period`, `--node-eviction-rate` and their like.
#[derive(Debug, Clone)]
pub struct NodeLifecycleConfig {
    /// How long a node may be silent.
    pub grace: Duration,
    /// How long a node may take to say something for the first time.
    pub startup_grace: Duration,
    pub rates: Rates,
}

/// How fast the pods of failed nodes are evicted, per zone.
#[derive(Debug, Clone)]
pub struct Rates {
    /// Nodes a second.
    pub primary: f64,
    /// Nodes a second in a zone of which much is down, if it is large.
    pub secondary: f64,
    /// Zones with more nodes than this are large.
    pub large_cluster: usize,
    /// The share of nodes that are down from which on a zone counts as disrupted.
    pub unhealthy_threshold: f64,
}

impl Default for NodeLifecycleConfig {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(40),
            startup_grace: Duration::from_secs(60),
            rates: Rates { primary: 0.1, secondary: 0.01, large_cluster: 50, unhealthy_threshold: 0.55 },
        }
    }
}

const LEASE_NAMESPACE: &str = "kube-node-lease";

pub(crate) struct NodeLifecycleController {
    client: Client,
    recorder: Recorder,
    config: NodeLifecycleConfig,
    nodes: SharedInformer<Node>,
    node_lister: Lister<Node>,
    leases: SharedInformer<Lease>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    heartbeats: Arc<Heartbeats>,
    /// When the next node of each zone may be emptied.
    next_eviction: Mutex<HashMap<String, Instant>>,
}

impl NodeLifecycleController {
    pub(crate) fn new(context: &Context) -> Self {
        let nodes = context.informers.informer::<Node>();
        let pods = context.informers.informer::<Pod>();
        pods.add_index(NODE_INDEX, index_by_node);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            config: context.config.node_lifecycle.clone(),
            node_lister: nodes.lister(),
            nodes,
            leases: context.informers.namespaced::<Lease>(LEASE_NAMESPACE, Selection::default()),
            pod_lister: pods.lister(),
            pods,
            heartbeats: Arc::default(),
            next_eviction: Mutex::default(),
        }
    }
}

impl Controller for NodeLifecycleController {
    const NAME: &'static str = "node_lifecycle_controller";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        let (heartbeats, recorder, nodes) = (self.heartbeats.clone(), self.recorder.clone(), self.node_lister.clone());
        watches.act(&self.nodes, move |event, queue| {
            let key = event.key();
            match event {
                Event::Added(node) => {
                    heartbeats.heard(key.name());
                    tell(&recorder, node, "RegisteredNode", "Registered Node", "in Controller");
                }
                Event::Updated { old, new } => {
                    if heartbeats::is_heartbeat(old, new) {
                        heartbeats.heard(key.name());
                    }
                    // What may be done about the others depends on how many are down.
                    if (readiness(old) == "True") != (readiness(new) == "True") {
                        let down = nodes.filter(|node| readiness(node) != "True");
                        down.iter().for_each(|node| queue.add(ObjectKey::of(&**node)));
                    }
                }
                Event::Deleted(node) => {
                    heartbeats.forget(key.name());
                    tell(&recorder, node, "RemovingNode", "Removing Node", "from Controller");
                }
            }
            queue.add(key);
        });
        let heartbeats = self.heartbeats.clone();
        watches.act(&self.leases, move |event, _| {
            if event.now().is_some() {
                heartbeats.renewed(event.key().name());
            }
        });
        // A pod that is bound, or says that it is ready, after its node went down.
        let nodes = self.node_lister.clone();
        watches.map(&self.pods, move |event| {
            let pod = event.now().filter(|pod| is_ready(pod))?;
            let was_ready = event.old().is_some_and(|old| is_ready(old));
            let key = ObjectKey::cluster(crate::pod::node_name(pod));
            let is_down = !was_ready && nodes.get(&key).is_some_and(|node| is_silent(&node));
            is_down.then_some(key)
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(node) = self.node_lister.get(key) else { return Ok(Action::await_change()) };
        self.label(&node).await?;
        let grace =
            if plan::condition(&node, "Ready").is_some() { self.config.grace } else { self.config.startup_grace };
        let left = self.heartbeats.left(key.name(), grace);
        let mut node = (*node).clone();
        if left.is_none()
            && let Some(conditions) = silenced(&node, Timestamp::now())
        {
            let was_ready = readiness(&node) == "True";
            node.status.get_or_insert_default().conditions = Some(conditions);
            let api = Api::<Node>::all(self.client.clone());
            node = api.replace_status(key.name(), &PostParams::default(), &node).await?;
            if was_ready {
                self.tell_not_ready(&node);
            }
        }
        let wait = self.taint(&node).await?;
        // A kubelet that says that its node is not ready looks after its pods itself.
        if is_silent(&node) {
            self.mark_pods_not_ready(key.name()).await?;
        }
        let next = [left, wait].into_iter().flatten().min();
        Ok(next.map_or(Action::await_change(), Action::requeue))
    }
}

impl NodeLifecycleController {
    /// Writes the taints that the node should have. If the one that evicts has to wait, says how long.
    async fn taint(&self, node: &Node) -> Result<Option<Duration>, SyncError> {
        let (no_execute, wait) = match plan_eviction(node) {
            Eviction::Leave if self.everything_is_down() => (Some(None), None),
            Eviction::Leave => (None, None),
            Eviction::Remove => (Some(None), None),
            Eviction::Swap(_) | Eviction::Add(_) if self.everything_is_down() => (Some(None), None),
            Eviction::Swap(key) => (Some(Some(key)), None),
            Eviction::Add(key) => match self.may_evict(node) {
                Ok(()) => (Some(Some(key)), None),
                Err(wait) => (None, wait),
            },
        };
        if let Some(taints) = next_taints(node, no_execute, Timestamp::now()) {
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": taints },
            });
            let api = Api::<Node>::all(self.client.clone());
            ignore_not_found(api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        Ok(wait)
    }

    /// When no node at all works, it is more likely that we are cut off than that all are dead, and there would be
    /// nowhere to go anyway.
    fn everything_is_down(&self) -> bool {
        self.node_lister.filter(|node| readiness(node) == "True").is_empty()
    }

    /// Takes the zone's next turn, or says when there is one (`None`: not while the zone is as it is).
    fn may_evict(&self, node: &Node) -> Result<(), Option<Duration>> {
        let zone = zone_of(node);
        let nodes = self.node_lister.filter(|other| zone_of(other) == zone);
        let ready = nodes.iter().filter(|node| readiness(node) == "True").count();
        let rates = &self.config.rates;
        let state: ZoneState = zone_state(ready, nodes.len() - ready, rates.unhealthy_threshold);
        let pause = pause(state, nodes.len(), rates).ok_or(None)?;
        let mut next = self.next_eviction.lock();
        let now = Instant::now();
        match next.get(&zone) {
            Some(next) if *next > now => Err(Some(*next - now)),
            _ => {
                next.insert(zone, now + pause);
                Ok(())
            }
        }
    }

    /// Pods of a node that is silent serve nobody, whatever they last said.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), SyncError> {
        for pod in self.pod_lister.by_index(NODE_INDEX, node).into_iter().filter(|pod| is_ready(pod)) {
            let now = Timestamp::now();
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": { "conditions": [
                    { "type": "Ready", "status": "False", "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now) },
                ] },
            });
            let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let name = pod.name_any();
            ignore_not_found(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
            self.recorder.warning(&client::events::reference(&*pod), "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    /// The labels of before v1.14 follow those of today.
    async fn label(&self, node: &Node) -> Result<(), SyncError> {
        let pairs = [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];
        let Some(labels) = &node.metadata.labels else { return Ok(()) };
        let missing: BTreeMap<_, _> = pairs
            .into_iter()
            .filter_map(|(from, to)| Some((to, labels.get(from)?)))
            .filter(|(to, value)| labels.get(*to) != Some(value))
            .collect();
        if !missing.is_empty() {
            let patch = Patch::Merge(json!({ "metadata": { "labels": missing } }));
            let api = Api::<Node>::all(self.client.clone());
            ignore_not_found(api.patch(&node.name_any(), &PatchParams::default(), &patch).await)?;
        }
        Ok(())
    }

    fn tell_not_ready(&self, node: &Node) {
        let message = format!("Node {} status is now: NodeNotReady", node.name_any());
        self.recorder.normal(&reference(node), "NodeNotReady", message);
    }
}

fn tell(recorder: &Recorder, node: &Node, reason: &str, verb: &str, place: &str) {
    let name = node.name_any();
    recorder.normal(&reference(node), reason, format!("Node {name} event: {verb} {name} {place}"));
}

/// Events of nodes are in the default namespace.
fn reference(node: &Node) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: node.metadata.name.clone(),
        uid: node.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}
