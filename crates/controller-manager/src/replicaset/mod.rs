//! Keeps as many pods as a ReplicaSet, or a ReplicationController, asks for.

mod kind;
mod plan;
mod status;

use std::sync::Arc;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Event, Lister, SharedInformer},
};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::PostParams};

pub(crate) use kind::ReplicaKind;

use crate::{
    context::Context,
    error::SyncError,
    expectations::Expectations,
    owner::{CONTROLLER_INDEX, candidates, claim, could_own, index_by_controller, is_orphan},
    pod::{is_active, is_terminating, seconds},
    pod_control::{PodControl, pod_of, slow_start},
    selector::selector_of,
};
use plan::{Failure, Plan};

/// Pods created or deleted by one reconcile at most; the rest follows when these are seen.
const BURST: usize = 500;

pub(crate) struct ReplicaController<K: ReplicaKind> {
    client: Client,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    owners: SharedInformer<K>,
    owner_lister: Lister<K>,
    control: PodControl,
    /// Pods that were written.
    expectations: Expectations,
    /// Our own writes of the owner.
    own_writes: Expectations,
}

impl<K: ReplicaKind> ReplicaController<K> {
    pub(crate) fn new(context: &Context) -> Self {
        let (pods, owners) = (context.informers.informer::<Pod>(), context.informers.informer::<K>());
        pods.add_index(CONTROLLER_INDEX, index_by_controller);
        owners.add_index(CONTROLLER_INDEX, index_by_controller);
        Self {
            client: context.client.clone(),
            pod_lister: pods.lister(),
            pods,
            owner_lister: owners.lister(),
            owners,
            control: PodControl::new(context.client.clone(), context.recorder.clone()),
            expectations: Expectations::default(),
            own_writes: Expectations::default(),
        }
    }

    /// Brings the number of pods to what is wanted, and says what stood in the way.
    async fn act(&self, key: &ObjectKey, owner: &K, plan: &Plan) -> Option<Failure> {
        match plan {
            Plan::Leave => None,
            Plan::Create(count) => {
                let pod = pod_of(owner, owner.template()?);
                let (_, failure) = slow_start(*count, |_| async {
                    let created = self.control.create(owner, &pod).await?;
                    self.expectations.wrote(key, &created);
                    Ok(())
                })
                .await;
                failure.map(Failure::create)
            }
            Plan::Delete(victims) => {
                let deletions = victims.iter().map(|pod| async {
                    self.control.delete(owner, pod).await?;
                    self.expectations.deleted(key, &**pod);
                    Ok(())
                });
                let failure = join_all(deletions).await.into_iter().find_map(Result::err);
                failure.map(Failure::delete)
            }
        }
    }

    async fn write_status(&self, key: &ObjectKey, owner: &K, status: K::Status) -> Result<(), SyncError> {
        let api = Api::<K>::namespaced(self.client.clone(), &owner.namespace().unwrap_or_default());
        let mut owner = owner.clone();
        owner.set_status(status);
        let written = api.replace_status(&owner.name_any(), &PostParams::default(), &owner).await?;
        self.own_writes.wrote(key, &written);
        Ok(())
    }
}

impl<K: ReplicaKind> Controller for ReplicaController<K> {
    const NAME: &'static str = K::QUEUE;
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.owners);
        watches.controlled_by::<K, Pod>(&self.pods);
        // An orphan may be anybody's whose selector it matches.
        let owners = self.owner_lister.clone();
        watches.map(&self.pods, move |event| orphan_keys(&owners, event));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(owner) = self.owner_lister.get(key) else {
            self.expectations.forget(key);
            self.own_writes.forget(key);
            return Ok(Action::await_change());
        };
        if !self.own_writes.are_met(key, &self.owner_lister) {
            return Ok(Action::await_change());
        }
        let Some(selector) = selector_of(owner.label_selector().as_ref())?.filter(|s| !s.selects_all()) else {
            return Ok(Action::await_change());
        };
        let fresh = self.expectations.are_met(key, &self.pod_lister);
        let (alive, leaving): (Vec<_>, Vec<_>) = candidates(&self.pod_lister, &*owner)
            .into_iter()
            .filter(|pod| is_active(pod) || is_terminating(pod))
            .partition(|pod| is_active(pod));
        let leaving = leaving.iter().filter(|pod| crate::owner::is_controlled_by(&***pod, &*owner)).count();
        let pods = claim(&self.client, &*owner, &selector, alive).await?;

        let now = Timestamp::now();
        let mut failure = None;
        if fresh && owner.meta().deletion_timestamp.is_none() {
            let related = || self.related_pods(&owner);
            let plan = plan::plan(owner.wanted(), &pods, related, BURST, now);
            if plan != Plan::Leave {
                tracing::debug!(controller = K::QUEUE, %key, plan = plan.describe(), "too few or too many replicas");
            }
            failure = self.act(key, &owner, &plan).await;
        }
        let min_ready = seconds(owner.min_ready_seconds());
        let counted = status::count(&pods, leaving, owner.template(), min_ready, now);
        if let Some(status) = owner.next_status(&counted, failure.as_ref(), now) {
            self.write_status(key, &owner, status).await?;
        }
        match failure {
            Some(failure) => Err(SyncError::Api(failure.into_error())),
            None => Ok(counted.next_available.map_or(Action::await_change(), Action::requeue)),
        }
    }
}

impl<K: ReplicaKind> ReplicaController<K> {
    /// The pods of all controllers that have the same controller as `owner`, such as the ReplicaSets of one Deployment:
    /// of these not too many should share a node.
    fn related_pods(&self, owner: &K) -> Vec<Arc<Pod>> {
        let siblings = match crate::owner::controller_of(owner) {
            Some(parent) => self.owner_lister.by_index(CONTROLLER_INDEX, &parent.uid),
            None => self.owner_lister.get(&ObjectKey::of(owner)).into_iter().collect(),
        };
        let pods_of = |sibling: &Arc<K>| {
            self.pod_lister.by_index(CONTROLLER_INDEX, sibling.meta().uid.as_deref().unwrap_or_default())
        };
        siblings.iter().flat_map(pods_of).filter(|pod| is_active(pod)).collect()
    }
}

fn orphan_keys<K: ReplicaKind>(owners: &Lister<K>, event: &Event<Pod>) -> Vec<ObjectKey> {
    let Some(pod) = event.now().filter(|pod| is_orphan(&***pod) && is_active(pod)) else { return Vec::new() };
    owners
        .in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default())
        .iter()
        .filter(|owner| could_own(owner.label_selector().as_ref(), &**pod))
        .map(|owner| ObjectKey::of(&**owner))
        .collect()
}
