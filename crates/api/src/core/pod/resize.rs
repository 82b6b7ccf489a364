//! The subresource `resize`: cpu and memory of containers that run.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::annotations::MIRROR;
use super::{Options, change, create, qos_class};
use crate::validation::same;

/// Rules for a resize; the pods differ in resources and resize policies only.
#[must_use]
pub fn validate(pod: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    if !old.meta("annotations")[MIRROR].is_null() {
        errs.forbidden(&Path::root(), "static pods cannot be resized");
        return errs;
    }
    if old.str_at(&["spec", "os", "name"]) == "windows" {
        errs.forbidden(&Path::root(), "windows pods cannot be resized");
        return errs;
    }
    create::metadata_and_spec(&mut errs, pod, Options::keeping(true, old));
    let (spec, before) = (Cursor::root(pod).field("spec"), &old["spec"]);
    let held = old.str_at(&["status", "qosClass"]);
    let class = if held.is_empty() { qos_class(old) } else { held };
    if class != qos_class(pod) {
        let shown = pod.at(&["status", "qosClass"]).clone();
        errs.invalid_value(&spec.path, shown, "Pod QOS Class may not change as a result of resizing");
    }
    if !can_resize(old) {
        errs.forbidden(&spec.path, "Pod running on node without support for resize");
    }
    let mut munged = spec.value.clone();
    whole_pod(&mut errs, &spec, before, &mut munged);
    if !same_order(&mut errs, &spec, before) {
        return errs;
    }
    removed(&mut errs, &spec, before);
    only_cpu_and_memory(&mut errs, &spec.path, before, &mut munged);
    if errs.is_empty() && !change::is_same_spec(&munged, before) {
        errs.forbidden(&spec.path, "only cpu and memory resources are mutable");
    }
    errs
}

/// A kubelet that resizes says what its containers have.
fn can_resize(pod: &Value) -> bool {
    let mut statuses = pod.at(&["status", "containerStatuses"]).items().iter();
    statuses.find(|s| !s.at(&["state", "running"]).is_null()).is_none_or(|s| !s["resources"].is_null())
}

fn is_restartable(container: &Value) -> bool {
    container.str_at(&["restartPolicy"]) == "Always"
}

fn any_removed(new: &Value, old: &Value, list: &str) -> bool {
    old[list].entries().keys().any(|name| new[list].get(name).is_none())
}

fn whole_pod(errs: &mut FieldErrors, spec: &Cursor<'_>, old: &Value, munged: &mut Value) {
    let (now, before) = (spec.field("resources"), &old["resources"]);
    if now.is_absent() {
        if !before.is_null() {
            errs.forbidden(&now.path, "pod-level resources cannot be removed");
        }
        return;
    }
    for (list, what) in [("requests", "requests"), ("limits", "limits")] {
        if any_removed(now.value, before, list) {
            errs.forbidden(&now.path.child(list), format!("pod-level resource {what} cannot be removed"));
        }
    }
    restore_cpu_and_memory(munged.entry(&["resources"]), before);
    if !same(&munged["resources"], before) {
        errs.forbidden(&spec.path, "only cpu and memory resources are mutable at pod-level");
    }
}

/// Makes cpu and memory what they were.
fn restore_cpu_and_memory(resources: &mut Value, old: &Value) {
    for list in ["requests", "limits"] {
        for name in ["cpu", "memory"] {
            let before = old.at(&[list, name]);
            if before.is_null() {
                resources.remove(&[list, name]);
            } else {
                resources.set(&[list, name], before.clone());
            }
        }
    }
}

fn same_order(errs: &mut FieldErrors, spec: &Cursor<'_>, old: &Value) -> bool {
    let count = errs.0.len();
    for list in ["containers", "initContainers"] {
        let (now, before) = (spec.field(list), old[list].items());
        if now.value.items().len() != before.len() {
            errs.forbidden(&now.path, format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (container, before) in now.elements().zip(before) {
            if container.value["name"] != before["name"] {
                let why = format!("{list} may not be renamed or reordered on resize");
                errs.forbidden(&container.path.child("name"), why);
            }
        }
    }
    errs.0.len() == count
}

fn removed(errs: &mut FieldErrors, spec: &Cursor<'_>, old: &Value) {
    for list in ["initContainers", "containers"] {
        for (container, before) in spec.field(list).elements().zip(old[list].items()) {
            if list == "initContainers" && !is_restartable(before) {
                continue;
            }
            let resources = container.field("resources");
            for kind in ["requests", "limits"] {
                if any_removed(resources.value, &before["resources"], kind) {
                    errs.forbidden(&resources.path.child(kind), format!("resource {kind} cannot be removed"));
                }
            }
        }
    }
}

fn only_cpu_and_memory(errs: &mut FieldErrors, path: &Path, old: &Value, munged: &mut Value) {
    for list in ["containers", "initContainers"] {
        let Some(containers) = munged.get_mut(list) else { continue };
        for (container, before) in containers.items_mut().iter_mut().zip(old[list].items()) {
            let why = match (list, is_restartable(container)) {
                ("containers", _) => "only cpu and memory resources are mutable",
                (_, true) => "only cpu and memory resources for sidecar containers are mutable",
                (_, false) => "resources for non-sidecar init containers are immutable",
            };
            if list == "containers" || is_restartable(container) {
                restore_cpu_and_memory(container.entry(&["resources"]), &before["resources"]);
            }
            if !same(container, before) {
                errs.forbidden(path, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_are_put_back_and_the_rest_stays() {
        let old: Value = serde_json::from_str(r#"{"requests":{"cpu":"1"}}"#).unwrap();
        let mut new: Value =
            serde_json::from_str(r#"{"requests":{"cpu":"2","memory":"1Gi"},"limits":{"x.io/y":"1"}}"#).unwrap();
        restore_cpu_and_memory(&mut new, &old);
        assert_eq!(serde_json::to_string(&new).unwrap(), r#"{"limits":{"x.io/y":"1"},"requests":{"cpu":"1"}}"#);
    }
}
