//! Runs one pod of a DaemonSet on every node that should have one.

mod failures;
mod plan;

use std::{sync::Arc, time::Duration};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    events::{Recorder, reference},
    informer::{Event, Lister, SharedInformer},
};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{
        Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodTemplateSpec,
    },
};
use kube::{Api, Client, ResourceExt, api::PostParams};

use self::failures::Failures;
use self::plan::{
    GENERATION_LABEL, HASH_LABEL, OnNode, Plan, Version, add_tolerations, by_node, fit, is_rolling, limits,
    plan_placement, plan_rolling, status, target_node,
};
use crate::{
    context::Context,
    error::SyncError,
    expectations::Expectations,
    history,
    owner::{CONTROLLER_INDEX, candidates, claim, could_own, index_by_controller, is_orphan},
    pod::{Availability, availability, is_leaving, phase, seconds},
    pod_control::{PodControl, pod_of, slow_start},
    selector::selector_of,
};

/// Pods created or deleted by one reconcile at most.
const BURST: usize = 250;

pub(crate) struct DaemonSetController {
    client: Client,
    recorder: Recorder,
    sets: SharedInformer<DaemonSet>,
    set_lister: Lister<DaemonSet>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    nodes: SharedInformer<Node>,
    node_lister: Lister<Node>,
    revisions: SharedInformer<ControllerRevision>,
    revision_lister: Lister<ControllerRevision>,
    control: PodControl,
    expectations: Expectations,
    failures: Failures,
}

impl DaemonSetController {
    pub(crate) fn new(context: &Context) -> Self {
        let sets = context.informers.informer::<DaemonSet>();
        let pods = context.informers.informer::<Pod>();
        let nodes = context.informers.informer::<Node>();
        let revisions = context.informers.informer::<ControllerRevision>();
        pods.add_index(CONTROLLER_INDEX, index_by_controller);
        revisions.add_index(CONTROLLER_INDEX, index_by_controller);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            set_lister: sets.lister(),
            sets,
            pod_lister: pods.lister(),
            pods,
            node_lister: nodes.lister(),
            nodes,
            revision_lister: revisions.lister(),
            revisions,
            control: PodControl::new(context.client.clone(), context.recorder.clone()),
            expectations: Expectations::default(),
            failures: Failures::default(),
        }
    }
}

/// What of a node decides about daemon pods.
fn is_other_place(old: &Node, new: &Node) -> bool {
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

impl Controller for DaemonSetController {
    const NAME: &'static str = "daemonset";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.sets);
        watches.controlled_by::<DaemonSet, Pod>(&self.pods);
        watches.controlled_by::<DaemonSet, ControllerRevision>(&self.revisions);
        let sets = self.set_lister.clone();
        watches.map(&self.pods, move |event| {
            let orphan = event.now().filter(|pod| is_orphan(&***pod)).cloned();
            let namespace = event.key();
            let of = |pod: Arc<Pod>| {
                let sets = sets.in_namespace(namespace.namespace());
                let owners =
                    sets.into_iter().filter(move |set| could_own(set.spec.as_ref().map(|s| &s.selector), &*pod));
                owners.map(|set| ObjectKey::of(&*set)).collect::<Vec<_>>()
            };
            orphan.map(of).unwrap_or_default()
        });
        let sets = self.set_lister.clone();
        watches.map(&self.nodes, move |event| {
            let concerns = match event {
                Event::Updated { old, new } => is_other_place(old, new),
                Event::Added(_) | Event::Deleted(_) => true,
            };
            let all = if concerns { sets.list() } else { Vec::new() };
            all.into_iter().map(|set| ObjectKey::of(&*set)).collect::<Vec<_>>()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(set) = self.set_lister.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::await_change());
        };
        let Some(spec) = &set.spec else { return Ok(Action::await_change()) };
        let Some(selector) = selector_of(Some(&spec.selector))?.filter(|selector| !selector.selects_all()) else {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&reference(&*set), "SelectingAll", message);
            return Ok(Action::await_change());
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        let fresh = self.expectations.are_met(key, &self.pod_lister);
        let found = candidates(&self.pod_lister, &*set);
        let pods = claim(&self.client, &*set, &selector, found).await?;
        let (current, sorted) = self.current_revision(&set).await?;
        let hash = current.labels().get(HASH_LABEL).cloned().unwrap_or_default();
        let pass = Pass::new(self, &set, &hash, pods);
        let mut rest = None;
        if fresh {
            match pass.place(key).await? {
                Placed::Going { rest: left } => rest = left,
                Placed::Done => {
                    pass.roll(key).await?;
                    pass.clean_up(&sorted).await?;
                }
            }
        }
        let next = pass.write_status().await?;
        Ok(rest.into_iter().chain(next).min().map_or(Action::await_change(), Action::requeue))
    }
}

