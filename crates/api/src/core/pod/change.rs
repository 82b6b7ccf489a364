//! What may change in a pod: little of its spec, and more while nothing has been scheduled.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::annotations::MIRROR;
use super::{Options, annotations, create, scheduling};
use crate::validation::{Checks, int, same, text};

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                         `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                         existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                         previously negative)";

/// Rules for an update of a pod. Those that upstream stops at stop here too.
pub(super) fn validate(pod: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    create::metadata_and_spec(&mut errs, pod, Options::keeping(true, old));
    annotations_stay(&mut errs, pod, old);
    let (spec, before) = (Cursor::root(pod).field("spec"), Cursor::root(old).field("spec"));
    for list in ["containers", "initContainers"] {
        if !images(&mut errs, &spec.field(list), before.value[list].items().len()) {
            return errs;
        }
    }
    if !deadline(&mut errs, &spec.field("activeDeadlineSeconds"), &before.value["activeDeadlineSeconds"]) {
        return errs;
    }
    tolerations(&mut errs, &spec.field("tolerations"), &before.value["tolerations"]);
    scheduling_gates(&mut errs, &spec.field("schedulingGates"), &before.value["schedulingGates"]);
    let mut munged = spec.value.clone();
    restore_updatable(&mut munged, before.value);
    if !before.value["schedulingGates"].items().is_empty() {
        gated(&mut errs, &mut munged, &spec, before.value);
    }
    if !is_same_spec(&munged, before.value) {
        errs.changed(&spec.path, UPDATABLE);
    }
    errs
}

pub(super) fn annotations_stay(errs: &mut FieldErrors, pod: &Value, old: &Value) {
    let notes = Cursor::root(pod).fields(&["metadata", "annotations"]);
    annotations::validate_update(errs, &notes, old.meta("annotations"));
    annotations::validate(errs, &notes, &Cursor::root(pod).field("spec"), Options::keeping(true, old));
}

/// Compares two specs; the old name of the service account's field says nothing of its own.
pub(super) fn is_same_spec(a: &Value, b: &Value) -> bool {
    let bare = |spec: &Value| {
        let mut spec = spec.clone();
        spec.remove(&["serviceAccount"]);
        spec
    };
    same(&bare(a), &bare(b))
}

fn images(errs: &mut FieldErrors, list: &Cursor<'_>, before: usize) -> bool {
    if list.value.items().len() != before {
        errs.forbidden(&list.path, "pod updates may not add or remove containers");
        return false;
    }
    for image in list.elements().map(|c| c.field("image")) {
        errs.present(&image, "");
        if text(&image).trim() != text(&image) {
            errs.invalid(&image, "must not have leading or trailing whitespace");
        }
    }
    true
}

/// A deadline may come and may come nearer.
fn deadline(errs: &mut FieldErrors, at: &Cursor<'_>, old: &Value) -> bool {
    if at.is_absent() {
        if !old.is_null() {
            errs.invalid(at, "must not update from a positive integer to nil value");
        }
        return true;
    }
    if !(0..=i64::from(i32::MAX)).contains(&int(at.value)) {
        errs.invalid(at, "must be between 0 and 2147483647, inclusive");
        return false;
    }
    if old.as_i64().is_some_and(|old| old < int(at.value)) {
        errs.invalid(at, "must be less than or equal to previous value");
        return false;
    }
    true
}

fn tolerations(errs: &mut FieldErrors, list: &Cursor<'_>, old: &Value) {
    let bare = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration.remove(&["tolerationSeconds"]);
        toleration
    };
    let kept = old.items().iter().all(|o| list.value.items().iter().any(|n| same(&bare(o), &bare(n))));
    if !kept {
        errs.forbidden(&list.path, "existing toleration can not be modified except its tolerationSeconds");
        return;
    }
    scheduling::tolerations(errs, list);
}

fn scheduling_gates(errs: &mut FieldErrors, list: &Cursor<'_>, old: &Value) {
    for gate in list.elements() {
        let name = gate.value.str_at(&["name"]);
        if !old.items().iter().any(|o| o.str_at(&["name"]) == name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errs.forbidden(&gate.path.child("name"), why);
        }
    }
}

/// Makes what may change what it was, so that the rest can be compared.
fn restore_updatable(spec: &mut Value, old: &Value) {
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = old[list].items().iter().map(|c| c["image"].clone()).collect();
        if let Some(containers) = spec.get_mut(list) {
            for (container, image) in containers.items_mut().iter_mut().zip(images) {
                container.set(&["image"], image);
            }
        }
    }
    let grace = "terminationGracePeriodSeconds";
    let repaired = int(&old[grace]) < 0 && spec[grace].as_i64() == Some(1);
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        spec.set(&[field], old[field].clone());
    }
    if repaired {
        spec.set(&[grace], old[grace].clone());
    }
}

/// Before its gates are gone, where a pod may run may be narrowed.
fn gated(errs: &mut FieldErrors, munged: &mut Value, spec: &Cursor<'_>, old: &Value) {
    let selector = spec.field("nodeSelector");
    if old["nodeSelector"].entries().iter().any(|(k, v)| selector.value.get(k) != Some(v)) {
        errs.invalid(&selector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)");
    }
    munged.set(&["nodeSelector"], old["nodeSelector"].clone());
    let path = ["affinity", "nodeAffinity"];
    if same(spec.value.at(&path), old.at(&path)) {
        return;
    }
    node_terms(errs, &spec.fields(&path), old.at(&path));
    munged.set(&path, old.at(&path).clone());
}

fn node_terms(errs: &mut FieldErrors, affinity: &Cursor<'_>, old: &Value) {
    let path = ["requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    let (terms, before) = (affinity.fields(&path), old.at(&path).items());
    if before.is_empty() {
        return;
    }
    if terms.value.items().len() != before.len() {
        errs.invalid_struct(&terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
        return;
    }
    for (term, before) in terms.elements().zip(before) {
        let lists = ["matchExpressions", "matchFields"];
        let was_empty = lists.iter().all(|l| before[*l].items().is_empty());
        let only_added = lists.iter().all(|list| {
            let (new, old) = (term.value[*list].items(), before[*list].items());
            new.len() >= old.len() && new.iter().zip(old).all(|(n, o)| same(n, o)) && (!was_empty || new.is_empty())
        });
        if !only_added {
            errs.invalid_struct(&term, "only additions are allowed (no mutations or deletions)");
        }
    }
}

/// Rules for the subresource `ephemeralcontainers`: they come, and stay as they are.
#[must_use]
pub fn ephemeral_containers(pod: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    if !old.meta("annotations")[MIRROR].is_null() {
        errs.forbidden(&Path::root(), "static pods do not support ephemeral containers");
        return errs;
    }
    create::metadata_and_spec(&mut errs, pod, Options::keeping(true, old));
    annotations_stay(&mut errs, pod, old);
    let list = Cursor::root(pod).fields(&["spec", "ephemeralContainers"]);
    for before in old.at(&["spec", "ephemeralContainers"]).items() {
        let name = before.str_at(&["name"]);
        match list.value.items().iter().rev().find(|c| c.str_at(&["name"]) == name) {
            None => {
                errs.forbidden(&list.path, format!("existing ephemeral containers {name:?} may not be removed\n"));
            }
            Some(now) if !same(now, before) => {
                errs.changed(&list.path, &format!("existing ephemeral containers {name:?} may not be changed"));
            }
            Some(_) => {}
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn check(new: &str, old: &str, want: &[&str]) {
        let mut errs = FieldErrors::new();
        let (new, old) = (json(new), json(old));
        let spec = Cursor::new(Path::new("spec"), &new);
        let mut munged = new.clone();
        restore_updatable(&mut munged, &old);
        if !old["schedulingGates"].items().is_empty() {
            gated(&mut errs, &mut munged, &spec, &old);
        }
        if !is_same_spec(&munged, &old) {
            errs.forbidden(&spec.path, "changed");
        }
        crate::validation::assert_findings(&errs, want);
    }

    #[test]
    fn images_and_graces_may_change_and_nothing_else() {
        let old = r#"{"containers":[{"name":"c","image":"a"}],"terminationGracePeriodSeconds":-1}"#;
        check(r#"{"containers":[{"name":"c","image":"b"}],"terminationGracePeriodSeconds":1}"#, old, &[]);
        check(
            r#"{"containers":[{"name":"c","image":"a"}],"terminationGracePeriodSeconds":2}"#,
            old,
            &["spec: Forbidden: changed"],
        );
    }

    #[test]
    fn a_gated_pod_may_be_narrowed() {
        let old = r#"{"schedulingGates":[{"name":"g"}],"nodeSelector":{"a":"b"}}"#;
        check(r#"{"schedulingGates":[{"name":"g"}],"nodeSelector":{"a":"b","c":"d"}}"#, old, &[]);
        check(
            r#"{"schedulingGates":[{"name":"g"}],"nodeSelector":{"c":"d"}}"#,
            old,
            &[
                r#"spec.nodeSelector: Invalid value: {"c":"d"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)"#,
            ],
        );
    }
}
