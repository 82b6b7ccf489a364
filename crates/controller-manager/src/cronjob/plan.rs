//! Which run of a CronJob is due, and what its Jobs tell its status.

use std::{sync::Arc, time::Duration};

use client::events::{EventType, reference};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::core::ObjectMeta;

use super::schedule::{Schedule, zone};
use crate::{
    job::{is_job_finished, job_condition},
    owner::controller_reference,
};

/// Looks happen a little after the time that is due, for clocks that are behind.
const AFTER: Duration = Duration::from_millis(100);
/// More missed runs than this are suspicious.
const MANY: i64 = 100;
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// An event of the CronJob.
pub(super) type Note = (EventType, &'static str, String);

fn active(status: &CronJobStatus) -> &[ObjectReference] {
    status.active.as_deref().unwrap_or_default()
}

pub(super) fn is_active(status: &CronJobStatus, uid: Option<&str>) -> bool {
    active(status).iter().any(|job| job.uid.as_deref() == uid)
}

pub(super) fn forget(status: &mut CronJobStatus, uid: Option<&str>) {
    if let Some(active) = &mut status.active {
        active.retain(|job| job.uid.as_deref() != uid);
    }
    status.active = status.active.take().filter(|active| !active.is_empty());
}

/// Takes what Jobs became of into the status.
pub(super) fn account(status: &mut CronJobStatus, jobs: &[Arc<Job>]) -> Vec<Note> {
    let mut notes = Vec::new();
    for job in jobs {
        let uid = job.metadata.uid.as_deref();
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let is_listed = is_active(status, uid);
        let is_finished = is_job_finished(job);
        if !is_listed && !is_finished {
            let text = format!("Saw a job that the controller did not create or forgot: {name}");
            notes.push((EventType::Warning, "UnexpectedJob", text));
        } else if is_listed && is_finished {
            let end = if succeeded(job) { "Complete" } else { "Failed" };
            forget(status, uid);
            notes.push((EventType::Normal, "SawCompletedJob", format!("Saw completed job: {name}, condition: {end}")));
        }
        if is_finished && succeeded(job) {
            let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
            status.last_successful_time = status.last_successful_time.take().max(completed);
        }
    }
    notes
}

fn succeeded(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|status| job_condition(status, "Complete").is_some())
}

/// Finished Jobs beyond the limits of history, the oldest first.
pub(super) fn surplus(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let (mut good, mut bad): (Vec<_>, Vec<_>) =
        jobs.iter().filter(|job| is_job_finished(job)).cloned().partition(|job| succeeded(job));
    let oldest = |jobs: &mut Vec<Arc<Job>>, limit: Option<i32>| {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return Vec::new() };
        let started = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone());
        // What never started counts as the newest.
        jobs.sort_by_key(|job| (started(job).is_none(), started(job), job.metadata.name.clone()));
        jobs.truncate(jobs.len().saturating_sub(limit));
        std::mem::take(jobs)
    };
    let mut surplus = oldest(&mut good, spec.successful_jobs_history_limit);
    surplus.extend(oldest(&mut bad, spec.failed_jobs_history_limit));
    surplus
}

/// What is to be done about the next run.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) notes: Vec<Note>,
    /// The run that is due.
    pub(super) start: Option<Run>,
    pub(super) again: Option<Duration>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Run {
    pub(super) at: Timestamp,
    /// Whether runs that are still active make room for it.
    pub(super) replaces: bool,
}

pub(super) fn plan(cron_job: &CronJob, status: &CronJobStatus, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let spec = &cron_job.spec;
    if cron_job.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut warn = |reason, text| plan.notes.push((EventType::Warning, reason, text));
    let (text, zone_name) = split_zone(spec);
    if text.len() != spec.schedule.len() {
        let text = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            spec.schedule
        );
        warn("UnsupportedSchedule", text);
    }
    let zone = match zone(zone_name) {
        Ok(zone) => zone,
        Err(err) => {
            warn("UnknownTimeZone", format!("invalid timeZone: {zone_name:?}: {err}"));
            return plan;
        }
    };
    if spec.suspend == Some(true) {
        return plan;
    }
    let schedule: Schedule = match text.parse() {
        Ok(schedule) => schedule,
        Err(err) => {
            warn("UnparseableSchedule", format!("unparseable schedule: {:?} : {err}", spec.schedule));
            return plan;
        }
    };
    let clock = Clock { schedule: &schedule, zone: &zone, now };
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    let since = status.last_schedule_time.as_ref().or(cron_job.metadata.creation_timestamp.as_ref());
    let since = since.map_or(now, |time| time.0);
    plan.again = clock.until_next(since);
    let horizon = deadline.and_then(|deadline| now.checked_sub(deadline).ok()).unwrap_or(since);
    let due = clock.missed(since.max(horizon));
    let Some(at) = due.most_recent else { return plan };
    if due.count > MANY {
        let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.notes.push((EventType::Warning, "TooManyMissedTimes", text.to_owned()));
    }
    if deadline.is_some_and(|deadline| at.checked_add(deadline).is_ok_and(|end| end < now)) {
        let at = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let text = format!("Missed scheduled time to start a job: {at}");
        plan.notes.push((EventType::Warning, "MissSchedule", text));
        return plan;
    }
    let name = run_name(cron_job, at);
    let is_listed = active(status).iter().any(|job| job.name.as_ref() == Some(&name));
    if is_listed || status.last_schedule_time.as_ref().is_some_and(|last| last.0 == at) {
        return plan;
    }
    let policy = spec.concurrency_policy.as_deref().unwrap_or("Allow");
    if policy == "Forbid" && !active(status).is_empty() {
        let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
        plan.notes.push((EventType::Normal, "JobAlreadyActive", text.to_owned()));
        return plan;
    }
    plan.start = Some(Run { at, replaces: policy == "Replace" });
    plan
}

