//! Removes pods that nobody else removes: those of nodes that are gone, those that were never bound and are to go, and
//! finished ones beyond a number.
//!
//! All pods are looked at together, but only when something happened that could make one of them superfluous.

use std::{collections::HashMap, sync::Arc, time::Duration};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Event, Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    context::Context,
    error::SyncError,
    pod::{is_finished, is_leaving, node_name},
    taint_eviction::disruption_patch,
};

/// How long a node has to be missing before its pods are.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The only key: a look at everything.
const SWEEP: &str = "sweep";
/// Changes are gathered for this long before a look.
const GATHER: Duration = Duration::from_secs(5);

pub(crate) struct PodGarbageCollector {
    client: Client,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    nodes: SharedInformer<Node>,
    node_lister: Lister<Node>,
    /// Finished pods that are kept.
    threshold: usize,
    /// Since when nodes that pods name are missing.
    missing: Mutex<HashMap<String, Instant>>,
}

impl PodGarbageCollector {
    pub(crate) fn new(context: &Context, threshold: usize) -> Self {
        let pods = context.informers.informer::<Pod>();
        let nodes = context.informers.informer::<Node>();
        Self {
            client: context.client.clone(),
            pod_lister: pods.lister(),
            pods,
            node_lister: nodes.lister(),
            nodes,
            threshold,
            missing: Mutex::default(),
        }
    }
}

/// Why a pod is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Terminated,
    NodeOutOfService,
    Orphaned,
    NeverScheduled,
}

/// What is superfluous. `node` says whether a pod's node exists (`None`: it has been missing, but not for long enough).
fn plan(
    pods: &[Arc<Pod>],
    threshold: usize,
    node_exists: impl Fn(&str) -> Option<bool>,
    is_out_of_service: impl Fn(&str) -> bool,
) -> Vec<(Arc<Pod>, Cause)> {
    let mut plan = Vec::new();
    let mut finished = Vec::new();
    for pod in pods {
        let node = node_name(pod);
        if node.is_empty() && is_leaving(pod) {
            plan.push((pod.clone(), Cause::NeverScheduled));
        } else if !node.is_empty() && node_exists(node) == Some(false) {
            plan.push((pod.clone(), Cause::Orphaned));
        } else if is_leaving(pod) && is_out_of_service(node) {
            plan.push((pod.clone(), Cause::NodeOutOfService));
        } else if is_finished(pod) {
            finished.push(pod);
        }
    }
    if threshold > 0 && finished.len() > threshold {
        // Evicted ones first, then the oldest.
        let is_evicted = |pod: &Pod| pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
        let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        finished.sort_by_key(|pod| (!is_evicted(pod), created(pod), pod.metadata.name.clone()));
        finished.truncate(finished.len() - threshold);
        plan.extend(finished.into_iter().map(|pod| (pod.clone(), Cause::Terminated)));
    }
    plan
}

impl Controller for PodGarbageCollector {
    const NAME: &'static str = "pod_garbage_collector";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        let (nodes, threshold) = (self.node_lister.clone(), self.threshold);
        let finished = std::sync::atomic::AtomicUsize::new(0);
        watches.act(&self.pods, move |event, queue| {
            use std::sync::atomic::Ordering::Relaxed;
            let was = event.old().is_some_and(|pod| is_finished(pod));
            let is = event.now().is_some_and(|pod| is_finished(pod));
            match (was, is) {
                (false, true) => finished.fetch_add(1, Relaxed),
                (true, false) => finished.fetch_sub(1, Relaxed),
                _ => 0,
            };
            let Some(pod) = event.now() else { return };
            let node = node_name(pod);
            let lost = !node.is_empty() && nodes.get(&ObjectKey::cluster(node)).is_none();
            let too_many = threshold > 0 && is && finished.load(Relaxed) > threshold;
            if is_leaving(pod) || lost || too_many {
                queue.add_after(ObjectKey::cluster(SWEEP), GATHER);
            }
        });
        watches.act(&self.nodes, |event, queue| {
            let out = |node: &Arc<Node>| is_out_of_service(node);
            if matches!(event, Event::Deleted(_)) || event.now().is_some_and(out) {
                queue.add_after(ObjectKey::cluster(SWEEP), GATHER);
            }
        });
    }

    async fn reconcile(&self, _: &ObjectKey) -> Result<Action, SyncError> {
        let pods = self.pod_lister.list();
        let nodes_in_question = self.look_for_missing_nodes(&pods).await?;
        let exists = |name: &str| match nodes_in_question.get(name) {
            None => Some(true),
            Some(left) => (*left == Duration::ZERO).then_some(false),
        };
        let out =
            |name: &str| self.node_lister.get(&ObjectKey::cluster(name)).is_some_and(|node| is_out_of_service(&node));
        let mut failure = None;
        for (pod, cause) in plan(&pods, self.threshold, exists, out) {
            if let Err(err) = self.remove(&pod, cause).await {
                failure = failure.or(Some(err));
            }
        }
        if let Some(err) = failure {
            return Err(err);
        }
        let next = nodes_in_question.into_values().filter(|left| !left.is_zero()).min();
        Ok(next.map_or(Action::await_change(), Action::requeue))
    }
}

