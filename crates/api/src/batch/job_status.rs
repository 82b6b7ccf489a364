//! Rules for a job's status, which somebody else than our controller may write (`managedBy`).

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::indexes;
use crate::table_cells::seconds_of;
use crate::validation::{Checks, int, same, text};

/// Is the condition of that type true?
fn is(job: &Value, kind: &str) -> bool {
    let mut all = job.at(&["status", "conditions"]).items().iter();
    all.any(|c| c.str_at(&["type"]) == kind && c.str_at(&["status"]) == "True")
}

fn is_finished(job: &Value) -> bool {
    is(job, "Complete") || is(job, "Failed")
}

/// Which parts of the status are new: only those must follow the newer rules.
struct Changes<'a> {
    job: &'a Value,
    old: &'a Value,
}

impl Changes<'_> {
    fn field(&self, name: &str) -> bool {
        !same(&self.job["status"][name], &self.old["status"][name])
    }

    fn condition(&self, kind: &str) -> bool {
        is(self.job, kind) != is(self.old, kind)
    }

    fn finished(&self) -> bool {
        is_finished(self.job) != is_finished(self.old)
    }
}

pub(super) fn validate(job: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let status = Cursor::root(job).field("status");
    let changes = Changes { job, old };
    for counter in ["active", "succeeded", "failed", "ready", "terminating"] {
        errs.non_negative(&status.field(counter));
    }
    uncounted(&mut errs, &status.field("uncountedTerminatedPods"));
    conditions(&mut errs, &status, &changes);
    times(&mut errs, &status, &changes);
    finished(&mut errs, &status, &changes);
    index_lists(&mut errs, &status, &changes);
    success(&mut errs, &status, job);
    against_old(&mut errs, &status, &changes);
    errs
}

fn uncounted(errs: &mut FieldErrors, pods: &Cursor<'_>) {
    let mut seen: Vec<&str> = Vec::new();
    for list in ["succeeded", "failed"] {
        for uid in pods.field(list).elements() {
            if text(&uid).is_empty() {
                errs.invalid_text(&uid, "must not be empty");
            } else if seen.contains(&text(&uid)) {
                errs.duplicate(&uid.path, text(&uid));
            } else {
                seen.push(text(&uid));
            }
        }
    }
}