/// The schedule without a zone in front of it, and the zone that counts.
fn split_zone(spec: &CronJobSpec) -> (&str, &str) {
    let own = spec.time_zone.as_deref().unwrap_or_default();
    let inner = spec.schedule.strip_prefix("TZ=").or_else(|| spec.schedule.strip_prefix("CRON_TZ="));
    match inner.and_then(|inner| inner.split_once(' ')) {
        Some((zone, text)) => (text.trim(), zone),
        None => (&spec.schedule, own),
    }
}

struct Clock<'a> {
    schedule: &'a Schedule,
    zone: &'a TimeZone,
    now: Timestamp,
}

#[derive(Default)]
struct Missed {
    most_recent: Option<Timestamp>,
    count: i64,
}

impl Clock<'_> {
    fn after(&self, time: Timestamp) -> Option<Timestamp> {
        self.schedule.next(time, self.zone)
    }

    /// The runs after `since` whose time has come. Of many, all but the last few are jumped over.
    fn missed(&self, since: Timestamp) -> Missed {
        let Some(first) = self.after(since).filter(|first| *first <= self.now) else { return Missed::default() };
        let Some(second) = self.after(first).filter(|second| *second <= self.now) else {
            return Missed { most_recent: Some(first), count: 1 };
        };
        let between = second.duration_since(first).as_secs().max(1);
        let count = self.now.duration_since(first).as_secs() / between + 1;
        let jump = SignedDuration::from_secs((count - 2).max(0) * between);
        let mut time = first.checked_add(jump).ok().and_then(|start| self.after(start));
        let mut most_recent = None;
        while let Some(at) = time.filter(|at| *at <= self.now) {
            most_recent = Some(at);
            time = self.after(at);
        }
        Missed { most_recent, count }
    }

    fn until_next(&self, since: Timestamp) -> Option<Duration> {
        let missed = self.missed(since);
        let from = missed.most_recent.unwrap_or(if missed.count == 0 { since } else { self.now });
        let next = self.after(from)?;
        Some(Duration::try_from(next.duration_since(self.now)).unwrap_or_default() + AFTER)
    }
}

fn run_name(cron_job: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron_job.metadata.name.as_deref().unwrap_or_default(), at.as_second() / 60)
}

/// The Job of the run at `at`: its name makes sure that there is only one.
pub(super) fn new_job(cron_job: &CronJob, at: Timestamp) -> Job {
    let template = cron_job.spec.job_template.clone();
    let from = template.metadata.unwrap_or_default();
    let zone_name = split_zone(&cron_job.spec).1;
    let at_local = at.to_zoned(zone(zone_name).unwrap_or(TimeZone::UTC));
    let format = if at_local.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    let mut annotations = from.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), at_local.strftime(format).to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(run_name(cron_job, at)),
            namespace: cron_job.metadata.namespace.clone(),
            labels: from.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Counts the run as started.
