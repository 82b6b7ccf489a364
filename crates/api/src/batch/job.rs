//! Job.

use apimachinery::Value;
use apimachinery::field::FieldErrors;

use super::job_rules::{CONTROLLER_UID, JOB_NAME, LEGACY};
use super::{job_change, job_rules, job_status};
use crate::apps::rules::template_cells;
use crate::core::pod::{default_template, template_warnings};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::int;

pub(crate) struct JobStrategy;

/// What a job's spec leaves out; a cron job's template leaves it out until there is a job.
fn default_spec(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        spec.set(&["completions"], 1i64);
        spec.set(&["parallelism"], 1i64);
    }
    spec.set_default(&["parallelism"], 1i64);
    let limit = if spec["backoffLimitPerIndex"].is_null() { 6 } else { i64::from(i32::MAX) };
    spec.set_default(&["backoffLimit"], limit);
    spec.set_default(&["completionMode"], "NonIndexed");
    spec.set_default(&["suspend"], false);
    spec.set_default(&["manualSelector"], false);
    let policy = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    spec.set_default(&["podReplacementPolicy"], policy);
    let rules = spec.get_mut("podFailurePolicy").and_then(|p| p.get_mut("rules"));
    for rule in rules.into_iter().flat_map(|r| r.items_mut().iter_mut()) {
        let patterns = rule.get_mut("onPodConditions").into_iter().flat_map(|p| p.items_mut().iter_mut());
        for pattern in patterns.filter(|p| p.str_at(&["status"]).is_empty()) {
            pattern.set(&["status"], "True");
        }
    }
}

/// A job without labels has those of its pods.
fn default_labels(job: &mut Value) {
    let labels = job.at(&["spec", "template", "metadata", "labels"]).clone();
    if job.meta("labels").is_empty_value() && !labels.is_empty_value() {
        job.set(&["metadata", "labels"], labels);
    }
}

impl Strategy for JobStrategy {
    fn default(&self, job: &mut Value) {
        default_labels(job);
        default_spec(job.entry(&["spec"]));
        default_template(job, &["spec", "template"]);
    }

    fn prepare_for_create(&self, job: &mut Value) {
        job.set(&["status"], Value::object());
        if job["spec"]["manualSelector"].as_bool() == Some(true) {
            return;
        }
        // Its pods are known by its uid, which nobody else has. What is there and wrong stays, for validation to find.
        let (uid, name) = (job.uid().to_owned(), job.name().to_owned());
        let labels = job.entry(&["spec", "template", "metadata", "labels"]);
        for (key, value) in [(LEGACY[0], &uid), (LEGACY[1], &name), (CONTROLLER_UID, &uid), (JOB_NAME, &name)] {
            labels.set_default(&[key], value.as_str());
        }
        job.set_default(&["spec", "selector", "matchLabels", CONTROLLER_UID], uid);
    }

    fn validate(&self, job: &Value) -> FieldErrors {
        job_rules::validate_new(job)
    }

    fn validate_update(&self, job: &Value, old: &Value) -> FieldErrors {
        job_change::validate(job, old)
    }

    fn validate_status_update(&self, job: &Value, old: &Value) -> FieldErrors {
        job_status::validate(job, old)
    }

    /// Upstream completes what it reads from its store, generated labels included.
    fn canonicalize(&self, job: &mut Value) {
        default_labels(job);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(object, old, &["spec", "template"], true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn orphans_dependents_by_default(&self) -> bool {
        true
    }

    fn deletion_warning(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or \
             set propagationPolicy=Orphan to suppress this warning",
        )
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("status.successful", &["status", "succeeded"])]
    }

    fn row(&self, job: &Value, now: Now) -> Option<Vec<Cell>> {
        let (spec, status) = (&job["spec"], &job["status"]);
        let succeeded = int(&status["succeeded"]);
        let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64()) {
            (Some(n), _) => format!("{succeeded}/{n}"),
            (None, Some(p)) if p > 1 => format!("{succeeded}/1 of {p}"),
            _ => format!("{succeeded}/1"),
        };
        let start = table_cells::seconds_of(&status["startTime"]);
        let end = table_cells::seconds_of(&status["completionTime"]).unwrap_or(now.0);
        let duration = start.map_or_else(String::new, |start| table_cells::human_duration(end - start));
        let age = table_cells::created(job, now);
        let mut row: Vec<Cell> = vec![job.name().into(), state(job).into(), completions.into(), duration.into(), age];
        row.extend(template_cells(job));
        Some(row)
    }
}

/// The word for how a job is.
fn state(job: &Value) -> &'static str {
    let is = |kind: &str| {
        let mut all = job.at(&["status", "conditions"]).items().iter();
        all.any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == "True")
    };
    let first = |kinds: &[&'static str]| kinds.iter().copied().find(|kind| is(kind));
    match first(&["Complete", "Failed"]) {
        Some(end) => end,
        None if job.is_deleting() => "Terminating",
        None => first(&["Suspended", "FailureTarget", "SuccessCriteriaMet"]).unwrap_or("Running"),
    }
}
