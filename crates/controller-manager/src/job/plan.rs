//! One look at a Job and its pods, and all that follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    indexes,
    policy::{Verdict, judge, success_rule},
};
use crate::pod::{is_active, is_ready, is_terminating, phase, rank_for_deletion};

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

/// Pods created, deleted or counted by one look at most.
const BURST: usize = 500;
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LAST_PAUSE: Duration = Duration::from_secs(600);

/// A pod to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NewPod {
    pub(super) index: Option<i32>,
    /// How often the index failed before, where that is counted.
    pub(super) failures: Option<i32>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: JobStatus,
    /// Pods that are accounted for in `status`: their finalizer is taken away after it was written.
    pub(super) untrack: Vec<Arc<Pod>>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) create: Vec<NewPod>,
    /// When to look again if nothing changes.
    pub(super) again: Option<Duration>,
    /// The condition by which the Job ended, or was suspended or resumed, just now.
    pub(super) news: Option<JobCondition>,
}

pub(crate) fn condition<'a>(status: &'a JobStatus, condition_type: &str) -> Option<&'a JobCondition> {
    let conditions = status.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == condition_type && condition.status == "True")
}

pub(crate) fn is_finished(job: &Job) -> bool {
    let status = job.status.as_ref();
    status.is_some_and(|status| ["Complete", "Failed"].iter().any(|name| condition(status, name).is_some()))
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER)
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// When the pod ended, as well as can be told.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let finished = containers.iter().filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let left = pod.metadata.deletion_timestamp.as_ref();
    finished.max().or(left).or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// Everything that one look works with.
struct Look<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
    /// Whether pods have a place each.
    is_indexed: bool,
    completions: Option<i32>,
    /// Whether a pod that is on its way out is replaced only once it has failed.
    replaces_failed_only: bool,
}

pub(super) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let default = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&default);
    let look = Look {
        job,
        spec,
        pods,
        now,
        is_indexed: spec.completion_mode.as_deref() == Some("Indexed"),
        completions: spec.completions,
        replaces_failed_only: match spec.pod_replacement_policy.as_deref() {
            Some(policy) => policy == "Failed",
            None => spec.pod_failure_policy.is_some(),
        },
    };
    look.plan()
}

/// What the finished pods add up to, counted or not.
#[derive(Debug, Default)]
struct Counts {
    succeeded: i32,
    failed: i32,
    succeeded_indexes: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    /// Failures of each index so far.
    index_failures: BTreeMap<i32, i32>,
    /// A rule says that the Job has failed.
    fail_job: Option<String>,
}

