//! What the kinds that make pods have in common.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};
use apimachinery::selector::LabelSelector;

use crate::core::pod::{Options, read_only_disks, validate_template};
use crate::go_json::invalid_selector;
use crate::strategy::Cell;
use crate::table_cells;
use crate::validation::labels::label_selector;
use crate::validation::{Checks, int};

/// As pods, with their labels, are chosen.
pub(crate) fn selects(selector: &Value, labels: &Value) -> Option<bool> {
    match LabelSelector::from_value(selector) {
        Ok(None) => Some(false),
        Ok(Some(s)) => Some(s.matches(|key| labels.get(key).and_then(Value::as_str))),
        Err(_) => None,
    }
}

pub(crate) fn does_not_match(errs: &mut FieldErrors, template: &Cursor<'_>) {
    let labels = template.fields(&["metadata", "labels"]);
    errs.invalid(&labels, "`selector` does not match template `labels`");
}

/// A selector that must be there and choose something.
pub(crate) fn selector(errs: &mut FieldErrors, spec: &Cursor<'_>, owner: &str) {
    let selector = spec.field("selector");
    if selector.is_absent() {
        errs.required(&selector.path, "");
        return;
    }
    label_selector(errs, &selector, true);
    if ["matchLabels", "matchExpressions"].iter().all(|f| selector.value[*f].is_empty_value()) {
        invalid_selector(errs, &selector, &format!("empty selector is invalid for {owner}"));
    }
}

/// A template whose pods the selector chooses and that run for ever: of ReplicaSets and Deployments.
pub(crate) fn replicated_template(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    let (selector, template) = (spec.field("selector"), spec.field("template"));
    match selects(selector.value, template.value.at(&["metadata", "labels"])) {
        None => {
            invalid_selector(errs, &selector, "invalid label selector");
            return;
        }
        Some(false) => does_not_match(errs, &template),
        Some(_) => {}
    }
    validate_template(errs, &template, options);
    if int(&spec.value["replicas"]) > 1 {
        read_only_disks(errs, &template.fields(&["spec", "volumes"]));
    }
    runs_always(errs, &template, "ReplicaSet");
}

/// Pods that are kept running neither end nor have a deadline.
pub(crate) fn runs_always(errs: &mut FieldErrors, template: &Cursor<'_>, owner: &str) {
    errs.one_of(&template.fields(&["spec", "restartPolicy"]), &["Always"]);
    let deadline = template.fields(&["spec", "activeDeadlineSeconds"]);
    if !deadline.is_absent() {
        errs.forbidden(&deadline.path, format!("activeDeadlineSeconds in {owner} is not Supported"));
    }
}

/// Counters of a status: none below 0, and none of `bounded` above `replicas`.
pub(crate) fn counters(errs: &mut FieldErrors, status: &Cursor<'_>, all: &[&str], bounded: &[&str]) {
    for field in all {
        errs.non_negative(&status.field(field));
    }
    for field in bounded {
        let at = status.field(field);
        if int(at.value) > int(&status.value["replicas"]) {
            errs.invalid_int(&at, "cannot be greater than status.replicas");
        }
    }
}

/// No more are available than are ready.
pub(crate) fn available(errs: &mut FieldErrors, status: &Cursor<'_>, ready: &str) {
    let at = status.field("availableReplicas");
    if int(at.value) > int(&status.value["readyReplicas"]) {
        errs.invalid_int(&at, format!("cannot be greater than {ready}"));
    }
}

/// The status of ReplicaSets and ReplicationControllers.
pub(crate) fn replica_status(object: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let status = Cursor::root(object).field("status");
    counters(
        &mut errs,
        &status,
        &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
        &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    );
    available(&mut errs, &status, "readyReplicas");
    errs
}

/// A count of collisions only grows.
pub(crate) fn collisions(errs: &mut FieldErrors, status: &Value, old: &Value) {
    let field = "collisionCount";
    if old[field].as_i64().is_some_and(|before| int(&status[field]) < before) {
        errs.invalid_value(&Path::new("status").child(field), int(&status[field]), "cannot be decremented");
    }
}

pub(crate) fn int_cells<'a>(object: &'a Value, paths: &'a [&'a [&'a str]]) -> impl Iterator<Item = Cell> + 'a {
    paths.iter().map(|path| Value::from(int(object.at(path))))
}

/// Containers, images and selector of a workload.
pub(crate) fn template_cells(object: &Value) -> [Cell; 3] {
    let (names, images) = table_cells::containers(object.at(&["spec", "template", "spec"]));
    [names.into(), images.into(), table_cells::selector(object.at(&["spec", "selector"])).into()]
}
