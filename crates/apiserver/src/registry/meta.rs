//! `metadata`: what the server fills in, and the rules that hold for every kind.

use api::ResourceDef;
use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::meta::GroupVersion;
use apimachinery::selector::syntax::{dns_label, label_value, qualified_name};
use jiff::Timestamp;

/// All annotations of an object together, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Groups whose kinds have the generic rules of metadata only.
const WITHOUT_FINALIZER_RULES: &[&str] =
    &["apiregistration.k8s.io", "apiextensions.k8s.io", "admissionregistration.k8s.io"];

/// Seconds precision, as `metav1.Time` has it.
#[must_use]
pub(crate) fn timestamp() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Fills what only the server may say about a new object.
pub(super) fn fill_system_fields(object: &mut Value, def: &ResourceDef) {
    let meta = object.entry(&["metadata"]).make_object();
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        meta.remove(field);
    }
    meta.insert("creationTimestamp", timestamp());
    meta.insert("uid", uuid::Uuid::new_v4().to_string());
    if def.strategy.has_generation() {
        meta.insert("generation", 1);
    }
}

/// Carries over from the old object what an update cannot change.
pub(super) fn keep_system_fields(object: &mut Value, old: &Value) {
    let meta = object.entry(&["metadata"]).make_object();
    let old = old["metadata"].entries();
    meta.remove("selfLink");
    for field in ["creationTimestamp", "generation"] {
        match old.get(field) {
            Some(value) => meta.insert(field, value.clone()),
            None => meta.remove(field),
        };
    }
    for field in ["uid", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let missing = meta.get(field).is_none_or(Value::is_empty_value);
        if let Some(value) = old.get(field)
            && (missing || field == "deletionTimestamp")
        {
            meta.insert(field, value.clone());
        }
    }
}

/// Rules for the metadata of a new object.
#[must_use]
pub(super) fn validate(object: &Value, def: &ResourceDef) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let meta = Cursor::root(object).field("metadata");
    let name = meta.field("name");
    let generate = meta.field("generateName");
    if let Some(prefix) = generate.as_str().filter(|p| !p.is_empty()) {
        for message in def.strategy.validate_name(prefix, true) {
            errs.invalid(&generate, message);
        }
    }
    match name.as_str().unwrap_or_default() {
        "" => errs.required(&name.path, "name or generateName is required"),
        text => {
            for message in def.strategy.validate_name(text, false) {
                errs.invalid(&name, message);
            }
        }
    }
    validate_namespace(&meta.field("namespace"), def, &mut errs);
    let generation = meta.field("generation");
    if generation.as_i64().is_some_and(|g| g < 0) {
        errs.invalid(&generation, "must be greater than or equal to 0");
    }
    validate_common(&meta, &mut errs);
    errs
}

/// Rules for a change of the metadata.
#[must_use]
pub(super) fn validate_update(object: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let meta = Cursor::root(object).field("metadata");
    let old = Cursor::root(old).field("metadata");
    if !old.field("deletionTimestamp").is_absent() {
        let had = old.value["finalizers"].items();
        let new: Vec<String> = meta.value["finalizers"]
            .items()
            .iter()
            .filter(|f| !had.contains(f))
            .map(apimachinery::field::shown)
            .collect();
        if !new.is_empty() {
            errs.forbidden(
                &meta.path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    new.join(", ")
                ),
            );
        }
    }
    if meta.value["resourceVersion"].is_empty_value() {
        errs.invalid_value(&meta.path.child("resourceVersion"), "", "must be specified for an update");
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        errs.immutable(&meta.field(field), &old.field(field));
    }
    validate_common(&meta, &mut errs);
    errs
}

fn validate_namespace(namespace: &Cursor<'_>, def: &ResourceDef, errs: &mut FieldErrors) {
    match (def.is_namespaced(), namespace.as_str().unwrap_or_default()) {
        (true, "") => errs.required(&namespace.path, ""),
        (true, text) => {
            for message in dns_label(text) {
                errs.invalid(namespace, message);
            }
        }
        (false, "") => {}
        (false, _) => errs.forbidden(&namespace.path, "not allowed on this type"),
    }
}