impl DaemonSetController {
    /// The revision of the present template, made if there is none, and all that there are.
    async fn current_revision(
        &self,
        set: &DaemonSet,
    ) -> Result<(ControllerRevision, Vec<Arc<ControllerRevision>>), SyncError> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let mut sorted = self.revision_lister.by_index(CONTROLLER_INDEX, uid);
        history::sort(&mut sorted);
        let template = set.spec.as_ref().map(|spec| &spec.template).cloned().unwrap_or_default();
        let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let wanted = history::revision_of(set, history::data_of(&template)?, labels, HASH_LABEL, collisions);
        let namespace = set.namespace().unwrap_or_default();
        let api = Api::<ControllerRevision>::namespaced(self.client.clone(), &namespace);
        match history::ensure(&api, wanted, &sorted).await {
            Ok(current) => Ok((current, sorted)),
            Err(Some(err)) => Err(err),
            Err(None) => {
                let mut set = set.clone();
                set.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or_default() + 1);
                let sets = Api::<DaemonSet>::namespaced(self.client.clone(), &namespace);
                sets.replace_status(&set.name_any(), &PostParams::default(), &set).await?;
                Err(SyncError::NotYet("the name of a revision was taken".to_owned()))
            }
        }
    }
}

/// Whether every node has what it should have.
enum Placed {
    /// An update may go on.
    Done,
    /// Not yet; `rest` is how long the first node whose pods fail still rests.
    Going { rest: Option<Duration> },
}

/// One pass over one DaemonSet.
struct Pass<'a> {
    controller: &'a DaemonSetController,
    set: &'a DaemonSet,
    template: PodTemplateSpec,
    version: Version<'a>,
    min_ready: Duration,
    nodes: Vec<Arc<Node>>,
    pods: plan::PodsByNode,
    all_pods: Vec<Arc<Pod>>,
    now: Timestamp,
}

impl<'a> Pass<'a> {
    fn new(controller: &'a DaemonSetController, set: &'a DaemonSet, hash: &'a str, pods: Vec<Arc<Pod>>) -> Self {
        let version = Version::of(set, hash);
        let spec = set.spec.as_ref();
        let mut template = spec.map(|spec| spec.template.clone()).unwrap_or_default();
        add_tolerations(template.spec.get_or_insert_default());
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
        if let Some(generation) = &version.generation {
            labels.insert(GENERATION_LABEL.to_owned(), generation.clone());
        }
        Self {
            controller,
            set,
            template,
            version,
            min_ready: seconds(spec.and_then(|spec| spec.min_ready_seconds)),
            nodes: controller.node_lister.list(),
            pods: by_node(&pods),
            all_pods: pods,
            now: Timestamp::now(),
        }
    }

