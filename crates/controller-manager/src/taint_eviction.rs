//! Deletes pods from nodes whose NoExecute taints they do not tolerate, or no longer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    events::{Recorder, reference},
    informer::{Event, Lister, SharedInformer},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Node, Pod, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use parking_lot::Mutex;
use serde_json::json;

use crate::{
    context::Context,
    error::SyncError,
    node_fit::tolerates,
    pod::{NODE_INDEX, index_by_node, is_leaving, node_name},
};

pub(crate) struct TaintEvictionController {
    client: Client,
    recorder: Recorder,
    nodes: SharedInformer<Node>,
    node_lister: Lister<Node>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    /// Pods that wait for their time, and since when, for taints that do not say when they were added.
    waiting: Mutex<HashMap<ObjectKey, Timestamp>>,
}

impl TaintEvictionController {
    pub(crate) fn new(context: &Context) -> Self {
        let nodes = context.informers.informer::<Node>();
        let pods = context.informers.informer::<Pod>();
        pods.add_index(NODE_INDEX, index_by_node);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            node_lister: nodes.lister(),
            nodes,
            pod_lister: pods.lister(),
            pods,
            waiting: Mutex::default(),
        }
    }
}

/// What becomes of a pod on a tainted node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Stay,
    Wait(Duration),
    Evict,
}

/// `since` is when the pod was first seen with taints that do not tell since when they are there.
pub(crate) fn plan(taints: &[&Taint], tolerations: &[Toleration], since: Timestamp, now: Timestamp) -> Plan {
    let mut deadline: Option<Timestamp> = None;
    for taint in taints {
        let mut tolerated = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if tolerated.peek().is_none() {
            return Plan::Evict;
        }
        // The shortest toleration of the taint counts; none without an end is ever shorter.
        let Some(seconds) = tolerated.filter_map(|toleration| toleration.toleration_seconds).min() else { continue };
        let from = taint.time_added.as_ref().map_or(since, |time| time.0);
        let until = from.saturating_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX);
        deadline = Some(deadline.map_or(until, |known| known.min(until)));
    }
    let Some(deadline) = deadline else { return Plan::Stay };
    match Duration::try_from(deadline.duration_since(now)) {
        Ok(left) if !left.is_zero() => Plan::Wait(left),
        _ => Plan::Evict,
    }
}

fn evicting(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == "NoExecute").collect()
}

impl Controller for TaintEvictionController {
    const NAME: &'static str = "noexec_taint_pod";
    type Error = SyncError;

    /// Keys are pods.
    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.pods, |event| {
            let shown = |pod: &Arc<Pod>| {
                (node_name(pod).to_owned(), pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()))
            };
            let changed = match event {
                Event::Updated { old, new } => shown(old) != shown(new),
                Event::Added(pod) => !node_name(pod).is_empty(),
                Event::Deleted(_) => true,
            };
            changed.then(|| event.key())
        });
        let pods = self.pod_lister.clone();
        watches.map(&self.nodes, move |event| {
            let changed = match event {
                Event::Updated { old, new } => evicting(old) != evicting(new),
                Event::Added(node) => !evicting(node).is_empty(),
                Event::Deleted(_) => false,
            };
            let on_node = if changed { pods.by_index(NODE_INDEX, event.key().name()) } else { Vec::new() };
            on_node.into_iter().map(|pod| ObjectKey::of(&*pod)).collect::<Vec<_>>()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let pod = self.pod_lister.get(key).filter(|pod| !is_leaving(pod));
        let node = pod.as_ref().and_then(|pod| self.node_lister.get(&ObjectKey::cluster(node_name(pod))));
        let (Some(pod), Some(node)) = (pod, node) else {
            self.waiting.lock().remove(key);
            return Ok(Action::await_change());
        };
        let taints = evicting(&node);
        let now = Timestamp::now();
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        let since = self.waiting.lock().get(key).copied();
        match plan(&taints, tolerations, since.unwrap_or(now), now) {
            Plan::Stay => {
                if self.waiting.lock().remove(key).is_some() {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.recorder.normal(&reference(&*pod), "TaintManagerEviction", message);
                }
                Ok(Action::await_change())
            }
            Plan::Wait(left) => {
                self.waiting.lock().entry(key.clone()).or_insert(now);
                Ok(Action::requeue(left))
            }
            Plan::Evict => {
                self.recorder.normal(
                    &reference(&*pod),
                    "TaintManagerEviction",
                    format!("Marking for deletion Pod {key}"),
                );
                let message = "Taint manager: deleting due to NoExecute taint";
                evict(&self.client, &pod, "DeletionByTaintManager", message).await?;
                self.waiting.lock().remove(key);
                Ok(Action::await_change())
            }
        }
    }
}

/// Deletes the pod, after it says why.
pub(crate) async fn evict(client: &Client, pod: &Pod, reason: &str, message: &str) -> Result<(), SyncError> {
    let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let patch = disruption_patch(pod, reason, message, Timestamp::now());
    ignore_not_found(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
    let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    match api.delete(&name, &DeleteParams::default().preconditions(same)).await {
        Err(err) if !err.is_not_found() && !err.is_conflict() => Err(err.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Says on a pod that it is about to be deleted from outside, and why.
pub(crate) fn disruption_patch(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> serde_json::Value {
    json!({
        "metadata": { "uid": pod.metadata.uid },
        "status": { "conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": Time(now),
            "observedGeneration": pod.metadata.generation,
        }] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn taint(key: &str, added: Option<i64>) -> Taint {
        Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: added.map(|second| Time(at(second))),
            ..Taint::default()
        }
    }

    fn toleration(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()).filter(|key: &String| !key.is_empty()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        }
    }

    #[test]
    fn pods_go_when_their_shortest_toleration_ends() {
        let (a, b) = (taint("a", Some(100)), taint("b", None));
        let check = |taints: &[&Taint], tolerations: &[Toleration], want| {
            assert_eq!(plan(taints, tolerations, at(150), at(160)), want);
        };
        check(&[], &[], Plan::Stay);
        check(&[&a], &[], Plan::Evict);
        check(&[&a], &[toleration("a", None)], Plan::Stay);
        check(&[&a], &[toleration("", None)], Plan::Stay);
        check(&[&a], &[toleration("b", None)], Plan::Evict);
        check(&[&a], &[toleration("a", Some(300))], Plan::Wait(Duration::from_secs(240)));
        check(&[&a], &[toleration("a", Some(60))], Plan::Evict);
        check(&[&a, &b], &[toleration("a", Some(300)), toleration("b", Some(30))], Plan::Wait(Duration::from_secs(20)));
        check(&[&a], &[toleration("a", None), toleration("a", Some(0))], Plan::Evict);
    }
}