/// Finalizers of built-in kinds without a domain are those that Kubernetes itself knows.
pub(super) fn validate_finalizer_names(object: &Value, def: &ResourceDef) -> FieldErrors {
    let mut errs = FieldErrors::new();
    if WITHOUT_FINALIZER_RULES.contains(&def.gvr.group.as_str()) || api::resource(&def.gvr).is_none() {
        return errs;
    }
    for finalizer in Cursor::root(object).fields(&["metadata", "finalizers"]).elements() {
        let name = finalizer.as_str().unwrap_or_default();
        if !name.contains('/') && !["kubernetes", ORPHAN, FOREGROUND].contains(&name) {
            errs.invalid(&finalizer, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    errs
}

fn validate_common(meta: &Cursor<'_>, errs: &mut FieldErrors) {
    validate_labels(&meta.field("labels"), errs);
    validate_annotations(&meta.field("annotations"), errs);
    validate_owners(&meta.field("ownerReferences"), errs);
    let finalizers = meta.field("finalizers");
    for finalizer in finalizers.elements() {
        for message in qualified_name(finalizer.as_str().unwrap_or_default()) {
            errs.invalid(&Cursor::new(finalizers.path.clone(), finalizer.value), message);
        }
    }
    let has = |name: &str| finalizers.items().iter().any(|f| f.as_str() == Some(name));
    if has(ORPHAN) && has(FOREGROUND) {
        errs.invalid(&finalizers, format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set"));
    }
}

fn validate_labels(labels: &Cursor<'_>, errs: &mut FieldErrors) {
    for (key, value) in labels.map_entries() {
        for message in qualified_name(key) {
            errs.invalid_value(&labels.path, key, message);
        }
        for message in label_value(value.as_str().unwrap_or_default()) {
            errs.invalid(&Cursor::new(labels.path.clone(), value.value), message);
        }
    }
}

fn validate_annotations(annotations: &Cursor<'_>, errs: &mut FieldErrors) {
    let mut total = 0;
    for (key, value) in annotations.map_entries() {
        // Annotation keys may have upper-case letters in their prefix, which labels may not.
        for message in qualified_name(&key.to_lowercase()) {
            errs.invalid_value(&annotations.path, key, message);
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > MAX_ANNOTATIONS {
        errs.too_long(&annotations.path, MAX_ANNOTATIONS);
    }
}

fn validate_owners(owners: &Cursor<'_>, errs: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for owner in owners.elements() {
        let version = GroupVersion::parse(owner.str_at(&["apiVersion"]));
        if version.is_none() {
            let at = Cursor::new(owners.path.child("apiVersion"), &owner.value["apiVersion"]);
            errs.invalid(&at, "version must not be empty");
        }
        for field in ["kind", "name", "uid"] {
            if owner.str_at(&[field]).is_empty() {
                errs.invalid_value(&owners.path.child(field), "", "must not be empty");
            }
        }
        if version.is_some_and(|gv| gv.group.is_empty()) && owner.str_at(&["kind"]) == "Event" {
            let at = Cursor::new(owners.path.clone(), owner.value);
            errs.invalid(&at, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.value["controller"].as_bool() == Some(true) {
            let this = format!("{}/{}", owner.str_at(&["kind"]), owner.str_at(&["name"]));
            match &controller {
                Some(first) => errs.invalid(
                    owners,
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                ),
                None => controller = Some(this),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> &'static ResourceDef {
        api::resource(&apimachinery::meta::Gvr::new("", "v1", "pods")).unwrap()
    }

    #[track_caller]
    fn check(meta: &str, want: &[&str]) {
        let object: Value = serde_json::from_str(&format!(r#"{{"metadata":{meta}}}"#)).unwrap();
        let errors = validate(&object, pods());
        let got: Vec<String> = errors.0.iter().map(|e| format!("{} {}", e.path, e.kind.reason())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn metadata_of_new_objects_is_checked() {
        check(
            r#"{"name":"a","namespace":"b","labels":{"example.com/x":"y"},"annotations":{"Example.com/x":"?"}}"#,
            &[],
        );
        check(r#"{"namespace":"b"}"#, &["metadata.name FieldValueRequired"]);
        check(r#"{"name":"a","namespace":"b","labels":{"-x":"y"}}"#, &["metadata.labels FieldValueInvalid"]);
        check(r#"{"name":"a","namespace":"b","finalizers":["a b"]}"#, &["metadata.finalizers FieldValueInvalid"]);
        check(
            r#"{"name":"a","namespace":"b","ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"x"}]}"#,
            &["metadata.ownerReferences.uid FieldValueInvalid"],
        );
    }

    #[test]
    fn an_update_keeps_what_is_not_the_clients() {
        let old: Value = serde_json::from_str(
            r#"{"metadata":{"name":"a","uid":"u","creationTimestamp":"t","generation":3,"resourceVersion":"5"}}"#,
        )
        .unwrap();
        let mut new: Value =
            serde_json::from_str(r#"{"metadata":{"name":"a","generation":9,"resourceVersion":"5"}}"#).unwrap();
        keep_system_fields(&mut new, &old);
        assert_eq!(new, old);
        assert!(validate_update(&new, &old).is_empty());
        new.set(&["metadata", "name"], "b");
        assert_eq!(
            validate_update(&new, &old).0[0].to_string(),
            "metadata.name: Invalid value: \"b\": field is immutable"
        );
    }
}