impl Look<'_> {
    fn is_failed(&self, pod: &Pod) -> bool {
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        phase(pod) == "Failed" || (is_leaving && !self.replaces_failed_only && phase(pod) != "Succeeded")
    }

    fn plan(&self) -> Plan {
        let mut plan = Plan { status: self.job.status.clone().unwrap_or_default(), ..Plan::default() };
        let suspended = self.spec.suspend == Some(true);
        if plan.status.start_time.is_none() && !suspended {
            plan.status.start_time = Some(Time(self.now));
        }
        let counts = self.count(&mut plan);
        let active: Vec<_> = self.pods.iter().filter(|pod| is_active(pod)).cloned().collect();
        let ending = self.ending(&plan.status, &counts, active.len());
        if let Some(ending) = ending {
            self.end(&mut plan, ending, active);
        } else if suspended {
            plan.delete = active;
        } else {
            self.manage(&mut plan, &counts, active);
        }
        self.suspension(&mut plan, suspended);
        self.numbers(&mut plan);
        plan
    }

    /// Brings the counts in the status up to date. A finished pod goes through three states: with finalizer and not
    /// counted; its uid in the status; without finalizer and part of the number. A crash between any two loses nothing.
    fn count(&self, plan: &mut Plan) -> Counts {
        let status = &mut plan.status;
        let max = self.completions.unwrap_or(i32::MAX);
        let mut counts = Counts {
            succeeded_indexes: indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), max),
            failed_indexes: indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), max),
            ..Counts::default()
        };
        let mut waiting = status.uncounted_terminated_pods.take().unwrap_or_default();
        let is_held =
            |uid: &String| self.pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid) && is_tracked(pod));
        let settle = |uids: &mut Option<Vec<String>>, number: &mut Option<i32>| {
            let all = uids.take().unwrap_or_default();
            let (held, counted): (Vec<_>, Vec<_>) = all.into_iter().partition(is_held);
            let counted = i32::try_from(counted.len()).unwrap_or(i32::MAX);
            if counted > 0 {
                *number = Some(number.unwrap_or_default().saturating_add(counted));
            }
            *uids = (!held.is_empty()).then_some(held);
        };
        settle(&mut waiting.succeeded, &mut status.succeeded);
        settle(&mut waiting.failed, &mut status.failed);

        let known = |uids: &Option<Vec<String>>, pod: &Pod| {
            uids.iter().flatten().any(|uid| pod.metadata.uid.as_ref() == Some(uid))
        };
        for pod in self.pods.iter().filter(|pod| is_tracked(pod)) {
            if plan.untrack.len() >= BURST {
                plan.again = Some(Duration::ZERO);
                break;
            }
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let index = index_of(pod).filter(|index| (0..max).contains(index));
            if phase(pod) == "Succeeded" {
                plan.untrack.push(pod.clone());
                if !self.is_indexed {
                    if !known(&waiting.succeeded, pod) {
                        waiting.succeeded.get_or_insert_default().push(uid);
                    }
                } else if let Some(index) = index.filter(|index| !counts.failed_indexes.contains(index)) {
                    counts.succeeded_indexes.insert(index);
                }
            } else if self.is_failed(pod) {
                plan.untrack.push(pod.clone());
                let verdict = judge(self.job, pod);
                if let Verdict::FailJob(why) = &verdict {
                    counts.fail_job.get_or_insert_with(|| why.clone());
                }
                if let Some(index) = index.filter(|_| self.spec.backoff_limit_per_index.is_some()) {
                    self.judge_index(index, pod, &verdict, &mut counts);
                }
                if verdict != Verdict::Ignore && !known(&waiting.failed, pod) {
                    waiting.failed.get_or_insert_default().push(uid);
                }
            } else if is_finished(self.job) || self.job.metadata.deletion_timestamp.is_some() {
                plan.untrack.push(pod.clone());
            }
        }
        let number = |uids: &Option<Vec<String>>| i32::try_from(uids.iter().flatten().count()).unwrap_or(i32::MAX);
        if self.is_indexed {
            status.succeeded = Some(i32::try_from(counts.succeeded_indexes.len()).unwrap_or(i32::MAX));
            status.completed_indexes = Some(indexes::format(&counts.succeeded_indexes)).filter(|text| !text.is_empty());
            if self.spec.backoff_limit_per_index.is_some() {
                status.failed_indexes = Some(indexes::format(&counts.failed_indexes));
            }
        }
        counts.succeeded = status.succeeded.unwrap_or_default().saturating_add(number(&waiting.succeeded));
        counts.failed = status.failed.unwrap_or_default().saturating_add(number(&waiting.failed));
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods { ..waiting });
        for pod in self.pods.iter().filter(|pod| self.is_failed(pod) && judge(self.job, pod) != Verdict::Ignore) {
            if let Some(index) = index_of(pod) {
                let failures = counts.index_failures.entry(index).or_default();
                *failures = (*failures).max(failures_before(pod) + 1);
            }
        }
        counts
    }

    fn judge_index(&self, index: i32, pod: &Pod, verdict: &Verdict, counts: &mut Counts) {
        let limit = self.spec.backoff_limit_per_index.unwrap_or_default();
        let is_over = match verdict {
            Verdict::FailIndex => true,
            Verdict::Ignore => false,
            Verdict::Count | Verdict::FailJob(_) => failures_before(pod) >= limit,
        };
        if is_over && !counts.succeeded_indexes.contains(&index) {
            counts.failed_indexes.insert(index);
        }
    }

    /// The condition by which the Job is to end, if it is.
    fn ending(&self, status: &JobStatus, counts: &Counts, active: usize) -> Option<JobCondition> {
        if let Some(known) = condition(status, "FailureTarget") {
            return Some(JobCondition { type_: "Failed".to_owned(), ..known.clone() });
        }
        if let Some(known) = condition(status, "SuccessCriteriaMet") {
            return Some(JobCondition { type_: "Complete".to_owned(), ..known.clone() });
        }
        let failed = |reason: &str, message: &str| Some(self.condition("Failed", reason, message));
        if let Some(why) = &counts.fail_job {
            return failed("PodFailurePolicy", why);
        }
        // Rules about single indexes have a limit of their own; without one the common limit is out of reach.
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if counts.failed > limit || self.restarts_exceed(limit) {
            return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if self.left_of_deadline(status) == Some(Duration::ZERO) {
            return failed("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        if let Some(completions) = self.completions.filter(|_| self.is_indexed) {
            if let Some(rule) = success_rule(self.job, &counts.succeeded_indexes, completions) {
                return Some(self.condition("Complete", "SuccessPolicy", &format!("Matched rules at index {rule}")));
            }
            let failed_count = i32::try_from(counts.failed_indexes.len()).unwrap_or(i32::MAX);
            if self.spec.max_failed_indexes.is_some_and(|max| failed_count > max) {
                let message = "Job has exceeded the specified maximal number of failed indexes";
                return failed("MaxFailedIndexesExceeded", message);
            }
            if failed_count > 0 && counts.succeeded + failed_count >= completions {
                return failed("FailedIndexes", "Job has failed indexes");
            }
        }
        let is_complete = match self.completions {
            None => counts.succeeded > 0 && active == 0,
            Some(completions) => counts.succeeded >= completions,
        };
        is_complete
            .then(|| self.condition("Complete", "CompletionsReached", "Reached expected number of succeeded pods"))
    }

    /// Containers that restart in place count too.
    fn restarts_exceed(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let restarts = |pod: &Arc<Pod>| {
            let status = pod.status.as_ref();
            let all = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default().iter();
            let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default().iter();
            all.chain(init).map(|container| container.restart_count).sum::<i32>()
        };
        let running = self.pods.iter().filter(|pod| matches!(phase(pod), "Running" | "Pending"));
        let total: i32 = running.map(restarts).sum();
        if limit == 0 { total > 0 } else { total >= limit }
    }

    /// How much of the active deadline is left.
    fn left_of_deadline(&self, status: &JobStatus) -> Option<Duration> {
        if self.spec.suspend == Some(true) {
            return None;
        }
        let deadline = SignedDuration::from_secs(self.spec.active_deadline_seconds?);
        let since = self.now.duration_since(status.start_time.as_ref()?.0);
        Some(Duration::try_from(deadline - since).unwrap_or_default())
    }

    /// First says how the Job is to end, and says that it has when all its pods are gone and counted.
    fn end(&self, plan: &mut Plan, ending: JobCondition, active: Vec<Arc<Pod>>) {
        plan.delete = active;
        let interim = if ending.type_ == "Failed" { "FailureTarget" } else { "SuccessCriteriaMet" };
        if condition(&plan.status, interim).is_none() {
            set(&mut plan.status, JobCondition { type_: interim.to_owned(), ..ending.clone() });
        }
        let waiting = plan.status.uncounted_terminated_pods.as_ref();
        let is_counted = waiting.is_none_or(|waiting| waiting.succeeded.is_none() && waiting.failed.is_none());
        let is_quiet = !self.pods.iter().any(|pod| is_active(pod) || is_terminating(pod) || is_tracked(pod));
        if is_quiet && is_counted {
            let last = JobCondition {
                last_probe_time: Some(Time(self.now)),
                last_transition_time: Some(Time(self.now)),
                ..ending
            };
            if last.type_ == "Complete" {
                plan.status.completion_time = Some(Time(self.now));
            }
            set(&mut plan.status, last.clone());
            plan.news = Some(last);
        }
    }

    /// Makes or deletes pods so that as many run as are wanted.
    fn manage(&self, plan: &mut Plan, counts: &Counts, active: Vec<Arc<Pod>>) {
        plan.again = [plan.again, self.left_of_deadline(&plan.status)].into_iter().flatten().min();
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let running = i32::try_from(active.len()).unwrap_or(i32::MAX);
        let leaving = self.pods.iter().filter(|pod| is_terminating(pod)).count();
        let leaving = i32::try_from(leaving).unwrap_or(i32::MAX);
        let wanted = match self.completions {
            // Nobody starts anew once one has succeeded.
            None if counts.succeeded > 0 => running,
            None => parallelism,
            Some(completions) => {
                let done = i32::try_from(counts.failed_indexes.len()).unwrap_or(i32::MAX);
                (completions - counts.succeeded - done).clamp(0, parallelism)
            }
        };
        if running > wanted {
            plan.delete = self.choose_victims(active, usize::try_from(running - wanted).unwrap_or_default());
            return;
        }
        let places = if self.replaces_failed_only { running + leaving } else { running };
        let missing = usize::try_from(wanted - places).unwrap_or_default().min(BURST);
        if missing == 0 {
            return;
        }
        if self.is_indexed {
            let free = self.free_indexes(counts);
            for index in free {
                if plan.create.len() == missing {
                    break;
                }
                let failures = counts.index_failures.get(&index).copied();
                if self.spec.backoff_limit_per_index.is_some() {
                    let pause = self.pause(|pod| index_of(pod) == Some(index));
                    if !pause.is_zero() {
                        plan.again = Some(plan.again.map_or(pause, |known| known.min(pause)));
                        continue;
                    }
                    plan.create.push(NewPod { index: Some(index), failures: Some(failures.unwrap_or_default()) });
                } else {
                    plan.create.push(NewPod { index: Some(index), failures: None });
                }
            }
        } else {
            plan.create.extend((0..missing).map(|_| NewPod { index: None, failures: None }));
        }
        if self.spec.backoff_limit_per_index.is_none() {
            let pause = self.pause(|_| true);
            if !pause.is_zero() && !plan.create.is_empty() {
                plan.create.clear();
                plan.again = Some(plan.again.map_or(pause, |known| known.min(pause)));
            }
        }
    }

    /// Indexes that nobody works on and that are not done, the lowest first.
    fn free_indexes(&self, counts: &Counts) -> Vec<i32> {
        let takes_place = |pod: &&Arc<Pod>| is_active(pod) || (self.replaces_failed_only && is_terminating(pod));
        let taken: BTreeSet<i32> = self.pods.iter().filter(takes_place).filter_map(|pod| index_of(pod)).collect();
        let is_free = |index: &i32| {
            !taken.contains(index)
                && !counts.succeeded_indexes.contains(index)
                && !counts.failed_indexes.contains(index)
        };
        (0..self.completions.unwrap_or_default()).filter(is_free).take(BURST).collect()
    }

    /// Of pods of one index all but the first go before others.
    fn choose_victims(&self, mut active: Vec<Arc<Pod>>, count: usize) -> Vec<Arc<Pod>> {
        active.sort_by(|a, b| rank_for_deletion((a, 0), (b, 0), self.now));
        if self.is_indexed {
            let mut seen = BTreeSet::new();
            let completions = self.completions.unwrap_or_default();
            let mut first_of_index = |pod: &Arc<Pod>| {
                index_of(pod).is_some_and(|index| (0..completions).contains(&index) && seen.insert(index))
            };
            // From the most useful pod on, so that this is the one that stays.
            active.reverse();
            let (stay, go): (Vec<_>, Vec<_>) = active.into_iter().partition(|pod| first_of_index(pod));
            active = go.into_iter().chain(stay.into_iter().rev()).collect();
        }
        active.truncate(count);
        active
    }

    /// How long to wait after the last failures: ten seconds, doubling with each failure since the last success.
    fn pause(&self, concerns: impl Fn(&Pod) -> bool) -> Duration {
        let mut ended: Vec<(Timestamp, bool)> = self
            .pods
            .iter()
            .filter(|pod| concerns(pod) && (phase(pod) == "Succeeded" || self.is_failed(pod)))
            .filter(|pod| judge(self.job, pod) != Verdict::Ignore)
            .filter_map(|pod| Some((ended_at(pod)?, phase(pod) == "Succeeded")))
            .collect();
        ended.sort_unstable_by_key(|ending| std::cmp::Reverse(*ending));
        let failures = ended.iter().take_while(|(_, succeeded)| !succeeded).count();
        let (Some((last, _)), Some(doublings)) = (ended.first(), failures.checked_sub(1)) else {
            return Duration::ZERO;
        };
        let doublings = u32::try_from(doublings).unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(doublings)).min(LAST_PAUSE);
        let since = Duration::try_from(self.now.duration_since(*last)).unwrap_or_default();
        pause.saturating_sub(since)
    }

    fn suspension(&self, plan: &mut Plan, suspended: bool) {
        let known = plan.status.conditions.iter().flatten().find(|condition| condition.type_ == "Suspended");
        let news = match (suspended, known.map(|known| known.status.as_str())) {
            (true, Some("True")) => return,
            (true, _) => self.condition("Suspended", "JobSuspended", "Job suspended"),
            (false, Some("True")) => {
                JobCondition { status: "False".to_owned(), ..self.condition("Suspended", "JobResumed", "Job resumed") }
            }
            (false, _) => return,
        };
        if is_finished(self.job) || plan.news.is_some() {
            return;
        }
        // The clock of the deadline starts anew with the work.
        plan.status.start_time = (!suspended).then_some(Time(self.now));
        set(&mut plan.status, news.clone());
        plan.news = Some(news);
    }

    fn numbers(&self, plan: &mut Plan) {
        let count = |keep: &dyn Fn(&Pod) -> bool| {
            Some(i32::try_from(self.pods.iter().filter(|pod| keep(pod)).count()).unwrap_or(i32::MAX))
        };
        let nonzero = |number: Option<i32>| number.filter(|number| *number != 0);
        plan.status.active = nonzero(count(&is_active));
        plan.status.ready = count(&|pod| is_active(pod) && is_ready(pod));
        plan.status.terminating = count(&is_terminating);
        plan.status.succeeded = nonzero(plan.status.succeeded);
        plan.status.failed = nonzero(plan.status.failed);
    }

    fn condition(&self, condition_type: &str, reason: &str, message: &str) -> JobCondition {
        JobCondition {
            type_: condition_type.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(Time(self.now)),
            last_transition_time: Some(Time(self.now)),
        }
    }
}

