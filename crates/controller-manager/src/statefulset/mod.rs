//! Gives each replica of a StatefulSet a name, a place and storage that stay.

mod claims;
mod plan;
mod pod;

use std::sync::Arc;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    events::{Recorder, reference},
    informer::{Lister, SharedInformer},
};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use self::plan::{Facts, Revision, Step};
use crate::{
    context::Context,
    error::SyncError,
    expectations::Expectations,
    history,
    owner::{CONTROLLER_INDEX, candidates, claim, could_own, index_by_controller, is_orphan},
    pod::{Availability, availability, seconds},
    pod_control::said,
    selector::selector_of,
};

/// The label of a revision with its content's hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

pub(crate) struct StatefulSetController {
    client: Client,
    recorder: Recorder,
    sets: SharedInformer<StatefulSet>,
    set_lister: Lister<StatefulSet>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    claims: SharedInformer<PersistentVolumeClaim>,
    claim_lister: Lister<PersistentVolumeClaim>,
    revisions: SharedInformer<ControllerRevision>,
    revision_lister: Lister<ControllerRevision>,
    expectations: Expectations,
}

impl StatefulSetController {
    pub(crate) fn new(context: &Context) -> Self {
        let sets = context.informers.informer::<StatefulSet>();
        let pods = context.informers.informer::<Pod>();
        let claims = context.informers.informer::<PersistentVolumeClaim>();
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
            claim_lister: claims.lister(),
            claims,
            revision_lister: revisions.lister(),
            revisions,
            expectations: Expectations::default(),
        }
    }
}

impl Controller for StatefulSetController {
    const NAME: &'static str = "statefulset";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.sets);
        watches.controlled_by::<StatefulSet, Pod>(&self.pods);
        watches.controlled_by::<StatefulSet, ControllerRevision>(&self.revisions);
        watches.read(&self.claims);
        let sets = self.set_lister.clone();
        watches.map(&self.pods, move |event| {
            let pod = event.now().filter(|pod| is_orphan(&***pod))?;
            let (parent, _) = pod::parent_and_ordinal(pod)?;
            let key = ObjectKey::new(pod.metadata.namespace.as_deref().unwrap_or_default(), parent);
            let set = sets.get(&key)?;
            could_own(set.spec.as_ref().map(|spec| &spec.selector), &**pod).then_some(key)
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(set) = self.set_lister.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::await_change());
        };
        let Some(spec) = &set.spec else { return Ok(Action::await_change()) };
        let Some(selector) = selector_of(Some(&spec.selector))? else { return Ok(Action::await_change()) };
        if !self.expectations.are_met(key, &self.pod_lister) {
            return Ok(Action::await_change());
        }
        let found = candidates(&self.pod_lister, &*set);
        let found = found.into_iter().filter(|pod| pod::is_member(&set, pod)).collect();
        let pods = claim(&self.client, &*set, &selector, found).await?;
        let mut sorted =
            self.revision_lister.by_index(CONTROLLER_INDEX, set.metadata.uid.as_deref().unwrap_or_default());
        history::sort(&mut sorted);
        let update = self.update_revision(&set, &sorted).await?;
        let current_name = set.status.as_ref().and_then(|status| status.current_revision.clone()).unwrap_or_default();
        let current = sorted.iter().find(|known| known.name_any() == current_name);
        let current = current.map_or_else(|| update.clone(), |known| revision(&set, known));

        let now = Timestamp::now();
        let facts = Facts { set: &set, current: &current, update: &update, pods: &pods, now };
        let outcome = self.act(key, &set, facts.plan()).await;
        for pod in &pods {
            self.keep_claims(&set, pod).await?;
        }
        let status = facts.status(set.status.as_ref().and_then(|status| status.collision_count));
        if set.status.as_ref() != Some(&status) {
            let mut set = (*set).clone();
            set.status = Some(status);
            let api = Api::<StatefulSet>::namespaced(self.client.clone(), key.namespace());
            api.replace_status(key.name(), &PostParams::default(), &set).await?;
        }
        outcome?;
        self.truncate_history(&set, &sorted, &pods, [&current.name, &update.name]).await?;
        let min_ready = seconds(spec.min_ready_seconds);
        let soonest = pods.iter().filter_map(|pod| match availability(pod, min_ready, now) {
            Availability::In(left) => Some(left),
            Availability::Available | Availability::NotReady => None,
        });
        Ok(soonest.min().map_or(Action::await_change(), Action::requeue))
    }
}

/// A revision with its template; one that cannot be read stands for the present template.
fn revision(set: &StatefulSet, known: &ControllerRevision) -> Revision {
    let stored = known.data.as_ref().and_then(|data| history::template_of(&data.0));
    let present = || set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    Revision { name: known.name_any(), template: stored.unwrap_or_else(present) }
}

