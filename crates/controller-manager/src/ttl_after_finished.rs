//! Deletes finished Jobs when their time to live is over.

use std::time::Duration;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Lister, SharedInformer},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions, PropagationPolicy},
};

use crate::{context::Context, error::SyncError, job::job_condition};

pub(crate) struct TtlAfterFinished {
    client: Client,
    jobs: SharedInformer<Job>,
    lister: Lister<Job>,
}

impl TtlAfterFinished {
    pub(crate) fn new(context: &Context) -> Self {
        let jobs = context.informers.informer::<Job>();
        Self { client: context.client.clone(), lister: jobs.lister(), jobs }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Leave,
    Wait(Duration),
    Delete,
}

fn plan(job: &Job, now: Timestamp) -> Plan {
    let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    let status = job.status.as_ref();
    let ended = status.and_then(|status| job_condition(status, "Complete").or(job_condition(status, "Failed")));
    let at = ended.and_then(|condition: &JobCondition| condition.last_transition_time.as_ref());
    let (Some(ttl), Some(at), None) = (ttl, at, &job.metadata.deletion_timestamp) else { return Plan::Leave };
    let left = SignedDuration::from_secs(i64::from(ttl)) - now.duration_since(at.0);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Plan::Wait(left),
        _ => Plan::Delete,
    }
}

impl Controller for TtlAfterFinished {
    const NAME: &'static str = "ttl_jobs_to_delete";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.jobs);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(job) = self.lister.get(key) else { return Ok(Action::await_change()) };
        match plan(&job, Timestamp::now()) {
            Plan::Leave => Ok(Action::await_change()),
            Plan::Wait(left) => Ok(Action::requeue(left)),
            Plan::Delete => {
                // Just as it was seen: its time may have been prolonged meanwhile.
                let same = Preconditions {
                    uid: job.metadata.uid.clone(),
                    resource_version: job.metadata.resource_version.clone(),
                };
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Foreground),
                    preconditions: Some(same),
                    ..DeleteParams::default()
                };
                let api = Api::<Job>::namespaced(self.client.clone(), key.namespace());
                match api.delete(key.name(), &params).await {
                    Err(err) if !err.is_not_found() => Err(err.into()),
                    Ok(_) | Err(_) => Ok(Action::await_change()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::batch::v1::{JobSpec, JobStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    fn check(ttl: Option<i32>, finished: Option<i64>, want: Plan) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let condition = finished.map(|second| JobCondition {
            type_: "Complete".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(second))),
            ..JobCondition::default()
        });
        let job = Job {
            spec: Some(JobSpec { ttl_seconds_after_finished: ttl, ..JobSpec::default() }),
            status: Some(JobStatus { conditions: Some(condition.into_iter().collect()), ..JobStatus::default() }),
            ..Job::default()
        };
        assert_eq!(plan(&job, at(100)), want);
    }

    #[test]
    fn finished_jobs_go_when_their_time_is_over() {
        check(None, Some(1), Plan::Leave);
        check(Some(60), None, Plan::Leave);
        check(Some(60), Some(70), Plan::Wait(Duration::from_secs(30)));
        check(Some(60), Some(40), Plan::Delete);
        check(Some(0), Some(100), Plan::Delete);
    }
}