fn conditions(errs: &mut FieldErrors, status: &Cursor<'_>, changes: &Changes<'_>) {
    let at = status.path.child("conditions");
    let (complete, failed) = (is(changes.job, "Complete"), is(changes.job, "Failed"));
    let changed = |kinds: [&str; 2]| kinds.iter().any(|kind| changes.condition(kind));
    if changed(["Complete", "Failed"]) && complete && failed {
        errs.invalid_bare(&at, "cannot set Complete=True and Failed=true conditions");
    }
    if changed(["Complete", "FailureTarget"]) && complete && is(changes.job, "FailureTarget") {
        errs.invalid_bare(&at, "cannot set Complete=True and FailureTarget=true conditions");
    }
    if changes.condition("Failed") && failed && !is(changes.job, "FailureTarget") {
        errs.invalid_bare(&at, "cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if changed(["Complete", "SuccessCriteriaMet"]) && complete && !is(changes.job, "SuccessCriteriaMet") {
        errs.invalid_bare(&at, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
}

fn times(errs: &mut FieldErrors, status: &Cursor<'_>, changes: &Changes<'_>) {
    let (start, end) = (status.field("startTime"), status.field("completionTime"));
    let complete = is(changes.job, "Complete");
    if changes.condition("Complete") || changes.field("completionTime") {
        if !end.is_absent() && !complete {
            errs.invalid(&end, "cannot set completionTime when there is no Complete=True condition");
        }
        if end.is_absent() && complete {
            errs.required(&end.path, "completionTime is required for Complete jobs");
        }
    }
    let reversed = matches!((seconds_of(start.value), seconds_of(end.value)), (Some(start), Some(end)) if end < start);
    if (changes.field("startTime") || changes.field("completionTime")) && reversed {
        errs.invalid(&end, "must be equal to or after `startTime`");
    }
}

fn finished(errs: &mut FieldErrors, status: &Cursor<'_>, changes: &Changes<'_>) {
    let spec = &changes.job["spec"];
    if is_finished(changes.job) {
        let changed = |field: &str| changes.finished() || changes.field(field);
        for field in ["active", "terminating"] {
            let counter = status.field(field);
            if changed(field) && int(counter.value) > 0 {
                errs.invalid(&counter, format!("{field}>0 is invalid for finished job"));
            }
        }
        let start = status.field("startTime");
        let never_ran = spec["suspend"].as_bool() == Some(true) && spec["completions"].as_i64() == Some(0);
        if changed("startTime") && !never_ran && start.is_absent() {
            errs.required(&start.path, "startTime is required for finished job");
        }
        let pods = status.field("uncountedTerminatedPods");
        let any = ["failed", "succeeded"].iter().any(|list| !pods.value[*list].items().is_empty());
        if changed("uncountedTerminatedPods") && any {
            errs.invalid_struct(&pods, "must be empty for finished job");
        }
    }
    let ready = status.field("ready");
    if (changes.field("ready") || changes.field("active")) && int(ready.value) > int(&status.value["active"]) {
        errs.invalid(&ready, "cannot set more ready pods than active");
    }
}

fn index_lists(errs: &mut FieldErrors, status: &Cursor<'_>, changes: &Changes<'_>) {
    let spec = &changes.job["spec"];
    let (done, failed) = (status.field("completedIndexes"), status.field("failedIndexes"));
    let (new_done, new_failed) = (changes.field("completedIndexes"), changes.field("failedIndexes"));
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    if let Some(completions) = spec["completions"].as_i64() {
        if new_done && let Err(why) = indexes::count(text(&done), completions) {
            errs.invalid(&done, format!("error parsing completedIndexes: {why}"));
        }
        if new_failed
            && per_index
            && let Err(why) = indexes::count(text(&failed), completions)
        {
            errs.invalid(&failed, format!("error parsing failedIndexes: {why}"));
        }
    }
    if new_done && !text(&done).is_empty() && spec.str_at(&["completionMode"]) != "Indexed" {
        errs.invalid(&done, "cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if new_failed && !per_index && !failed.is_absent() {
        errs.invalid(&failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    if let Some(completions) = spec["completions"].as_i64().filter(|_| new_done || new_failed)
        && let Some(index) = indexes::overlap(text(&done), text(&failed), completions)
    {
        errs.invalid(&failed, format!("failedIndexes and completedIndexes overlap at index: {index}"));
    }
}

fn success(errs: &mut FieldErrors, status: &Cursor<'_>, job: &Value) {
    let at = status.path.child("conditions");
    let met = is(job, "SuccessCriteriaMet");
    for other in ["Failed", "FailureTarget"] {
        if met && is(job, other) {
            errs.invalid_bare(&at, &format!("cannot set SuccessCriteriaMet=True and {other}=true conditions"));
        }
    }
    if !job.at(&["spec", "successPolicy"]).is_null() && !met && is(job, "Complete") {
        errs.invalid_bare(&at, "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True");
    }
}

fn against_old(errs: &mut FieldErrors, status: &Cursor<'_>, changes: &Changes<'_>) {
    let at = status.path.child("conditions");
    let (job, old, spec) = (changes.job, changes.old, &changes.job["spec"]);
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is(old, kind) && !is(job, kind) {
            errs.invalid_bare(&at, &format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    // An indexed job that runs all its indexes at once may be made smaller.
    let may_shrink = spec.str_at(&["completionMode"]) == "Indexed" && spec["completions"] == spec["parallelism"];
    for (counter, bound) in [("failed", true), ("succeeded", !may_shrink)] {
        let now = status.field(counter);
        if bound && int(now.value) < int(old.at(&["status", counter])) {
            errs.invalid_int(&now, format!("cannot decrease the {counter} counter"));
        }
    }
    let (end, before) = (status.field("completionTime"), old.at(&["status", "completionTime"]));
    if !end.is_absent() && !before.is_null() && end.value != before {
        errs.invalid(&end, "field is immutable");
    }
    let resumes = is(old, "Suspended") && !is(job, "Suspended");
    let had_start = !old.at(&["status", "startTime"]).is_null();
    if changes.field("startTime") && had_start && !resumes && spec["suspend"].as_bool() != Some(true) {
        errs.required(&status.path.child("startTime"), "startTime cannot be removed for unsuspended job");
    }
    let (was_met, met) = (is(old, "SuccessCriteriaMet"), is(job, "SuccessCriteriaMet"));
    if was_met && !met {
        errs.invalid_bare(&at, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if is(old, "Complete") && !was_met && met {
        errs.invalid_bare(&at, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions");
    }
}