impl StatefulSetController {
    async fn update_revision(
        &self,
        set: &StatefulSet,
        sorted: &[Arc<ControllerRevision>],
    ) -> Result<Revision, SyncError> {
        let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let selected = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let wanted = history::revision_of(set, history::data_of(&template)?, selected, HASH_LABEL, collisions);
        let namespace = set.namespace().unwrap_or_default();
        let api = Api::<ControllerRevision>::namespaced(self.client.clone(), &namespace);
        match history::ensure(&api, wanted, sorted).await {
            Ok(update) => Ok(revision(set, &update)),
            Err(Some(err)) => Err(err),
            Err(None) => {
                let mut set = set.clone();
                set.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or_default() + 1);
                let sets = Api::<StatefulSet>::namespaced(self.client.clone(), &namespace);
                sets.replace_status(&set.name_any(), &PostParams::default(), &set).await?;
                Err(SyncError::NotYet("the name of a revision was taken".to_owned()))
            }
        }
    }

    /// Carries the steps out: they do not depend on each other.
    async fn act(&self, key: &ObjectKey, set: &StatefulSet, steps: Vec<Step>) -> Result<(), SyncError> {
        let outcomes = join_all(steps.into_iter().map(|step| self.take(key, set, step))).await;
        outcomes.into_iter().collect()
    }

    async fn take(&self, key: &ObjectKey, set: &StatefulSet, step: Step) -> Result<(), SyncError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), key.namespace());
        match step {
            Step::Create(pod) => {
                self.create_claims(set, &pod).await?;
                match api.create(&PostParams::default(), &pod).await {
                    Ok(created) => {
                        self.expectations.wrote(key, &created);
                        self.tell(set, "create", "Create", "Pod", &pod.name_any(), None);
                        Ok(())
                    }
                    // Its predecessor is not gone yet, or this is our own that the cache does not show.
                    Err(err) if err.is_already_exists() => {
                        Err(SyncError::NotYet("a pod of this name exists".to_owned()))
                    }
                    Err(err) => {
                        self.tell(set, "create", "Create", "Pod", &pod.name_any(), Some(&err));
                        Err(err.into())
                    }
                }
            }
            Step::Identify(pod) => {
                self.create_claims(set, &pod).await?;
                // Of what is written back, the cache has not all.
                let mut whole = api.get(&pod.name_any()).await?;
                pod::identify(set, &mut whole);
                let updated = api.replace(&pod.name_any(), &PostParams::default(), &whole).await?;
                self.expectations.wrote(key, &updated);
                self.tell(set, "update", "Update", "Pod", &pod.name_any(), None);
                Ok(())
            }
            Step::Delete(pod) => {
                let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
                match api.delete(&pod.name_any(), &DeleteParams::default().preconditions(same)).await {
                    Ok(_) => {
                        self.expectations.deleted(key, &*pod);
                        self.tell(set, "delete", "Delete", "Pod", &pod.name_any(), None);
                        Ok(())
                    }
                    Err(err) if err.is_not_found() || err.is_conflict() => Ok(()),
                    Err(err) => {
                        self.tell(set, "delete", "Delete", "Pod", &pod.name_any(), Some(&err));
                        Err(err.into())
                    }
                }
            }
        }
    }

    async fn create_claims(&self, set: &StatefulSet, pod: &Pod) -> Result<(), SyncError> {
        let namespace = set.namespace().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &namespace);
        for claim in pod::claims(set, pod::ordinal(pod)).into_values() {
            let name = claim.name_any();
            match self.claim_lister.get(&ObjectKey::new(&namespace, &name)) {
                Some(known) if known.metadata.deletion_timestamp.is_some() => {
                    return Err(SyncError::NotYet(format!("claim {name} is being deleted")));
                }
                Some(_) => continue,
                None => {}
            }
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let (pod, set_name) = (pod.name_any(), set.name_any());
                    let message = format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                    self.recorder.normal(&reference(set), "SuccessfulCreate", message);
                }
                Err(err) if err.is_already_exists() => {}
                Err(err) => {
                    let (pod, set_name, said) = (pod.name_any(), set.name_any(), said(&err));
                    let message =
                        format!("create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {said}");
                    self.recorder.warning(&reference(set), "FailedCreate", message);
                    return Err(err.into());
                }
            }
        }
        Ok(())
    }

    async fn keep_claims(&self, set: &StatefulSet, pod: &Pod) -> Result<(), SyncError> {
        let namespace = set.namespace().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &namespace);
        for wanted in pod::claims(set, pod::ordinal(pod)).into_values() {
            let name = wanted.name_any();
            let Some(known) = self.claim_lister.get(&ObjectKey::new(&namespace, &name)) else { continue };
            if let Some(owners) = claims::plan(set, pod, &known) {
                let version = &known.metadata.resource_version;
                let patch = json!({ "metadata": { "resourceVersion": version, "ownerReferences": owners } });
                let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
                client::error::ignore_not_found(patched)?;
            }
        }
        Ok(())
    }

    async fn truncate_history(
        &self,
        set: &StatefulSet,
        sorted: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
        live: [&String; 2],
    ) -> Result<(), SyncError> {
        let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let api = Api::<ControllerRevision>::namespaced(self.client.clone(), &set.namespace().unwrap_or_default());
        let is_used = |revision: &ControllerRevision| {
            let name = revision.name_any();
            live.contains(&&name) || pods.iter().any(|pod| pod::revision(pod) == name)
        };
        history::truncate(&api, sorted, is_used, usize::try_from(limit).unwrap_or_default()).await
    }

    fn tell(&self, set: &StatefulSet, verb: &str, reason: &str, kind: &str, name: &str, err: Option<&kube::Error>) {
        let set_name = set.name_any();
        match err {
            None => {
                let message = format!("{verb} {kind} {name} in StatefulSet {set_name} successful");
                self.recorder.normal(&reference(set), &format!("Successful{reason}"), message);
            }
            Some(err) if !err.is_namespace_terminating() => {
                let message = format!("{verb} {kind} {name} in StatefulSet {set_name} failed error: {}", said(err));
                self.recorder.warning(&reference(set), &format!("Failed{reason}"), message);
            }
            Some(_) => {}
        }
    }
}
