//! Subresources that change one part of their object, beside `status`.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::registry::{Part, Rules};

/// The part of its object that a subresource changes.
pub(super) fn part_of(subresource: &str) -> Part<'static> {
    match subresource {
        "approval" => Part::Other(&Approval),
        "finalize" => Part::Other(&Finalize),
        "ephemeralcontainers" => Part::Other(&EphemeralContainers),
        "resize" => Part::Other(&Resize),
        _ => Part::Status,
    }
}

/// Makes the object what it was, except for its metadata.
fn restore(object: &mut Value, old: &Value) {
    let metadata = object["metadata"].clone();
    *object = old.clone();
    object.set(&["metadata"], metadata);
}

/// Of a certificate signing request: the conditions that approve or deny it.
struct Approval;

impl Rules for Approval {
    fn prepare(&self, object: &mut Value, old: &Value) {
        let conditions = object.at(&["status", "conditions"]).clone();
        restore(object, old);
        if conditions.is_null() {
            object.remove(&["status", "conditions"]);
        } else {
            object.set(&["status", "conditions"], conditions);
        }
    }

    fn validate(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errs = api::validate_signing_conditions(object, old);
        let conditions = Cursor::root(object).fields(&["status", "conditions"]);
        let held =
            |v: &Value, kind: &str| v.at(&["status", "conditions"]).items().iter().any(|c| c.str_at(&["type"]) == kind);
        for kind in ["Approved", "Denied", "Failed"] {
            if held(old, kind) && !held(object, kind) {
                errs.forbidden(&conditions.path, format!("updates may not remove a condition of type {kind:?}"));
            }
        }
        errs
    }
}

/// Of a namespace: what holds it while it is being deleted.
struct Finalize;

impl Rules for Finalize {
    fn prepare(&self, object: &mut Value, old: &Value) {
        let finalizers = object.at(&["spec", "finalizers"]).clone();
        restore(object, old);
        if finalizers.items().is_empty() {
            object.remove(&["spec", "finalizers"]);
        } else {
            object.set(&["spec", "finalizers"], finalizers);
        }
    }

    fn validate(&self, object: &Value, _: &Value) -> FieldErrors {
        let strategy = api::resource(&apimachinery::meta::Gvr::new("", "v1", "namespaces")).map(|def| def.strategy);
        strategy.map(|s| s.validate(object)).unwrap_or_default()
    }
}

/// Of a pod: containers that are added for debugging, and stay.
struct EphemeralContainers;

impl Rules for EphemeralContainers {
    fn prepare(&self, object: &mut Value, old: &Value) {
        let containers = object.at(&["spec", "ephemeralContainers"]).clone();
        restore(object, old);
        if containers.items().is_empty() {
            object.remove(&["spec", "ephemeralContainers"]);
        } else {
            object.set(&["spec", "ephemeralContainers"], containers);
        }
    }

    fn validate(&self, object: &Value, old: &Value) -> FieldErrors {
        api::validate_ephemeral_containers(object, old)
    }
}

/// Of a pod: the resources of its containers.
struct Resize;

impl Rules for Resize {
    fn prepare(&self, object: &mut Value, old: &Value) {
        let wanted = object["spec"].clone();
        restore(object, old);
        for list in ["containers", "initContainers"] {
            // What is new or missing stays so, for validation to find.
            let merged: Vec<Value> = wanted[list].items().iter().map(|new| resized(new, &old["spec"][list])).collect();
            if !wanted[list].is_null() || !old["spec"][list].is_null() {
                object.set(&["spec", list], merged);
            }
        }
        if !wanted["resources"].is_null() {
            object.set(&["spec", "resources"], wanted["resources"].clone());
        } else if !old["spec"]["resources"].is_null() {
            object.remove(&["spec", "resources"]);
        }
    }

    fn validate(&self, object: &Value, old: &Value) -> FieldErrors {
        api::validate_resize(object, old)
    }
}

/// The container as it was, with what the new one says of resources.
fn resized(new: &Value, old: &Value) -> Value {
    let Some(before) = old.items().iter().find(|c| c["name"] == new["name"]) else { return new.clone() };
    let mut container = before.clone();
    for field in ["resources", "resizePolicy"] {
        match &new[field] {
            Value::Null => {
                container.remove(&[field]);
            }
            value => container.set(&[field], value.clone()),
        }
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn each_part_changes_nothing_else() {
        let old =
            json(r#"{"metadata":{"name":"a"},"spec":{"finalizers":["kubernetes"],"x":1},"status":{"phase":"Active"}}"#);
        let mut new = json(r#"{"metadata":{"name":"a"},"spec":{"x":2},"status":{}}"#);
        Finalize.prepare(&mut new, &old);
        assert_eq!(new, json(r#"{"metadata":{"name":"a"},"spec":{"x":1},"status":{"phase":"Active"}}"#));
    }

    #[test]
    fn a_resize_changes_resources_only() {
        let old = json(r#"{"metadata":{},"spec":{"containers":[{"name":"a","image":"i"}],"x":1}}"#);
        let mut new = json(
            r#"{"metadata":{},"spec":{"containers":[{"name":"a","image":"j","resources":{"limits":{"cpu":"1"}}}],"x":2}}"#,
        );
        Resize.prepare(&mut new, &old);
        let want = r#"{"metadata":{},"spec":{"containers":[{"image":"i","name":"a","resources":{"limits":{"cpu":"1"}}}],"x":1}}"#;
        assert_eq!(serde_json::to_string(&new).unwrap(), want);
    }
}
