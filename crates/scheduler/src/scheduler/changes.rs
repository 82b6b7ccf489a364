//! What happens in the cluster, taken over into cache and queue.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use tokio::time::Instant;

use super::Scheduler;
use crate::framework::{Actions, Change, ClusterEvent, EventResource, Rejection};
use crate::gangs::group_of;
use crate::listers::ObjectChange;
use crate::pod::{PodInfo, Uid, is_terminal, node_name_of};
use crate::queue::is_scaled_down;

/// A change of one object: before, and now.
pub(crate) type Changed<K> = (Option<Arc<K>>, Option<Arc<K>>);

impl Scheduler {
    /// A pod came, changed, or is gone.
    pub(crate) fn pod_changed(&mut self, (old, new): Changed<Pod>, now: Instant) {
        let new = new.filter(|pod| !is_terminal(pod));
        if let Some(old) = &old
            && new.as_ref().is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            self.pod_is_gone(&old.metadata.uid.as_deref().unwrap_or_default().into(), now);
        }
        let Some(new) = new else { return };
        if node_name_of(&new).is_some() {
            let pod = self.cluster.pod_info(new);
            self.context.gangs.add(&pod);
            self.pod_is_on_a_node(&pod, now);
        } else {
            let scheduler = new.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
            if self.profiles.find(scheduler.unwrap_or("default-scheduler")).is_some() {
                let pod = self.cluster.pod_info(new);
                self.context.gangs.add(&pod);
                self.pod_waits(pod, now);
            }
        }
    }

    fn pod_is_gone(&mut self, uid: &Uid, now: Instant) {
        if let Some(pod) = self.pending.remove(uid) {
            self.queue.remove(uid);
            self.context.gangs.remove(&pod);
        }
        self.context.waiting_pods.reject(uid, "", Rejection::unschedulable("pod has been deleted"));
        let nominated = self.cluster.nominations.remove(uid).is_some();
        let gone = self.cluster.remove_pod(uid);
        if let Some(gone) = &gone {
            self.context.gangs.remove(gone);
        }
        if gone.is_some() || nominated {
            let event = ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE);
            self.queue.move_on(event, &Change::AssignedPod { old: gone.as_deref(), new: None }, now);
        }
    }

    fn pod_is_on_a_node(&mut self, pod: &Arc<PodInfo>, now: Instant) {
        if self.pending.remove(&pod.uid).is_some() {
            self.queue.remove(&pod.uid);
            self.cluster.nominations.remove(&pod.uid);
        }
        let assumed = self.cluster.is_assumed(&pod.uid);
        let before = self.cluster.placed(&pod.uid).cloned().filter(|_| !assumed);
        self.cluster.set_pod(pod.clone());
        let actions = match &before {
            None => vec![Actions::ADD],
            Some(before) => assigned_actions(before, pod),
        };
        let change = Change::AssignedPod { old: before.as_deref(), new: Some(pod) };
        for action in actions {
            self.queue.move_on(ClusterEvent::new(EventResource::AssignedPod, action), &change, now);
        }
    }

    fn pod_waits(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let new = self.pending.insert(pod.uid.clone(), pod.clone()).is_none();
        if new && group_of(&pod).is_some() {
            // It may be the one that others of its group wait for.
            let event = ClusterEvent::new(EventResource::UnscheduledPod, Actions::ADD);
            self.queue.move_on(event, &Change::AssignedPod { old: None, new: Some(&pod) }, now);
        }
        if self.cluster.is_assumed(&pod.uid) {
            // It is being bound; if that fails it goes on from what is pending.
            return;
        }
        match (pod.nominated_node(), self.cluster.nominations.node_of(&pod.uid).map(str::to_owned)) {
            // What we decided since is not in the object yet.
            (_, Some(node)) => self.cluster.nominate(pod.clone(), &node),
            (Some(node), None) if !self.queue.contains(&pod.uid) => self.cluster.nominate(pod.clone(), node),
            _ => {}
        }
        self.queue.update(pod, now);
    }

    /// A node came, changed, or is gone.
    pub(crate) fn node_changed(&mut self, (old, new): Changed<Node>, now: Instant) {
        let actions = match (&old, &new) {
            (None, Some(_)) => vec![Actions::ADD],
            (Some(old), Some(new)) => node_actions(old, new),
            (Some(_), None) => vec![Actions::DELETE],
            (None, None) => return,
        };
        match (&old, &new) {
            (_, Some(new)) => self.cluster.set_node(new.clone()),
            (Some(old), None) => self.cluster.remove_node(old.metadata.name.as_deref().unwrap_or_default()),
            (None, None) => {}
        }
        let change = Change::Node { old: old.as_deref(), new: new.as_deref() };
        for action in actions {
            self.queue.move_on(ClusterEvent::new(EventResource::Node, action), &change, now);
        }
    }

    /// A namespace came, changed, or is gone.
    pub(crate) fn namespace_changed(&mut self, (old, new): Changed<Namespace>) {
        let Some(name) = new.as_ref().or(old.as_ref()).and_then(|namespace| namespace.metadata.name.clone()) else {
            return;
        };
        let labels = new.map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
        self.cluster.set_namespace(&name, labels);
    }

    /// An object that plugins read came, changed, or is gone.
    pub(crate) fn object_changed(&mut self, changed: &ObjectChange, now: Instant) {
        self.queue.move_on(changed.event, &changed.change(), now);
    }

    /// Pods were not evicted after all that were to make room: the pod is tried again.
    pub(crate) fn preemption_failed(&mut self, uid: &Uid, now: Instant) {
        self.cluster.nominations.remove(uid);
        self.queue.retry(uid, now);
    }
}

fn assigned_actions(old: &PodInfo, new: &PodInfo) -> Vec<Actions> {
    let mut actions = Vec::new();
    if old.labels() != new.labels() {
        actions.push(Actions::UPDATE_POD_LABEL);
    }
    if is_scaled_down(old, new) {
        actions.push(Actions::UPDATE_POD_SCALE_DOWN);
    }
    actions
}

fn node_actions(old: &Node, new: &Node) -> Vec<Actions> {
    let mut actions = Vec::new();
    let status = |node: &Node| node.status.clone().unwrap_or_default();
    let (old_status, new_status) = (status(old), status(new));
    if old_status.allocatable != new_status.allocatable {
        actions.push(Actions::UPDATE_NODE_ALLOCATABLE);
    }
    if old.metadata.labels != new.metadata.labels {
        actions.push(Actions::UPDATE_NODE_LABEL);
    }
    if old.metadata.annotations != new.metadata.annotations {
        actions.push(Actions::UPDATE_NODE_ANNOTATION);
    }
    let taints = |node: &Node| {
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        (taints, spec.and_then(|spec| spec.unschedulable).unwrap_or_default())
    };
    if taints(old) != taints(new) {
        actions.push(Actions::UPDATE_NODE_TAINT);
    }
    let conditions = |status: &k8s_openapi::api::core::v1::NodeStatus| {
        let conditions = status.conditions.iter().flatten();
        conditions.map(|condition| (condition.type_.clone(), condition.status.clone())).collect::<Vec<_>>()
    };
    if conditions(&old_status) != conditions(&new_status) {
        actions.push(Actions::UPDATE_NODE_CONDITION);
    }
    actions
}
