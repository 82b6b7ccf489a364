//! Rules for a job's spec, whether it is a job's own or a cron job's template.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::failure_policy;
use crate::apps::rules;
use crate::core::pod::{Options, validate_template};
use crate::go_json::invalid_selector;
use crate::validation::labels::label_selector;
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::{Checks, int, text};

pub(super) const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
pub(super) const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// Their names before Kubernetes' own labels had a prefix.
pub(super) const LEGACY: [&str; 2] = ["controller-uid", "job-name"];

const MAX_PARALLEL: i64 = 100_000;
const MAX_FAILED: i64 = 100_000;
const MANY_COMPLETIONS: i64 = 100_000;
const MAX_WITH_MANY: i64 = 10_000;
const MAX_MANAGER: usize = 63;

/// A whole new job.
pub(super) fn validate_new(job: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(job).field("spec");
    generated_selector(&mut errs, job, &spec);
    own_spec(&mut errs, &spec, Options::strict(false));
    let completions = int(&spec.value["completions"]);
    if spec.value.str_at(&["completionMode"]) == "Indexed" && completions > 0 {
        let longest = format!("{}-{}", job.name(), completions - 1);
        if !dns_label(&longest).is_empty() {
            let name = Cursor::root(job).fields(&["metadata", "name"]);
            errs.invalid(&name, format!("will not able to create pod with invalid DNS label: {longest}"));
        }
    }
    errs
}

/// The labels by which a job knows its pods are those that the server made.
fn generated_selector(errs: &mut FieldErrors, job: &Value, spec: &Cursor<'_>) {
    let selector = spec.field("selector");
    if spec.value["manualSelector"].as_bool() == Some(true) || selector.is_absent() {
        return;
    }
    let meta = spec.fields(&["template", "metadata"]);
    let expected =
        [(LEGACY[0], job.uid()), (LEGACY[1], job.name()), (CONTROLLER_UID, job.uid()), (JOB_NAME, job.name())];
    for (key, want) in expected {
        let at = meta.path.child("labels").key(key);
        match meta.value.at(&["labels", key]).as_str() {
            None => errs.required(&at, format!("must be '{want}'")),
            Some(label) if label != want => {
                errs.invalid_value(&at, meta.value["labels"].clone(), format!("must be '{want}'"));
            }
            Some(_) => {}
        }
    }
    let labels = Value::from(expected.map(|(key, want)| (key, Value::from(want))));
    if rules::selects(selector.value, &labels) == Some(false) {
        invalid_selector(errs, &selector, "`selector` not auto-generated");
    }
}

/// The spec of a job, with its selector.
pub(super) fn own_spec(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    validate(errs, spec, options);
    let (selector, template) = (spec.field("selector"), spec.field("template"));
    if selector.is_absent() {
        errs.required(&selector.path, "");
    } else {
        label_selector(errs, &selector, !options.any_selector_values);
    }
    if rules::selects(selector.value, template.value.at(&["metadata", "labels"])) == Some(false) {
        rules::does_not_match(errs, &template);
    }
}

/// The rules that hold for every spec of a job.
pub(super) fn validate(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    let counts = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for field in counts {
        errs.non_negative(&spec.field(field));
    }
    if !spec.value["maxFailedIndexes"].is_null() && spec.value["backoffLimitPerIndex"].is_null() {
        errs.required(&spec.path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    manager(errs, &spec.field("managedBy"));
    let mode = spec.field("completionMode");
    if !mode.is_absent() {
        errs.one_of(&mode, &["NonIndexed", "Indexed"]);
    }
    match text(&mode) {
        "Indexed" => indexed(errs, spec),
        "" | "NonIndexed" => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                let at = spec.field(field);
                if !at.is_absent() {
                    errs.invalid(&at, "requires indexed completion mode");
                }
            }
        }
        _ => {}
    }
    let failure = !spec.value["podFailurePolicy"].is_null();
    if failure {
        failure_policy::failure(errs, spec);
    }
    let success = spec.field("successPolicy");
    if !success.is_absent() {
        if text(&mode) == "Indexed" {
            failure_policy::success(errs, spec);
        } else {
            errs.invalid_struct(&success, "requires indexed completion mode");
        }
    }
    let replacement = spec.field("podReplacementPolicy");
    if !replacement.is_absent() {
        let allowed: &[&str] = if failure { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        errs.one_of(&replacement, allowed);
    }
    validate_template(errs, &spec.field("template"), options);
    restart_policy(errs, &spec.fields(&["template", "spec", "restartPolicy"]), failure);
}

/// Who reconciles the job, if it is not the job controller.
fn manager(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if at.is_absent() {
        return;
    }
    if errs.present(at, "") {
        match text(at).split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) {
            None => errs.invalid(at, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
            Some((host, path)) => {
                for message in dns_subdomain(host) {
                    errs.invalid_value(&at.path, host, message);
                }
                if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
                    errs.invalid_value(
                        &at.path,
                        path,
                        "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
                    );
                }
            }
        }
    }
    if text(at).len() > MAX_MANAGER {
        errs.too_long(&at.path, MAX_MANAGER);
    }
}

fn indexed(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let [completions, parallelism, failed] =
        ["completions", "parallelism", "maxFailedIndexes"].map(|field| spec.field(field));
    if completions.is_absent() {
        errs.required(&completions.path, "when completion mode is Indexed");
    }
    if int(parallelism.value) > MAX_PARALLEL {
        let why = format!("must be less than or equal to {MAX_PARALLEL} when completion mode is Indexed");
        errs.invalid(&parallelism, why);
    }
    if !completions.is_absent() && int(failed.value) > int(completions.value) {
        errs.invalid(&failed, "must be less than or equal to completions");
    }
    if int(failed.value) > MAX_FAILED {
        errs.invalid(&failed, format!("must be less than or equal to {MAX_FAILED}"));
    }
    if int(completions.value) <= MANY_COMPLETIONS || spec.value["backoffLimitPerIndex"].is_null() {
        return;
    }
    if failed.is_absent() {
        errs.required(&failed.path, format!("must be specified when completions is above {MANY_COMPLETIONS}"));
    }
    for at in [&parallelism, &failed] {
        if int(at.value) > MAX_WITH_MANY {
            errs.invalid(
                at,
                format!(
                    "must be less than or equal to {MAX_WITH_MANY} when completions are above {MANY_COMPLETIONS} and used \
                     with backoff limit per index"
                ),
            );
        }
    }
}

fn restart_policy(errs: &mut FieldErrors, at: &Cursor<'_>, has_failure_policy: bool) {
    match text(at) {
        "" | "Always" => errs.required(&at.path, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if has_failure_policy => {
            errs.invalid(at, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        _ => {
            errs.one_of(at, &["OnFailure", "Never"]);
        }
    }
}
