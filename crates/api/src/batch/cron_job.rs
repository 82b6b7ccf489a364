//! CronJob.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{job_rules, schedule, time_zone};
use crate::core::pod::{Options, default_template, template_warnings};
use crate::go_json::invalid_selector;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::{Checks, text};

pub(crate) struct CronJobStrategy;

/// Jobs are named after it, with a suffix.
const MAX_NAME: usize = 52;

fn validate(job: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(job).field("spec");
    let at = spec.field("schedule");
    if errs.present(&at, "") {
        schedule_format(&mut errs, &spec, &at, old);
    }
    errs.non_negative(&spec.field("startingDeadlineSeconds"));
    let zone = spec.field("timeZone");
    if old.is_none_or(|old| old.at(&["spec", "timeZone"]) != zone.value) {
        time_zone::validate(&mut errs, &zone);
    }
    let policy = spec.field("concurrencyPolicy");
    if errs.present(&policy, "") {
        errs.one_of(&policy, &["Allow", "Forbid", "Replace"]);
    }
    let options = match old {
        Some(old) => Options::keeping(false, old.at(&["spec", "jobTemplate", "spec", "template"])),
        None => Options::strict(false),
    };
    job_template(&mut errs, &spec.fields(&["jobTemplate", "spec"]), options);
    errs.non_negative(&spec.field("successfulJobsHistoryLimit"));
    errs.non_negative(&spec.field("failedJobsHistoryLimit"));
    errs
}

fn schedule_format(errs: &mut FieldErrors, spec: &Cursor<'_>, at: &Cursor<'_>, old: Option<&Value>) {
    if let Some(problem) = schedule::problem(text(at)) {
        errs.invalid(at, problem);
    }
    if !text(at).contains("TZ") {
        return;
    }
    if !old.is_some_and(|old| old.str_at(&["spec", "schedule"]).contains("TZ")) {
        errs.invalid(at, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    } else if !spec.value["timeZone"].is_null() {
        errs.invalid(at, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
    }
}

/// A template of jobs, each of which gets a selector of its own.
fn job_template(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    job_rules::validate(errs, spec, options);
    let (selector, manual) = (spec.field("selector"), spec.field("manualSelector"));
    if !selector.is_absent() {
        invalid_selector(errs, &selector, "`selector` will be auto-generated");
    }
    if manual.value.as_bool() == Some(true) {
        errs.not_supported(&manual, &["nil", "false"]);
    }
}

impl Strategy for CronJobStrategy {
    fn default(&self, job: &mut Value) {
        let spec = job.entry(&["spec"]);
        if spec.str_at(&["concurrencyPolicy"]).is_empty() {
            spec.set(&["concurrencyPolicy"], "Allow");
        }
        spec.set_default(&["suspend"], false);
        spec.set_default(&["successfulJobsHistoryLimit"], 3i64);
        spec.set_default(&["failedJobsHistoryLimit"], 1i64);
        default_template(job, &["spec", "jobTemplate", "spec", "template"]);
    }

    fn prepare_for_create(&self, job: &mut Value) {
        job.set(&["status"], Value::object());
    }

    fn validate(&self, job: &Value) -> FieldErrors {
        let mut errs = validate(job, None);
        if job.name().len() > MAX_NAME {
            let name = Cursor::root(job).fields(&["metadata", "name"]);
            errs.invalid(&name, format!("must be no more than {MAX_NAME} characters"));
        }
        errs
    }

    fn validate_update(&self, job: &Value, old: &Value) -> FieldErrors {
        validate(job, Some(old))
    }

    fn warnings(&self, job: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(job, old, &["spec", "jobTemplate", "spec", "template"], true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, job: &Value, now: Now) -> Option<Vec<Cell>> {
        let (spec, status) = (&job["spec"], &job["status"]);
        let or_none = |text: &str| if text.is_empty() { Value::from("<none>") } else { text.into() };
        let suspend = match spec["suspend"].as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let last = &status["lastScheduleTime"];
        let last = if last.is_null() { "<none>".into() } else { table_cells::age(last, now) };
        let active = i64::try_from(status["active"].items().len()).unwrap_or(i64::MAX);
        let template = spec.at(&["jobTemplate", "spec"]);
        let (names, images) = table_cells::containers(template.at(&["template", "spec"]));
        Some(vec![
            job.name().into(),
            spec.str_at(&["schedule"]).into(),
            or_none(spec.str_at(&["timeZone"])),
            suspend.into(),
            active.into(),
            last,
            table_cells::created(job, now),
            names.into(),
            images.into(),
            table_cells::selector(&template["selector"]).into(),
        ])
    }
}