impl PodGarbageCollector {
    /// Nodes that pods name and the cache does not have, and how long each has to stay missing. After that time the
    /// server is asked, which may know better than the cache.
    async fn look_for_missing_nodes(&self, pods: &[Arc<Pod>]) -> Result<HashMap<String, Duration>, SyncError> {
        let is_missing = |name: &str| !name.is_empty() && self.node_lister.get(&ObjectKey::cluster(name)).is_none();
        let mut missing: HashMap<String, Duration> = HashMap::new();
        {
            let mut since = self.missing.lock();
            since.retain(|name, _| is_missing(name));
            for name in pods.iter().map(|pod| node_name(pod)).filter(|name| is_missing(name)) {
                let since = *since.entry(name.to_owned()).or_insert_with(Instant::now);
                missing.insert(name.to_owned(), (since + QUARANTINE).saturating_duration_since(Instant::now()));
            }
        }
        let api = Api::<Node>::all(self.client.clone());
        let overdue: Vec<_> = missing.iter().filter(|(_, left)| left.is_zero()).map(|(name, _)| name.clone()).collect();
        for name in overdue {
            if api.get_opt(&name).await?.is_some() {
                missing.remove(&name);
            }
        }
        Ok(missing)
    }

    async fn remove(&self, pod: &Pod, cause: Cause) -> Result<(), SyncError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let name = pod.name_any();
        // A pod that cannot report any more has failed.
        if cause != Cause::Terminated && !is_finished(pod) {
            let mut patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": {} });
            if cause == Cause::Orphaned {
                let message = "PodGC: node no longer exists";
                patch = disruption_patch(pod, "DeletionByPodGC", message, Timestamp::now());
            }
            patch["status"]["phase"] = json!("Failed");
            match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(err) if err.is_not_found() || err.is_conflict() => return Ok(()),
                Err(err) => return Err(err.into()),
                Ok(_) => {}
            }
        }
        let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }.preconditions(same);
        tracing::info!(pod = %ObjectKey::of(pod), ?cause, "removing a superfluous pod");
        match api.delete(&name, &at_once).await {
            Err(err) if !err.is_not_found() && !err.is_conflict() => Err(err.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn is_out_of_service(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    !is_ready && taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };
    use kube::core::ObjectMeta;

    use super::*;

    /// `name node phase [leaving] [evicted]`
    fn pod(words: &str) -> Arc<Pod> {
        let mut parts = words.split(' ');
        let mut next = || parts.next().map(str::to_owned);
        let (name, node, phase) = (next(), next().filter(|node| node != "-"), next());
        Arc::new(Pod {
            metadata: ObjectMeta {
                name,
                deletion_timestamp: words.contains("leaving").then_some(Time(Timestamp::UNIX_EPOCH)),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec { node_name: node, ..PodSpec::default() }),
            status: Some(PodStatus {
                phase,
                reason: words.contains("evicted").then(|| "Evicted".to_owned()),
                ..PodStatus::default()
            }),
        })
    }

    #[track_caller]
    fn check(pods: &[&str], threshold: usize, want: &[&str]) {
        let pods: Vec<_> = pods.iter().map(|words| pod(words)).collect();
        let exists = |node: &str| match node {
            "gone" => Some(false),
            "missing" => None,
            _ => Some(true),
        };
        let plan = plan(&pods, threshold, exists, |node| node == "dead");
        let texts: Vec<_> =
            plan.iter().map(|(pod, cause)| format!("{} {cause:?}", pod.metadata.name.as_deref().unwrap())).collect();
        assert_eq!(texts, want);
    }

    #[test]
    fn pods_without_a_node_or_a_future_go() {
        check(
            &[
                "a n Running",
                "b gone Running",
                "c missing Running",
                "d - Pending leaving",
                "e - Pending",
                "f dead Running leaving",
            ],
            0,
            &["b Orphaned", "d NeverScheduled", "f NodeOutOfService"],
        );
    }

    #[test]
    fn finished_pods_go_beyond_the_threshold() {
        let pods = ["a n Succeeded", "b n Failed", "c n Failed evicted", "d n Running"];
        check(&pods, 2, &["c Terminated"]);
        check(&pods, 3, &[]);
        check(&pods, 0, &[]);
    }
}
