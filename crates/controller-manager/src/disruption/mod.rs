//! Keeps the status of disruption budgets, by which evictions are granted, and takes back announcements of disruptions
//! that did not happen.

mod finders;
mod plan;

use std::sync::Arc;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    events::{Recorder, reference},
    informer::{Lister, NAMESPACE_INDEX, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use self::{
    finders::Finders,
    plan::{expected, failed, needs_scale, plan, until_stale},
};
use crate::{
    context::Context,
    endpointslice::index_by_namespace,
    error::SyncError,
    selector::{selector_of, selects},
};

/// Prefix of keys that stand for a pod that announces its disruption.
const ANNOUNCED: &str = "pod:";

pub(crate) struct DisruptionController {
    client: Client,
    recorder: Recorder,
    budgets: SharedInformer<PodDisruptionBudget>,
    budget_lister: Lister<PodDisruptionBudget>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    finders: Finders,
}

impl DisruptionController {
    pub(crate) fn new(context: &Context) -> Self {
        let budgets = context.informers.informer::<PodDisruptionBudget>();
        let pods = context.informers.informer::<Pod>();
        budgets.add_index(NAMESPACE_INDEX, index_by_namespace);
        pods.add_index(NAMESPACE_INDEX, index_by_namespace);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            budget_lister: budgets.lister(),
            budgets,
            pod_lister: pods.lister(),
            pods,
            finders: Finders::new(context),
        }
    }

    /// The status that the pods give, or why there is none.
    async fn look(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<plan::Plan, String> {
        let about = reference(budget);
        if pods.is_empty() {
            self.recorder.normal(&about, "NoPods", "No matching pods found");
        }
        let mut scale = 0;
        if needs_scale(budget) {
            let found = self.finders.find(pods).await.inspect_err(|err| {
                let text = format!("Failed to calculate the number of expected pods: {err}");
                self.recorder.warning(&about, "CalculateExpectedPodCountFailed", text);
            })?;
            scale = found.scale;
            if !found.unmanaged.is_empty() {
                let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
                let selector = selector_of(Some(&selector)).ok().flatten().map(|s| s.to_string()).unwrap_or_default();
                let text = format!(
                    "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
                );
                self.recorder.warning(&about, "UnmanagedPods", text);
            }
        }
        Ok(plan(budget, pods, expected(budget, pods.len(), scale), Timestamp::now()))
    }

    async fn write(&self, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Result<(), SyncError> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let about = reference(budget);
        let mut written = budget.clone();
        written.status = Some(status);
        let namespace = about.namespace.as_deref().unwrap_or_default();
        let api = Api::<PodDisruptionBudget>::namespaced(self.client.clone(), namespace);
        api.replace_status(about.name.as_deref().unwrap_or_default(), &PostParams::default(), &written).await?;
        Ok(())
    }

    async fn take_back(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(pod) = self.pod_lister.get(key) else { return Ok(Action::await_change()) };
        let now = Timestamp::now();
        let Some(left) = until_stale(&pod, now) else { return Ok(Action::await_change()) };
        if !left.is_zero() {
            return Ok(Action::requeue(left));
        }
        let patch = json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "conditions": [{
                "type": "DisruptionTarget",
                "status": "False",
                "lastTransitionTime": Time(now),
                "observedGeneration": pod.metadata.generation,
            }] },
        });
        let api = Api::<Pod>::namespaced(self.client.clone(), key.namespace());
        ignore_not_found(api.patch_status(key.name(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(Action::await_change())
    }
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = selector_of(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
    matches!(selector, Ok(Some(selector)) if selects(&selector, pod.metadata.labels.as_ref()))
}

impl Controller for DisruptionController {
    const NAME: &'static str = "disruption";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.budgets);
        let budgets = self.budget_lister.clone();
        let recorder = self.recorder.clone();
        watches.map(&self.pods, move |event| {
            let mut keys = Vec::new();
            let in_namespace = budgets.in_namespace(event.key().namespace());
            for (is_now, pod) in [(false, event.old()), (true, event.now())] {
                let Some(pod) = pod else { continue };
                let covering: Vec<_> = in_namespace.iter().filter(|budget| covers(budget, pod)).collect();
                if let (true, [first, _, ..]) = (is_now, &covering[..]) {
                    let text = format!(
                        "Pod {:?}/{:?} matches multiple PodDisruptionBudgets.  Chose {:?} arbitrarily.",
                        event.key().namespace(),
                        event.key().name(),
                        first.metadata.name.as_deref().unwrap_or_default(),
                    );
                    recorder.warning(&reference(&**pod), "MultiplePodDisruptionBudgets", text);
                }
                keys.extend(covering.into_iter().map(|budget| ObjectKey::of(&**budget)));
                if is_now && until_stale(pod, Timestamp::now()).is_some() {
                    keys.push(ObjectKey::from(&*format!("{ANNOUNCED}{}", event.key())));
                }
            }
            keys
        });
        self.finders.watches(watches);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        if let Some(pod) = key.as_str().strip_prefix(ANNOUNCED) {
            return self.take_back(&ObjectKey::from(pod)).await;
        }
        let Some(budget) = self.budget_lister.get(key) else { return Ok(Action::await_change()) };
        let pods: Vec<_> =
            self.pod_lister.in_namespace(key.namespace()).into_iter().filter(|pod| covers(&budget, pod)).collect();
        let plan = match self.look(&budget, &pods).await {
            Ok(plan) => plan,
            Err(message) => {
                let status = failed(&budget, &message, Timestamp::now());
                self.write(&budget, status).await?;
                return Err(SyncError::NotYet(message));
            }
        };
        for pod in &plan.not_deleted {
            let text = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.warning(&reference(&**pod), "NotDeleted", text);
        }
        match self.write(&budget, plan.status).await {
            Err(SyncError::Api(err)) if err.is_not_found() => Ok(Action::await_change()),
            Err(err) => Err(err),
            Ok(()) => Ok(plan.again.map_or_else(Action::await_change, Action::requeue)),
        }
    }
}