fn failures_before(pod: &Pod) -> i32 {
    let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(INDEX_FAILURES));
    annotation.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn set(status: &mut JobStatus, condition: JobCondition) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|known| known.type_ != condition.type_);
    conditions.push(condition);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;
    use kube::core::ObjectMeta;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// `parallelism= completions= limit= indexed suspend deadline= per-index=`
    fn job(words: &str) -> Job {
        let number = |name: &str| {
            let word = words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.map(|digits| digits.parse::<i32>().unwrap())
        };
        Job {
            spec: Some(JobSpec {
                parallelism: number("parallelism"),
                completions: number("completions"),
                backoff_limit: number("limit"),
                backoff_limit_per_index: number("per-index"),
                active_deadline_seconds: number("deadline").map(i64::from),
                completion_mode: words.contains("indexed").then(|| "Indexed".to_owned()),
                suspend: words.contains("suspend").then_some(true),
                ..JobSpec::default()
            }),
            ..Job::default()
        }
    }

    /// `uid phase [index=] [free] [leaving] [at=]`: `free` has no finalizer.
    fn pod(words: &str) -> Arc<Pod> {
        let word = |name: &str| words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let mut parts = words.split(' ');
        let (uid, phase) = (parts.next().unwrap(), parts.next().unwrap());
        Arc::new(Pod {
            metadata: ObjectMeta {
                uid: Some(uid.into()),
                finalizers: (!words.contains("free")).then(|| vec![FINALIZER.to_owned()]),
                annotations: word("index").map(|index| [(INDEX.to_owned(), index.to_owned())].into()),
                creation_timestamp: Some(Time(at(word("at").map_or(0, |second| second.parse().unwrap())))),
                deletion_timestamp: words.contains("leaving").then(|| Time(at(0))),
                ..ObjectMeta::default()
            },
            status: Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }),
            spec: None,
        })
    }

    fn look(job: &Job, pods: &[&str], second: i64) -> Plan {
        let pods: Vec<_> = pods.iter().map(|words| pod(words)).collect();
        plan(job, &pods, at(second))
    }

    fn show(plan: &Plan) -> String {
        let uids = |pods: &[Arc<Pod>]| pods.iter().filter_map(|p| p.metadata.uid.clone()).collect::<Vec<_>>().join(",");
        let create: Vec<_> =
            plan.create.iter().map(|new| new.index.map_or("x".to_owned(), |index| index.to_string())).collect();
        let conditions: Vec<_> =
            plan.status.conditions.iter().flatten().map(|c| format!("{}={}", c.type_, c.status)).collect();
        let s = &plan.status;
        format!(
            "+{} -{} free:{} s={} f={} {}",
            create.join(","),
            uids(&plan.delete),
            uids(&plan.untrack),
            s.succeeded.unwrap_or_default(),
            s.failed.unwrap_or_default(),
            conditions.join(" ")
        )
        .trim_end()
        .to_owned()
    }

    #[test]
    fn as_many_pods_run_as_are_wanted_and_useful() {
        let check = |words: &str, pods: &[&str], want: &str| assert_eq!(show(&look(&job(words), pods, 100)), want);
        check("parallelism=3 completions=5", &[], "+x,x,x - free: s=0 f=0");
        check("parallelism=3 completions=5", &["a Running"], "+x,x - free: s=0 f=0");
        check("parallelism=1 completions=5", &["a Running at=1", "b Pending at=2"], "+ -b free: s=0 f=0");
        check("parallelism=3", &["a Running", "b Succeeded"], "+ - free:b s=0 f=0");
        check("parallelism=2 completions=9 suspend", &["a Running"], "+ -a free: s=0 f=0 Suspended=True");
        check("parallelism=2 completions=3 indexed", &["a Running index=0"], "+1 - free: s=0 f=0");
        check(
            "parallelism=3 completions=3 indexed",
            &["a Running index=1", "b Succeeded index=0"],
            "+2 - free:b s=1 f=0",
        );
    }

    #[test]
    fn pods_are_counted_once_over_their_three_states() {
        let mut job = job("parallelism=1 completions=2");
        let first = look(&job, &["a Succeeded"], 100);
        assert_eq!(show(&first), "+x - free:a s=0 f=0");
        let waiting = first.status.uncounted_terminated_pods.clone().unwrap();
        assert_eq!(waiting.succeeded, Some(vec!["a".to_owned()]));
        job.status = Some(first.status);
        assert_eq!(show(&look(&job, &["a Succeeded", "b Running"], 101)), "+ - free:a s=0 f=0");
        let counted = look(&job, &["a Succeeded free", "b Running"], 102);
        assert_eq!(show(&counted), "+ - free: s=1 f=0");
        job.status = Some(counted.status);
        assert_eq!(show(&look(&job, &["b Running"], 103)), "+ - free: s=1 f=0");
    }

    #[test]
    fn a_job_completes_when_its_last_pod_is_counted() {
        let mut job = job("parallelism=1 completions=1");
        let met = look(&job, &["a Succeeded"], 100);
        assert_eq!(show(&met), "+ - free:a s=0 f=0 SuccessCriteriaMet=True");
        job.status = Some(met.status);
        let done = look(&job, &["a Succeeded free"], 101);
        assert_eq!(show(&done), "+ - free: s=1 f=0 SuccessCriteriaMet=True Complete=True");
        assert_eq!(done.news.unwrap().reason.as_deref(), Some("CompletionsReached"));
        assert_eq!(done.status.completion_time, Some(Time(at(101))));
    }

    #[test]
    fn too_many_failures_end_a_job_and_its_other_pods() {
        let mut job = job("parallelism=2 completions=2 limit=1");
        let over = look(&job, &["a Failed at=1", "b Failed at=2", "c Running"], 100);
        assert_eq!(show(&over), "+ -c free:a,b s=0 f=0 FailureTarget=True");
        job.status = Some(over.status);
        let done = look(&job, &["a Failed free", "b Failed free"], 101);
        assert_eq!(show(&done), "+ - free: s=0 f=2 FailureTarget=True Failed=True");
        assert_eq!(done.news.unwrap().reason.as_deref(), Some("BackoffLimitExceeded"));
    }

    #[test]
    fn failures_make_pauses_that_double() {
        let job = job("parallelism=1 completions=3");
        let after = |pods: &[&str], second| {
            let plan = look(&job, pods, second);
            (plan.create.len(), plan.again.map(|again| again.as_secs()))
        };
        assert_eq!(after(&["a Failed at=100"], 104), (0, Some(6)));
        assert_eq!(after(&["a Failed at=100"], 110), (1, None));
        assert_eq!(after(&["a Failed at=90", "b Failed at=100"], 104), (0, Some(16)));
        assert_eq!(after(&["a Failed at=90", "b Succeeded at=95", "c Failed at=100"], 104), (0, Some(6)));
    }

    #[test]
    fn the_deadline_counts_from_the_start_and_suspension_stops_it() {
        let mut job = job("parallelism=1 completions=1 deadline=60");
        let begun = look(&job, &[], 100);
        assert_eq!(
            (begun.status.start_time.clone(), begun.again),
            (Some(Time(at(100))), Some(Duration::from_secs(60)))
        );
        job.status = Some(begun.status);
        assert_eq!(show(&look(&job, &["a Running"], 160)), "+ -a free: s=0 f=0 FailureTarget=True");
        job.spec.as_mut().unwrap().suspend = Some(true);
        let suspended = look(&job, &["a Running"], 200);
        assert_eq!(show(&suspended), "+ -a free: s=0 f=0 Suspended=True");
        assert_eq!(suspended.status.start_time, None);
        job.status = Some(suspended.status);
        job.spec.as_mut().unwrap().suspend = None;
        let resumed = look(&job, &[], 300);
        assert_eq!(show(&resumed), "+x - free: s=0 f=0 Suspended=False");
        assert_eq!(resumed.status.start_time, Some(Time(at(300))));
    }

    #[test]
    fn indexes_fail_by_themselves_where_they_have_their_own_limit() {
        let mut job = job("parallelism=2 completions=2 indexed per-index=0");
        let first = look(&job, &["a Failed index=0 at=1", "b Running index=1"], 100);
        assert_eq!((show(&first).as_str(), first.status.failed_indexes.as_deref()), ("+ - free:a s=0 f=0", Some("0")));
        job.status = Some(first.status);
        let second = look(&job, &["a Failed free index=0 at=1", "b Succeeded index=1"], 101);
        assert_eq!(show(&second), "+ - free:b s=1 f=1 FailureTarget=True");
        job.status = Some(second.status);
        let done = look(&job, &["a Failed free index=0 at=1", "b Succeeded free index=1"], 102);
        assert_eq!(done.news.unwrap().reason.as_deref(), Some("FailedIndexes"));
    }
}
