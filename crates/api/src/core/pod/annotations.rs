//! Annotations that mean something to a pod.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{Options, containers_of};
use crate::validation::{paths, text};

/// Marks a pod that a kubelet runs from a file, and only shows.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn validate(errs: &mut FieldErrors, annotations: &Cursor<'_>, spec: &Cursor<'_>, options: Options) {
    let mirror = &annotations.value[MIRROR];
    if !mirror.is_null() && spec.value.str_at(&["nodeName"]).is_empty() {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errs.invalid_value(&annotations.path.key(MIRROR), mirror.clone(), why);
    }
    if !options.any_deletion_cost && has_bad_deletion_cost(annotations.value) {
        let value = annotations.value[DELETION_COST].clone();
        errs.invalid_value(&annotations.path.key(DELETION_COST), value, "must be a 32bit integer");
    }
    for (key, value) in annotations.map_entries() {
        let at = Cursor::new(annotations.path.child(key), value.value);
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            seccomp(errs, &at);
        }
        if let Some(container) = key.strip_prefix(APP_ARMOR) {
            if !containers_of(spec).any(|c| c.value.str_at(&["name"]) == container) {
                errs.invalid_value(&value.path, container, "container not found");
            }
            let profile = text(&value);
            if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
                errs.invalid(&value, format!("invalid AppArmor profile name: {profile:?}"));
            }
        }
    }
}

fn seccomp(errs: &mut FieldErrors, at: &Cursor<'_>) {
    let profile = text(at);
    if let Some(path) = profile.strip_prefix("localhost/") {
        paths::descending(errs, &Cursor::new(at.path.clone(), &path.into()));
    } else if !matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        errs.invalid(at, "must be a valid seccomp profile");
    }
}

/// How much deleting the pod costs: a number in its only form.
pub(super) fn has_bad_deletion_cost(annotations: &Value) -> bool {
    annotations[DELETION_COST].as_str().is_some_and(|cost| {
        let first = cost.bytes().next();
        let plain = cost == "0" || first == Some(b'-') || matches!(first, Some(b'1'..=b'9'));
        !plain || cost.parse::<i32>().is_err()
    })
}

/// Those that may not change.
pub(super) fn validate_update(errs: &mut FieldErrors, new: &Cursor<'_>, old: &Value) {
    let changes = |key: &str, what: &str| {
        if key.starts_with(APP_ARMOR) {
            Some(format!("may not {what} AppArmor annotations"))
        } else if key == MIRROR {
            Some(format!("may not {what} mirror pod annotation"))
        } else {
            None
        }
    };
    for (key, value) in old.entries().iter() {
        if let Some(why) = changes(key, "remove or update").filter(|_| new.value.get(key) != Some(value)) {
            errs.forbidden(&new.path.key(key), why);
        }
    }
    for (key, _) in new.value.entries().iter() {
        if let Some(why) = changes(key, "add").filter(|_| old.get(key).is_none()) {
            errs.forbidden(&new.path.key(key), why);
        }
    }
}

/// Old annotations and the fields that replaced them say the same.
pub(super) fn agree_with_fields(errs: &mut FieldErrors, annotations: &Value, spec: &Cursor<'_>) {
    let compare = |errs: &mut FieldErrors, annotation: &str, profile: &Cursor<'_>, what: &str, default: &[&str]| {
        let agrees = match profile.value.str_at(&["type"]) {
            "Unconfined" => annotation == "unconfined",
            "RuntimeDefault" => default.contains(&annotation),
            "Localhost" => annotation.starts_with("localhost/"),
            _ => true,
        };
        if !agrees {
            errs.forbidden(&profile.path.child("type"), format!("{what} type in annotation and field must match"));
        } else if profile.value.str_at(&["type"]) == "Localhost"
            && annotation.strip_prefix("localhost/") != profile.value["localhostProfile"].as_str()
        {
            let why = format!("{what} profile in annotation and field must match");
            errs.forbidden(&profile.path.child("localhostProfile"), why);
        }
    };
    const SECCOMP_DEFAULTS: &[&str] = &["runtime/default", "docker/default"];
    let whole = spec.fields(&["securityContext", "seccompProfile"]);
    if let Some(annotation) = annotations[SECCOMP_POD].as_str().filter(|_| !whole.is_absent()) {
        compare(errs, annotation, &whole, "seccomp", SECCOMP_DEFAULTS);
    }
    for container in containers_of(spec) {
        let own = container.fields(&["securityContext", "seccompProfile"]);
        let key = format!("{SECCOMP_CONTAINER}{}", container.value.str_at(&["name"]));
        if let Some(annotation) = annotations[key.as_str()].as_str().filter(|_| !own.is_absent()) {
            compare(errs, annotation, &own, "seccomp", SECCOMP_DEFAULTS);
        }
    }
    if spec.value.str_at(&["os", "name"]) == "windows" {
        return;
    }
    for container in containers_of(spec) {
        let own = container.fields(&["securityContext", "appArmorProfile"]);
        let of_pod = spec.value.at(&["securityContext", "appArmorProfile"]);
        let value = if own.is_absent() { of_pod } else { own.value };
        let key = format!("{APP_ARMOR}{}", container.value.str_at(&["name"]));
        if let Some(annotation) = annotations[key.as_str()].as_str().filter(|_| !value.is_null()) {
            compare(errs, annotation, &Cursor::new(own.path.clone(), value), "apparmor", &["runtime/default"]);
        }
    }
}
