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

    fn validate(&self, _: &Value, _: &Value) -> FieldErrors {
        FieldErrors::new()
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
        let mut errs = FieldErrors::new();
        let containers = Cursor::root(object).fields(&["spec", "ephemeralContainers"]);
        let named = |name: &str| containers.value.items().iter().find(|c| c.str_at(&["name"]) == name);
        for before in old.at(&["spec", "ephemeralContainers"]).items() {
            let name = before.str_at(&["name"]);
            match named(name) {
                None => errs
                    .forbidden(&containers.path, format!("existing ephemeral containers {name:?} may not be removed")),
                Some(now) if now != before => errs
                    .forbidden(&containers.path, format!("existing ephemeral containers {name:?} may not be changed")),
                Some(_) => {}
            }
        }
        errs
    }
}

/// Of a pod: the resources of its containers.
struct Resize;

impl Rules for Resize {
    fn prepare(&self, object: &mut Value, old: &Value) {
        let wanted = object["spec"].clone();
        restore(object, old);
        for list in ["containers", "initContainers"] {
            for container in object.entry(&["spec"]).make_object().entry(list).items_mut() {
                let name = container.str_at(&["name"]).to_owned();
                let resized = wanted[list].items().iter().find(|c| c.str_at(&["name"]) == name);
                if let Some(resized) = resized {
                    container.set(&["resources"], resized["resources"].clone());
                }
            }
            if object.at(&["spec", list]).is_null() {
                object.remove(&["spec", list]);
            }
        }
        if !wanted["resources"].is_null() {
            object.set(&["spec", "resources"], wanted["resources"].clone());
        }
    }

    fn validate(&self, object: &Value, old: &Value) -> FieldErrors {
        let strategy = api::resource(&apimachinery::meta::Gvr::new("", "v1", "pods")).map(|def| def.strategy);
        let mut errs = strategy.map(|s| s.validate(object)).unwrap_or_default();
        let qos = |pod: &Value| pod.str_at(&["status", "qosClass"]).to_owned();
        if qos(object) != qos(old) {
            let at = Cursor::root(object).field("spec");
            errs.invalid_value(&at.path, qos(object), "Pod QOS Class may not change as a result of resizing");
        }
        errs
    }
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
    fn debugging_containers_stay() {
        let old = json(r#"{"spec":{"ephemeralContainers":[{"name":"a","image":"i"}]}}"#);
        let messages = |new: &str| {
            EphemeralContainers.validate(&json(new), &old).0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(messages(r#"{"spec":{"ephemeralContainers":[{"name":"a","image":"i"},{"name":"b"}]}}"#).is_empty());
        assert_eq!(
            messages(r#"{"spec":{}}"#),
            [r#"spec.ephemeralContainers: Forbidden: existing ephemeral containers "a" may not be removed"#]
        );
    }
}