    fn on_nodes(&self) -> Vec<OnNode<'_>> {
        let default = Default::default();
        let spec = self.template.spec.as_ref().unwrap_or(&default);
        let on = |node: &'_ Arc<Node>| (node.metadata.name.as_deref().unwrap_or_default().to_owned(), fit(spec, node));
        let fits: Vec<_> = self.nodes.iter().map(on).collect();
        self.nodes
            .iter()
            .zip(fits)
            .map(|(node, (name, fit))| OnNode {
                node: node.metadata.name.as_deref().unwrap_or_default(),
                fit,
                pods: self.pods.get(&name).map_or(&[], Vec::as_slice),
            })
            .collect()
    }

    fn may_surge(&self) -> bool {
        is_rolling(self.set) && limits(self.set, 1).surge > 0
    }

    async fn place(&self, key: &ObjectKey) -> Result<Placed, SyncError> {
        let mut plan = plan_placement(&self.on_nodes(), &self.version, self.may_surge(), self.min_ready, self.now);
        // Pods that wait for a node that is gone will never be bound.
        let lost = |pod: &&Arc<Pod>| {
            crate::pod::node_name(pod).is_empty()
                && !is_leaving(pod)
                && target_node(pod)
                    .is_some_and(|node| self.controller.node_lister.get(&ObjectKey::cluster(node)).is_none())
        };
        plan.delete.extend(self.all_pods.iter().filter(lost).cloned());
        let is_done = plan.create.is_empty() && plan.delete.is_empty();
        let mut rest = None;
        for pod in std::mem::take(&mut plan.ended) {
            let outcome = match phase(&pod) {
                "Failed" => self.controller.failures.note(key.as_str(), target_node(&pod).unwrap_or_default()),
                _ => Ok(()),
            };
            match outcome {
                Ok(()) => self.tell_ended(&pod),
                Err(left) => {
                    plan.delete.retain(|other| !Arc::ptr_eq(other, &pod));
                    rest = Some(rest.map_or(left, |known: Duration| known.min(left)));
                }
            }
        }
        self.act(key, plan).await?;
        Ok(if is_done { Placed::Done } else { Placed::Going { rest } })
    }

    async fn roll(&self, key: &ObjectKey) -> Result<(), SyncError> {
        if !is_rolling(self.set) {
            return Ok(());
        }
        let nodes = self.on_nodes();
        let desired = nodes.iter().filter(|on| on.fit.runs).count();
        let plan = plan_rolling(&nodes, &self.version, limits(self.set, desired), self.min_ready, self.now);
        self.act(key, plan).await
    }

    async fn act(&self, key: &ObjectKey, plan: Plan) -> Result<(), SyncError> {
        let control = &self.controller.control;
        let nodes: Vec<_> = plan.create.into_iter().take(BURST).collect();
        let (_, failure) = slow_start(nodes.len(), |index| {
            let pod = self.pod_for(&nodes[index]);
            async move {
                let created = control.create(self.set, &pod).await?;
                self.controller.expectations.wrote(key, &created);
                Ok(())
            }
        })
        .await;
        let deletions = plan.delete.iter().take(BURST).map(|pod| async {
            control.delete(self.set, pod).await?;
            self.controller.expectations.deleted(key, &**pod);
            Ok(())
        });
        let failed = join_all(deletions).await.into_iter().find_map(Result::err);
        match failure.or(failed) {
            Some(err) => Err(err.into()),
            None => Ok(()),
        }
    }

    /// The pod with the one node that it may be bound to: this is the scheduler's business, but not its choice.
    fn pod_for(&self, node: &str) -> Pod {
        let mut pod = pod_of(self.set, &self.template);
        let only = NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
            match_expressions: None,
        };
        let spec = pod.spec.get_or_insert_default();
        let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
        let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
        node_affinity.required_during_scheduling_ignored_during_execution =
            Some(NodeSelector { node_selector_terms: vec![only] });
        pod
    }

    fn tell_ended(&self, pod: &Pod) {
        let (pod_key, node) = (ObjectKey::of(pod), crate::pod::node_name(pod));
        let set = reference(self.set);
        if phase(pod) == "Failed" {
            let message = format!("Found failed daemon pod {pod_key} on node {node}, will try to kill it");
            self.controller.recorder.warning(&set, "FailedDaemonPod", message);
        } else {
            let message = format!("Found succeeded daemon pod {pod_key} on node {node}, will try to delete it");
            self.controller.recorder.normal(&set, "SucceededDaemonPod", message);
        }
    }

    async fn clean_up(&self, sorted: &[Arc<ControllerRevision>]) -> Result<(), SyncError> {
        let limit = self.set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let namespace = self.set.namespace().unwrap_or_default();
        let api = Api::<ControllerRevision>::namespaced(self.controller.client.clone(), &namespace);
        let is_used = |revision: &ControllerRevision| {
            let hash = revision.labels().get(HASH_LABEL).map(String::as_str).unwrap_or_default();
            hash == self.version.hash
                || self.all_pods.iter().any(|pod| pod.labels().get(HASH_LABEL).is_some_and(|h| h == hash))
        };
        history::truncate(&api, sorted, is_used, usize::try_from(limit).unwrap_or_default()).await
    }

    /// Says when the next pod becomes available if nothing changes.
    async fn write_status(&self) -> Result<Option<Duration>, SyncError> {
        let next: DaemonSetStatus = status(self.set, &self.on_nodes(), &self.version, self.min_ready, self.now);
        if self.set.status.as_ref() != Some(&next) {
            let mut set = self.set.clone();
            set.status = Some(next);
            let namespace = set.namespace().unwrap_or_default();
            let api = Api::<DaemonSet>::namespaced(self.controller.client.clone(), &namespace);
            api.replace_status(&set.name_any(), &PostParams::default(), &set).await?;
        }
        let soonest = self.all_pods.iter().filter_map(|pod| match availability(pod, self.min_ready, self.now) {
            Availability::In(left) => Some(left),
            Availability::Available | Availability::NotReady => None,
        });
        Ok(soonest.min())
    }
}
