//! Rolls a Deployment's pods from one template to the next by growing and shrinking ReplicaSets.

#[cfg(test)]
mod fixture;
pub(crate) mod limits;
mod replica_sets;
mod scale;
mod status;

use std::sync::Arc;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches, controller_key},
    error::{ApiError, ignore_not_found},
    events::{Recorder, reference},
    informer::{Event, Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};

use crate::{
    context::Context,
    error::SyncError,
    owner::{CONTROLLER_INDEX, candidates, claim, could_own, index_by_controller, is_controlled_by, is_orphan},
    pod::is_finished,
    pod_control::said,
    pod_template,
    selector::selector_of,
};
use limits::{desired, is_rolling};
use replica_sets::{
    REVISION, ReplicaSets, actual, annotate_new, annotate_size, name, new_replica_set, plan_cleanup, size,
};
use scale::{Resize, new_size, plan_new, plan_old, plan_resize};
use status::{PROGRESSING, has_progress_deadline, is_complete, set_condition};

pub(crate) struct DeploymentController {
    client: Client,
    recorder: Recorder,
    deployments: SharedInformer<Deployment>,
    deployment_lister: Lister<Deployment>,
    sets: SharedInformer<ReplicaSet>,
    set_lister: Lister<ReplicaSet>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
}

impl DeploymentController {
    pub(crate) fn new(context: &Context) -> Self {
        let deployments = context.informers.informer::<Deployment>();
        let sets = context.informers.informer::<ReplicaSet>();
        let pods = context.informers.informer::<Pod>();
        sets.add_index(CONTROLLER_INDEX, index_by_controller);
        pods.add_index(CONTROLLER_INDEX, index_by_controller);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            deployment_lister: deployments.lister(),
            deployments,
            set_lister: sets.lister(),
            sets,
            pod_lister: pods.lister(),
            pods,
        }
    }
}

impl Controller for DeploymentController {
    const NAME: &'static str = "deployment";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.deployments);
        watches.controlled_by::<Deployment, ReplicaSet>(&self.sets);
        let deployments = self.deployment_lister.clone();
        watches.map(&self.sets, move |event| orphan_keys(&deployments, event));
        // A Recreate waits for the last old pod to be gone, which no ReplicaSet tells.
        let (deployments, sets) = (self.deployment_lister.clone(), self.set_lister.clone());
        watches.map(&self.pods, move |event| {
            let Event::Deleted(pod) = event else { return None };
            let set = sets.get(&controller_key::<ReplicaSet>(&**pod)?)?;
            let key = controller_key::<Deployment>(&*set)?;
            deployments.get(&key).filter(|deployment| !is_rolling(deployment)).map(|_| key)
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(deployment) = self.deployment_lister.get(key) else { return Ok(Action::await_change()) };
        let Some(spec) = &deployment.spec else { return Ok(Action::await_change()) };
        let selector = selector_of(Some(&spec.selector))?;
        let Some(selector) = selector.filter(|selector| !selector.selects_all()) else {
            return self.refuse_selecting_all(&deployment).await;
        };
        let found = candidates(&self.set_lister, &*deployment);
        let claimed = claim(&self.client, &*deployment, &selector, found).await?;
        let rollout = Rollout {
            controller: self,
            api: Api::namespaced(self.client.clone(), key.namespace()),
            set_api: Api::namespaced(self.client.clone(), key.namespace()),
            sets: ReplicaSets::of(&deployment, claimed),
            deployment: (*deployment).clone(),
        };
        rollout.run().await
    }
}

impl DeploymentController {
    async fn refuse_selecting_all(&self, deployment: &Deployment) -> Result<Action, SyncError> {
        let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
        self.recorder.warning(
            &reference(deployment),
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.",
        );
        if observed < deployment.metadata.generation {
            let mut deployment = deployment.clone();
            deployment.status.get_or_insert_default().observed_generation = deployment.metadata.generation;
            let api = Api::<Deployment>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
            api.replace_status(&deployment.name_any(), &PostParams::default(), &deployment).await?;
        }
        Ok(Action::await_change())
    }
}

fn orphan_keys(deployments: &Lister<Deployment>, event: &Event<ReplicaSet>) -> Vec<ObjectKey> {
    let Some(set) = event.now().filter(|set| is_orphan(&***set)) else { return Vec::new() };
    deployments
        .in_namespace(set.metadata.namespace.as_deref().unwrap_or_default())
        .iter()
        .filter(|deployment| could_own(deployment.spec.as_ref().map(|spec| &spec.selector), &**set))
        .map(|deployment| ObjectKey::of(&**deployment))
        .collect()
}

/// One pass over one Deployment.
struct Rollout<'a> {
    controller: &'a DeploymentController,
    api: Api<Deployment>,
    set_api: Api<ReplicaSet>,
    /// As the server last answered it, when this pass wrote it.
    deployment: Deployment,
    sets: ReplicaSets,
}

