//! Starts Jobs at the times of their CronJobs, and removes old ones.

mod plan;
mod schedule;

use std::{collections::HashSet, sync::Arc};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    events::{EventType, Recorder, reference},
    informer::{Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{CronJob, CronJobStatus, Job},
    core::v1::ObjectReference,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, PropagationPolicy},
};

use self::plan::{Run, account, forget, new_job, note_started, plan, surplus};
use crate::{
    context::Context,
    error::SyncError,
    job::is_job_finished,
    owner::{CONTROLLER_INDEX, index_by_controller, is_controlled_by},
    pod_control::said,
};

pub(crate) struct CronJobController {
    client: Client,
    recorder: Recorder,
    cron_jobs: SharedInformer<CronJob>,
    lister: Lister<CronJob>,
    jobs: SharedInformer<Job>,
    job_lister: Lister<Job>,
}

impl CronJobController {
    pub(crate) fn new(context: &Context) -> Self {
        let cron_jobs = context.informers.informer::<CronJob>();
        let jobs = context.informers.informer::<Job>();
        jobs.add_index(CONTROLLER_INDEX, index_by_controller);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            lister: cron_jobs.lister(),
            cron_jobs,
            job_lister: jobs.lister(),
            jobs,
        }
    }

    fn tell(&self, cron_job: &CronJob, notes: Vec<plan::Note>) {
        let about = reference(cron_job);
        for (event_type, reason, text) in notes {
            match event_type {
                EventType::Normal => self.recorder.normal(&about, reason, text),
                EventType::Warning => self.recorder.warning(&about, reason, text),
            }
        }
    }

    fn jobs_in(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn delete(&self, cron_job: &CronJob, name: &str) -> Result<(), SyncError> {
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        let about = reference(cron_job);
        match self.jobs_in(about.namespace.as_deref().unwrap_or_default()).delete(name, &params).await {
            Ok(_) => self.recorder.normal(&about, "SuccessfulDelete", format!("Deleted job {name}")),
            Err(err) if err.is_not_found() => {}
            Err(err) => {
                self.recorder.warning(&about, "FailedDelete", format!("Deleted job: {}", said(&err)));
                return Err(err.into());
            }
        }
        Ok(())
    }

    /// Drops runs from the status whose Job is really gone, not only missing in the cache.
    async fn drop_missing(
        &self,
        cron_job: &CronJob,
        status: &mut CronJobStatus,
        known: &[Arc<Job>],
    ) -> Result<(), SyncError> {
        let known: HashSet<_> = known.iter().map(|job| job.metadata.uid.clone()).collect();
        for listed in status.active.clone().unwrap_or_default() {
            if known.contains(&listed.uid) {
                continue;
            }
            let name = listed.name.unwrap_or_default();
            if self.jobs_in(&listed.namespace.unwrap_or_default()).get_opt(&name).await?.is_none() {
                let text = format!("Active job went missing: {name}");
                self.recorder.normal(&reference(cron_job), "MissingJob", text);
                forget(status, listed.uid.as_deref());
            }
        }
        Ok(())
    }

    async fn start(&self, cron_job: &CronJob, status: &mut CronJobStatus, run: &Run) -> Result<(), SyncError> {
        let about: ObjectReference = reference(cron_job);
        if run.replaces {
            for listed in status.active.clone().unwrap_or_default() {
                self.delete(cron_job, listed.name.as_deref().unwrap_or_default()).await?;
                forget(status, listed.uid.as_deref());
            }
        }
        let wanted = new_job(cron_job, run.at);
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let api = self.jobs_in(about.namespace.as_deref().unwrap_or_default());
        let job = match api.create(&PostParams::default(), &wanted).await {
            Ok(job) => {
                self.recorder.normal(&about, "SuccessfulCreate", format!("Created job {name}"));
                job
            }
            Err(err) if err.is_namespace_terminating() => return Ok(()),
            // Started before the status could be written; somebody else's Job of that name is in the way.
            Err(err) if err.is_already_exists() => {
                let job = api.get(&name).await?;
                if !is_controlled_by(&job, cron_job) {
                    return Err(err.into());
                }
                if is_job_finished(&job) {
                    return Ok(());
                }
                job
            }
            Err(err) => {
                self.recorder.warning(&about, "FailedCreate", format!("Error creating job: {}", said(&err)));
                return Err(err.into());
            }
        };
        note_started(status, &job, run.at);
        Ok(())
    }
}

impl Controller for CronJobController {
    const NAME: &'static str = "cronjob";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.cron_jobs);
        watches.controlled_by::<CronJob, Job>(&self.jobs);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(cron_job) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let api = Api::<CronJob>::namespaced(self.client.clone(), key.namespace());
        let jobs = self.job_lister.by_index(CONTROLLER_INDEX, cron_job.metadata.uid.as_deref().unwrap_or_default());
        let before = cron_job.status.clone().unwrap_or_default();
        // A run that the cached status does not list may be one that we just started.
        let is_unknown =
            |job: &Arc<Job>| !is_job_finished(job) && !plan::is_active(&before, job.metadata.uid.as_deref());
        let cron_job = if jobs.iter().any(is_unknown) { Arc::new(api.get(key.name()).await?) } else { cron_job };
        let before = cron_job.status.clone().unwrap_or_default();
        let mut status = before.clone();
        self.tell(&cron_job, account(&mut status, &jobs));
        self.drop_missing(&cron_job, &mut status, &jobs).await?;
        let plan = plan(&cron_job, &status, Timestamp::now());
        self.tell(&cron_job, plan.notes);
        let started = match &plan.start {
            Some(run) => self.start(&cron_job, &mut status, run).await,
            None => Ok(()),
        };
        for job in surplus(&cron_job.spec, &jobs) {
            self.delete(&cron_job, job.metadata.name.as_deref().unwrap_or_default()).await?;
            forget(&mut status, job.metadata.uid.as_deref());
        }
        if status != before {
            let mut written = (*cron_job).clone();
            written.status = Some(status);
            api.replace_status(key.name(), &PostParams::default(), &written).await?;
        }
        started?;
        Ok(plan.again.map_or_else(Action::await_change, Action::requeue))
    }
}
