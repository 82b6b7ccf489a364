//! Runs the pods of a Job until enough of them have succeeded or too many failed.

mod indexes;
mod plan;
mod pod;
mod policy;

use std::{sync::Arc, time::Duration};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    events::{Recorder, reference},
    informer::{Event, Lister, SharedInformer},
};
use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::Pod,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use self::plan::{FINALIZER, Plan, is_tracked, plan};
pub(crate) use self::plan::{condition as job_condition, is_finished as is_job_finished};
use crate::{
    context::Context,
    error::SyncError,
    expectations::Expectations,
    owner::{CONTROLLER_INDEX, candidates, claim, controller_of, could_own, index_by_controller, is_orphan},
    pod_control::{PodControl, slow_start},
    selector::selector_of,
};

const MANAGER: &str = "kubernetes.io/job-controller";
/// Finalizers taken away at once.
const AT_ONCE: usize = 16;

pub(crate) struct JobController {
    client: Client,
    recorder: Recorder,
    jobs: SharedInformer<Job>,
    job_lister: Lister<Job>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    control: PodControl,
    expectations: Expectations,
}

impl JobController {
    pub(crate) fn new(context: &Context) -> Self {
        let jobs = context.informers.informer::<Job>();
        let pods = context.informers.informer::<Pod>();
        pods.add_index(CONTROLLER_INDEX, index_by_controller);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            job_lister: jobs.lister(),
            jobs,
            pod_lister: pods.lister(),
            pods,
            control: PodControl::new(context.client.clone(), context.recorder.clone()),
            expectations: Expectations::default(),
        }
    }
}

fn is_ours(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_none_or(|by| by == MANAGER)
}

impl Controller for JobController {
    const NAME: &'static str = "job";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.jobs);
        watches.controlled_by::<Job, Pod>(&self.pods);
        let jobs = self.job_lister.clone();
        watches.map(&self.pods, move |event| {
            let Some(pod) = event.now() else { return Vec::new() };
            let key = event.key();
            if is_orphan(&**pod) {
                let could =
                    |job: &Arc<Job>| could_own(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()), &**pod);
                let owners = jobs.in_namespace(key.namespace()).into_iter().filter(could);
                return owners.map(|job| ObjectKey::of(&*job)).collect();
            }
            Vec::new()
        });
        // The pods of a Job that is gone are held by our finalizer.
        let jobs = self.job_lister.clone();
        watches.map(&self.pods, move |event| {
            let pod = event.now().filter(|pod| is_tracked(pod) && pod.metadata.deletion_timestamp.is_some())?;
            let owner = controller_of(&**pod).filter(|owner| owner.kind == "Job")?;
            let key = ObjectKey::new(event.key().namespace(), &owner.name);
            jobs.get(&key).is_none().then(|| ObjectKey::from(&*format!("{ORPHAN}{}", event.key())))
        });
        let pods = self.pod_lister.clone();
        watches.map(&self.jobs, move |event| {
            let Event::Deleted(job) = event else { return Vec::new() };
            let held = pods.by_index(CONTROLLER_INDEX, job.metadata.uid.as_deref().unwrap_or_default());
            let held = held.into_iter().filter(|pod| is_tracked(pod));
            held.map(|pod| ObjectKey::from(&*format!("{ORPHAN}{}", ObjectKey::of(&*pod)))).collect::<Vec<_>>()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        if let Some(pod) = key.as_str().strip_prefix(ORPHAN) {
            return self.release_orphan(&ObjectKey::from(pod)).await;
        }
        let Some(job) = self.job_lister.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::await_change());
        };
        if !is_ours(&job) || !self.expectations.are_met(key, &self.pod_lister) {
            return Ok(Action::await_change());
        }
        let Some(selector) = selector_of(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()))? else {
            return Ok(Action::await_change());
        };
        let pods = claim(&self.client, &*job, &selector, candidates(&self.pod_lister, &*job)).await?;
        if is_job_finished(&job) {
            let held: Vec<_> = pods.into_iter().filter(|pod| is_tracked(pod)).collect();
            self.untrack(key, &held).await?;
            return Ok(Action::await_change());
        }
        let plan = plan(&job, &pods, Timestamp::now());
        self.act(key, &job, plan).await
    }
}

/// Prefix of keys that stand for a pod whose Job is gone.
const ORPHAN: &str = "orphan:";

impl JobController {
    async fn act(&self, key: &ObjectKey, job: &Job, plan: Plan) -> Result<Action, SyncError> {
        // Pods of a Job that is being deleted are the garbage collector's.
        let is_leaving = job.metadata.deletion_timestamp.is_some();
        let mut failure = None;
        if !is_leaving {
            let deletions = plan.delete.iter().map(|pod| async {
                self.control.delete(job, pod).await?;
                self.expectations.deleted(key, &**pod);
                Ok(())
            });
            failure = join_all(deletions).await.into_iter().find_map(Result::err);
            let (_, failed) = slow_start(plan.create.len(), |index| {
                let pod = pod::new_pod(job, &plan.create[index]);
                async move {
                    let created = self.control.create(job, &pod).await?;
                    self.expectations.wrote(key, &created);
                    Ok(())
                }
            })
            .await;
            failure = failure.or(failed);
        }
        // First what is accounted for is written, then it is let go.
        if job.status.as_ref() != Some(&plan.status) {
            let mut job = job.clone();
            job.status = Some(plan.status);
            let api = Api::<Job>::namespaced(self.client.clone(), key.namespace());
            api.replace_status(key.name(), &PostParams::default(), &job).await?;
        }
        if let Some(news) = &plan.news {
            self.tell(job, news);
        }
        self.untrack(key, &plan.untrack).await?;
        match (failure, plan.again) {
            (Some(err), _) => Err(err.into()),
            (None, Some(Duration::ZERO)) => Ok(Action::Requeue(Duration::from_millis(100))),
            (None, Some(again)) => Ok(Action::requeue(again)),
            (None, None) => Ok(Action::await_change()),
        }
    }

    /// Takes our finalizer off pods that are accounted for.
    async fn untrack(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> Result<(), SyncError> {
        stream::iter(pods.to_vec())
            .map(|pod| async move {
                if let Some(freed) = self.release(&pod).await? {
                    self.expectations.wrote(key, &freed);
                }
                Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn release(&self, pod: &Pod) -> Result<Option<Pod>, SyncError> {
        let remove =
            json!({ "metadata": { "uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(remove)).await {
            // A pod that only waited for this is gone with it; nothing more will be seen of it than its deletion.
            Ok(freed) => Ok(freed.metadata.deletion_timestamp.is_none().then_some(freed)),
            Err(err) if err.is_not_found() || err.is_conflict() => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    async fn release_orphan(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        if let Some(pod) = self.pod_lister.get(key).filter(|pod| is_tracked(pod)) {
            self.release(&pod).await?;
        }
        Ok(Action::await_change())
    }

    fn tell(&self, job: &Job, news: &JobCondition) {
        let (reason, message) = (news.reason.as_deref().unwrap_or_default(), news.message.clone().unwrap_or_default());
        let job = reference(job);
        match (news.type_.as_str(), news.status.as_str()) {
            ("Complete", _) => self.recorder.normal(&job, "Completed", "Job completed"),
            ("Suspended", "True") => self.recorder.normal(&job, "Suspended", message),
            ("Suspended", _) => self.recorder.normal(&job, "Resumed", message),
            _ => self.recorder.warning(&job, reason, message),
        }
    }
}
