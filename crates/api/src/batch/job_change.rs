//! What may change in a job: its template only while it is suspended.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::job_rules;
use crate::core::pod::Options;
use crate::go_json::immutable_selector;
use crate::validation::{Checks, same};

pub(super) fn validate(job: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let (spec, before) = (Cursor::root(job).field("spec"), Cursor::root(old).field("spec"));
    job_rules::own_spec(&mut errs, &spec, Options::keeping(false, &before.value["template"]));
    completions(&mut errs, &spec, before.value);
    immutable_selector(&mut errs, &spec.field("selector"), &before.field("selector"));
    template(&mut errs, &spec, old);
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        let (now, before) = (spec.field(field), before.field(field));
        if matches!(now.value, Value::Object(_)) || matches!(before.value, Value::Object(_)) {
            errs.immutable_struct(&now, &before);
        } else {
            errs.immutable(&now, &before);
        }
    }
    errs
}

/// An indexed job grows and shrinks together with what runs at a time.
fn completions(errs: &mut FieldErrors, spec: &Cursor<'_>, old: &Value) {
    let now = spec.field("completions");
    if spec.value.str_at(&["completionMode"]) != "Indexed" {
        errs.immutable(&now, &Cursor::new(now.path.clone(), &old["completions"]));
    } else if !now.is_absent() && *now.value != old["completions"] && *now.value != spec.value["parallelism"] {
        errs.invalid(&now, "can only be modified in tandem with spec.parallelism");
    }
}

fn template(errs: &mut FieldErrors, spec: &Cursor<'_>, old: &Value) {
    let now = spec.field("template");
    let mut before = old.at(&["spec", "template"]).clone();
    let suspended = old.at(&["spec", "suspend"]).as_bool() == Some(true);
    if suspended && is_idle(old) {
        allow_scheduling(&mut before, now.value);
        allow_resources(&mut before, now.value);
        // The rest of the metadata means nothing to pods.
        let (pod, was) = (now.field("spec"), Cursor::new(now.path.child("spec"), &before["spec"]));
        errs.immutable_struct(&pod, &was);
        return;
    }
    errs.immutable_struct(&now, &Cursor::new(now.path.clone(), &before));
}

/// No pods of it run, so that where they run may be chosen anew.
fn is_idle(job: &Value) -> bool {
    let status = &job["status"];
    let is_suspended = |c: &Value| c.str_at(&["type"]) == "Suspended" && c.str_at(&["status"]) == "True";
    status["startTime"].is_null()
        || (status["active"].is_empty_value() && status["conditions"].items().iter().any(is_suspended))
}

/// Takes over from the new template what says where pods run.
fn allow_scheduling(before: &mut Value, now: &Value) {
    for path in [
        &["spec", "nodeSelector"][..],
        &["spec", "tolerations"],
        &["spec", "schedulingGates"],
        &["metadata", "annotations"],
        &["metadata", "labels"],
    ] {
        before.set(path, now.at(path).clone());
    }
    let path = ["spec", "affinity", "nodeAffinity"];
    if !before.at(&path).is_null() || !now.at(&path).is_null() {
        before.set(&path, now.at(&path).clone());
    }
}

/// Takes over from the new template what its containers ask for.
fn allow_resources(before: &mut Value, now: &Value) {
    for list in ["containers", "initContainers"] {
        let new = now.at(&["spec", list]).items();
        let Some(held) = before.get_mut("spec").and_then(|s| s.get_mut(list)) else { continue };
        if held.items().len() != new.len() {
            continue;
        }
        for (container, new) in held.items_mut().iter_mut().zip(new).filter(|(c, n)| same(&c["name"], &n["name"])) {
            container.set(&["resources"], new["resources"].clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn check(new: &str, old: &str, findings: &[&str]) {
        let mut errs = FieldErrors::new();
        let new = json(new);
        template(&mut errs, &Cursor::root(&new).field("spec"), &json(old));
        let got: Vec<&str> = errs.0.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(got, findings);
    }

    #[test]
    fn a_suspended_job_may_be_placed_anew() {
        let new = r#"{"spec":{"template":{"spec":{"nodeSelector":{"a":"b"},"containers":[]}}}}"#;
        check(new, r#"{"spec":{"suspend":true,"template":{"spec":{"containers":[]}}}}"#, &[]);
        check(new, r#"{"spec":{"template":{"spec":{"containers":[]}}}}"#, &["spec.template"]);
        check(
            r#"{"spec":{"template":{"spec":{"restartPolicy":"Never"}}}}"#,
            r#"{"spec":{"suspend":true,"template":{"spec":{}}}}"#,
            &["spec.template.spec"],
        );
    }
}