impl Rollout<'_> {
    async fn run(mut self) -> Result<Action, SyncError> {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return self.write_counts().await;
        }
        if let Some(status) = status::paused(&self.deployment, Timestamp::now()) {
            self.write_status(status).await?;
        }
        let is_paused = self.deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        if is_paused || self.sets.need_scaling(&self.deployment) {
            self.keep_new_up_to_date().await?;
            for resize in plan_resize(&self.deployment, &self.sets) {
                self.resize(resize).await?;
            }
            if is_paused {
                self.clean_up().await?;
            }
            return self.write_counts().await;
        }
        if is_rolling(&self.deployment) { self.roll().await } else { self.recreate().await }
    }

    async fn roll(mut self) -> Result<Action, SyncError> {
        if !self.keep_new_up_to_date().await? {
            self.create_new().await?;
        }
        if let Some(resize) = plan_new(&self.deployment, &self.sets) {
            self.resize(resize).await?;
            return self.write_progress().await;
        }
        let shrinking = plan_old(&self.deployment, &self.sets);
        if !shrinking.is_empty() {
            for resize in shrinking {
                self.resize(resize).await?;
            }
            return self.write_progress().await;
        }
        self.finish().await
    }

    async fn recreate(mut self) -> Result<Action, SyncError> {
        let is_known = self.keep_new_up_to_date().await?;
        let shrinking = self.sets.active_old();
        if !shrinking.is_empty() {
            for old in shrinking {
                self.resize((old, 0)).await?;
            }
            return self.write_progress().await;
        }
        if self.old_pods_run() {
            return self.write_progress().await;
        }
        if !is_known {
            self.create_new().await?;
        }
        if let Some(new) = self.sets.new.clone()
            && size(&new) != desired(&self.deployment)
        {
            self.resize((new, desired(&self.deployment))).await?;
        }
        self.finish().await
    }

    async fn finish(self) -> Result<Action, SyncError> {
        let current = self.deployment.status.clone().unwrap_or_default();
        if is_complete(&self.deployment, &current) {
            self.clean_up().await?;
        }
        self.write_progress().await
    }

    fn old_pods_run(&self) -> bool {
        let runs = |set: &Arc<ReplicaSet>| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            let pods = self.controller.pod_lister.by_index(CONTROLLER_INDEX, uid);
            actual(set) > 0 || pods.iter().any(|pod| !is_finished(pod))
        };
        self.sets.old.iter().any(runs)
    }

    /// Gives the new ReplicaSet, if there is one, the present revision and annotations. Whether there is one.
    async fn keep_new_up_to_date(&mut self) -> Result<bool, SyncError> {
        let Some(known) = self.sets.new.clone() else { return Ok(false) };
        let mut new = (*known).clone();
        let min_ready = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let mut changed = annotate_new(&mut new, &self.deployment, self.sets.next_revision());
        if let Some(spec) = &mut new.spec
            && spec.min_ready_seconds.unwrap_or_default() != min_ready.unwrap_or_default()
        {
            spec.min_ready_seconds = min_ready;
            changed = true;
        }
        if changed {
            new = self.set_api.replace(&known.name_any(), &PostParams::default(), &new).await?;
        }
        self.copy_revision(&new).await?;
        let progress = self.deployment.status.as_ref().and_then(|status| status::condition(status, PROGRESSING));
        if progress.is_none() && has_progress_deadline(&self.deployment) {
            let message = format!("Found new replica set \"{}\"", name(&new));
            self.write_progress_condition(("True", "FoundNewReplicaSet"), message).await?;
        }
        self.sets.new = Some(Arc::new(new));
        Ok(true)
    }

    /// The Deployment carries its new ReplicaSet's revision, which `kubectl rollout` reads.
    async fn copy_revision(&mut self, new: &ReplicaSet) -> Result<(), SyncError> {
        let Some(revision) = new.metadata.annotations.as_ref().and_then(|all| all.get(REVISION)) else { return Ok(()) };
        let annotations = self.deployment.metadata.annotations.get_or_insert_default();
        if annotations.get(REVISION) != Some(revision) {
            annotations.insert(REVISION.to_owned(), revision.clone());
            let deployment_name = self.deployment.name_any();
            self.deployment =
                self.api.replace_status(&deployment_name, &PostParams::default(), &self.deployment).await?;
        }
        Ok(())
    }

    async fn create_new(&mut self) -> Result<(), SyncError> {
        let total = self.sets.all().map(|rs| size(rs)).sum();
        let replicas = new_size(&self.deployment, total, 0);
        let Some(wanted) = new_replica_set(&self.deployment, &self.sets, replicas)? else { return Ok(()) };
        let (new, is_created) = match self.set_api.create(&PostParams::default(), &wanted).await {
            Ok(created) => (created, true),
            Err(err) if err.is_already_exists() => (self.adopt_namesake(&wanted, err).await?, false),
            Err(err) => {
                if !err.is_namespace_terminating() {
                    let message = format!("Failed to create new replica set \"{}\": {}", name(&wanted), said(&err));
                    self.tell_warning("ReplicaSetCreateError", &message);
                    if has_progress_deadline(&self.deployment) {
                        self.write_progress_condition(("False", "ReplicaSetCreateError"), message).await?;
                    }
                }
                return Err(err.into());
            }
        };
        if is_created && replicas > 0 {
            self.tell_scaled(&new, 0, replicas);
        }
        self.copy_revision(&new).await?;
        if is_created && has_progress_deadline(&self.deployment) {
            let message = format!("Created new replica set \"{}\"", name(&new));
            self.write_progress_condition(("True", "NewReplicaSetCreated"), message).await?;
        }
        self.sets.new = Some(Arc::new(new));
        Ok(())
    }

    /// The name is taken: by our own write that the cache does not show yet, or by another template, in which case the
    /// count of collisions makes another name next time.
    async fn adopt_namesake(&mut self, wanted: &ReplicaSet, err: kube::Error) -> Result<ReplicaSet, SyncError> {
        let template = |rs: &ReplicaSet| rs.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        if let Some(known) = self.set_api.get_opt(name(wanted)).await?
            && is_controlled_by(&known, &self.deployment)
            && pod_template::is_same(&template(&known), &template(wanted))
        {
            return Ok(known);
        }
        let mut status = self.deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or_default().saturating_add(1));
        self.write_status(status).await?;
        Err(err.into())
    }

    /// Writes a ReplicaSet's size and for what it was sized, if either changes.
    async fn resize(&mut self, (set, to): Resize) -> Result<(), SyncError> {
        let mut resized = (*set).clone();
        let from = size(&set);
        let is_annotated_anew = annotate_size(&mut resized, &self.deployment);
        if from == to && !is_annotated_anew {
            return Ok(());
        }
        if let Some(spec) = &mut resized.spec {
            spec.replicas = Some(to);
        }
        let written = Arc::new(self.set_api.replace(name(&set), &PostParams::default(), &resized).await?);
        if from != to {
            self.tell_scaled(&written, from, to);
        }
        let same = |rs: &&mut Arc<ReplicaSet>| rs.metadata.uid == written.metadata.uid;
        if let Some(slot) = self.sets.old.iter_mut().chain(&mut self.sets.new).find(same) {
            *slot = written;
        }
        Ok(())
    }

    async fn clean_up(&self) -> Result<(), SyncError> {
        for old in plan_cleanup(&self.deployment, &self.sets.old) {
            let same = Preconditions { uid: old.metadata.uid.clone(), resource_version: None };
            ignore_not_found(self.set_api.delete(name(&old), &DeleteParams::default().preconditions(same)).await)?;
        }
        Ok(())
    }

    async fn write_progress(mut self) -> Result<Action, SyncError> {
        let now = Timestamp::now();
        let status = status::rolling(&self.deployment, &self.sets, now);
        let next = status::next_check(&self.deployment, &status, now);
        self.write_status(status).await?;
        Ok(next.map_or(Action::await_change(), Action::requeue))
    }

    async fn write_counts(mut self) -> Result<Action, SyncError> {
        let status = status::counted(&self.deployment, &self.sets, Timestamp::now());
        self.write_status(status).await?;
        Ok(Action::await_change())
    }

    async fn write_progress_condition(&mut self, status: (&str, &str), message: String) -> Result<(), SyncError> {
        let mut next = self.deployment.status.clone().unwrap_or_default();
        set_condition(&mut next, PROGRESSING, status, message, Timestamp::now());
        self.write_status(next).await
    }

    async fn write_status(&mut self, status: DeploymentStatus) -> Result<(), SyncError> {
        if self.deployment.status.as_ref().is_some_and(|old| is_same_status(old, &status)) {
            return Ok(());
        }
        self.deployment.status = Some(status);
        let deployment_name = self.deployment.name_any();
        self.deployment = self.api.replace_status(&deployment_name, &PostParams::default(), &self.deployment).await?;
        Ok(())
    }

    fn tell_scaled(&self, set: &ReplicaSet, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {} from {from} to {to}", name(set));
        self.controller.recorder.normal(&reference(&self.deployment), "ScalingReplicaSet", message);
    }

    fn tell_warning(&self, reason: &str, message: &str) {
        self.controller.recorder.warning(&reference(&self.deployment), reason, message);
    }
}

/// Numbers that are 0 are left out on the wire.
fn is_same_status(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let plain = |status: &DeploymentStatus| DeploymentStatus {
        replicas: Some(status.replicas.unwrap_or_default()),
        updated_replicas: Some(status.updated_replicas.unwrap_or_default()),
        ready_replicas: Some(status.ready_replicas.unwrap_or_default()),
        available_replicas: Some(status.available_replicas.unwrap_or_default()),
        unavailable_replicas: Some(status.unavailable_replicas.unwrap_or_default()),
        conditions: status.conditions.clone().filter(|conditions| !conditions.is_empty()),
        ..status.clone()
    };
    plain(a) == plain(b)
}