pub(super) fn note_started(status: &mut CronJobStatus, job: &Job, at: Timestamp) {
    status.active.get_or_insert_default().push(reference(job));
    status.last_schedule_time = Some(Time(at));
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

    use super::*;

    fn word<'a>(words: &'a str, name: &str) -> Option<&'a str> {
        words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    fn time(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().unwrap()
    }

    /// `policy= deadline= suspend active= last= zone=`, created at 10:00, due every 10 minutes.
    fn cron_job(words: &str) -> CronJob {
        let job = |name: &str| ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() };
        CronJob {
            metadata: ObjectMeta {
                name: Some("c".into()),
                namespace: Some("ns".into()),
                creation_timestamp: Some(Time(time("10:00:00"))),
                ..ObjectMeta::default()
            },
            spec: CronJobSpec {
                schedule: word(words, "every").map_or("*/10 * * * *".to_owned(), |m| format!("*/{m} * * * *")),
                concurrency_policy: word(words, "policy").map(str::to_owned),
                starting_deadline_seconds: word(words, "deadline").map(|digits| digits.parse().unwrap()),
                suspend: word(words, "suspend").map(|_| true),
                time_zone: word(words, "zone").map(str::to_owned),
                successful_jobs_history_limit: Some(1),
                failed_jobs_history_limit: Some(0),
                ..CronJobSpec::default()
            },
            status: Some(CronJobStatus {
                active: word(words, "active").map(|names| names.split(',').map(job).collect()),
                last_schedule_time: word(words, "last").map(|text| Time(time(text))),
                ..CronJobStatus::default()
            }),
        }
    }

    #[track_caller]
    fn check(words: &str, now: &str, want: &str) {
        let cron_job = cron_job(words);
        let plan = plan(&cron_job, cron_job.status.as_ref().unwrap(), time(now));
        let mut got: Vec<_> = plan.notes.iter().map(|(_, reason, _)| (*reason).to_owned()).collect();
        if let Some(run) = &plan.start {
            got.push(format!("start {}{}", run.at.strftime("%H:%M"), if run.replaces { " alone" } else { "" }));
        }
        got.extend(plan.again.map(|again| format!("in {}s", again.as_secs())));
        assert_eq!(got.join(", "), want);
    }

    #[test]
    fn a_run_starts_when_its_time_has_come() {
        check("", "10:05:00", "in 300s");
        check("", "10:10:01", "start 10:10, in 599s");
        check("last=10:10:00", "10:10:01", "in 599s");
        check("last=10:00:00", "10:35:00", "start 10:30, in 300s");
        check("suspend=yes", "10:10:01", "");
        check("zone=Mars/Olympus", "10:10:01", "UnknownTimeZone");
    }

    #[test]
    fn concurrency_policies_decide_about_runs_that_overlap() {
        check("active=c-1 policy=Allow", "10:10:01", "start 10:10, in 599s");
        check("active=c-1 policy=Forbid", "10:10:01", "JobAlreadyActive, in 599s");
        check("active=c-1 policy=Replace", "10:10:01", "start 10:10 alone, in 599s");
    }

    #[test]
    fn late_runs_are_started_within_the_deadline() {
        check("deadline=60", "10:10:30", "start 10:10, in 570s");
        check("deadline=60", "10:12:00", "in 480s");
        check("every=1", "12:30:00", "TooManyMissedTimes, start 12:30, in 60s");
        check("every=1 deadline=100", "12:30:00", "start 12:30, in 60s");
    }

    fn job(name: &str, end: &str, started: &str) -> Arc<Job> {
        let condition = JobCondition { type_: end.into(), status: "True".into(), ..JobCondition::default() };
        Arc::new(Job {
            metadata: ObjectMeta { name: Some(name.into()), uid: Some(name.into()), ..ObjectMeta::default() },
            status: Some(JobStatus {
                conditions: Some(vec![condition]),
                start_time: Some(Time(time(started))),
                completion_time: (end == "Complete").then(|| Time(time(started))),
                ..JobStatus::default()
            }),
            ..Job::default()
        })
    }

    #[test]
    fn finished_runs_leave_the_status_and_then_the_history() {
        let jobs = [
            job("a", "Complete", "10:00:00"),
            job("b", "Complete", "11:00:00"),
            job("c", "Failed", "10:00:00"),
            job("d", "Running", "12:00:00"),
        ];
        let listed = |name: &str| ObjectReference { uid: Some(name.into()), ..ObjectReference::default() };
        let mut status = CronJobStatus { active: Some(vec![listed("b"), listed("d")]), ..CronJobStatus::default() };
        let notes = account(&mut status, &jobs);
        assert_eq!(notes.len(), 1);
        assert_eq!(notes[0].2, "Saw completed job: b, condition: Complete");
        assert_eq!(status.active, Some(vec![listed("d")]));
        assert_eq!(status.last_successful_time, Some(Time(time("11:00:00"))));
        let gone = surplus(&cron_job("").spec, &jobs);
        assert_eq!(gone.iter().filter_map(|job| job.metadata.name.as_deref()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn a_run_is_named_after_its_minute_and_knows_its_time() {
        let job = new_job(&cron_job("zone=Asia/Kolkata"), time("10:10:00"));
        assert_eq!(job.metadata.name.as_deref(), Some("c-29454370"));
        assert_eq!(job.metadata.annotations.unwrap()[SCHEDULED], "2026-01-01T15:40:00+05:30");
    }
}
