//! PersistentVolumeClaim.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::access_modes::{access_modes, basic_resource, class_name, class_of, or_unset, short_modes, volume_mode};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::labels::label_selector;
use crate::validation::resources::{positive, quantity};
use crate::validation::{Checks, same, text};

pub(crate) struct ClaimStrategy;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const STORAGE: &[&str] = &["spec", "resources", "requests", "storage"];
const ATTRIBUTES: &str = "volumeAttributesClassName";

/// A source that `dataSource` has always taken.
fn is_claim_or_snapshot(source: &Value) -> bool {
    matches!(
        (source.str_at(&["apiGroup"]), source.str_at(&["kind"])),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}

/// `dataSource` and `dataSourceRef` say the same, where both can; what the old field never took is ignored (KEP-1495).
fn pair_sources(claim: &mut Value) {
    let spec = claim.entry(&["spec"]);
    if !spec.str_at(&["dataSourceRef", "namespace"]).is_empty() {
        // Sources in other namespaces are behind a gate that is off.
        spec.remove(&["dataSourceRef"]);
    }
    if !spec["dataSource"].is_null() && !is_claim_or_snapshot(&spec["dataSource"]) {
        spec.remove(&["dataSource"]);
    }
    match (spec["dataSource"].is_null(), spec["dataSourceRef"].is_null()) {
        (false, true) => {
            let source = spec["dataSource"].clone();
            spec.set(&["dataSourceRef"], source);
        }
        (true, false) if is_claim_or_snapshot(&spec["dataSourceRef"]) => {
            let source = spec["dataSourceRef"].clone();
            spec.set(&["dataSource"], source);
        }
        _ => {}
    }
}

fn validate_source(source: &Cursor<'_>, errs: &mut FieldErrors) {
    if source.is_absent() {
        return;
    }
    errs.present(&source.field("name"), "");
    errs.present(&source.field("kind"), "");
    let (group, kind) = (source.str_at(&["apiGroup"]), source.str_at(&["kind"]));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        errs.invalid_value(&source.path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
    }
    if !group.is_empty() {
        let at = source.field("apiGroup");
        errs.each(&at, crate::validation::names::dns_subdomain(group));
    }
}

/// The rules of a claim's `spec`, wherever it stands.
pub(crate) fn validate_spec(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let modes = spec.field("accessModes");
    errs.present(&modes, "at least 1 access mode is required");
    let selector = spec.field("selector");
    if !selector.is_absent() {
        label_selector(errs, &selector, true);
    }
    access_modes(&modes, errs);
    let storage =
        Cursor::new(spec.path.child("resources").key("storage"), spec.value.at(&["resources", "requests", "storage"]));
    if storage.is_absent() {
        errs.required(&storage.path, "");
    } else {
        positive(errs, &storage);
    }
    class_name(&spec.field("storageClassName"), errs);
    volume_mode(&spec.field("volumeMode"), errs);
    let (source, reference) = (spec.field("dataSource"), spec.field("dataSourceRef"));
    validate_source(&source, errs);
    validate_source(&reference, errs);
    if !source.is_absent() && !reference.is_absent() && !same(source.value, reference.value) {
        errs.invalid_value(&spec.path, source.path.as_str(), "must match dataSourceRef");
    }
    class_name(&spec.field(ATTRIBUTES), errs);
}

/// The spec without what may change.
fn fixed_part(claim: &Value, old: &Value) -> Value {
    let mut spec = claim["spec"].clone();
    let was = &old["spec"];
    let keep = |spec: &mut Value, field: &str| match was.get(field) {
        Some(value) => spec.set(&[field], value.clone()),
        None => {
            spec.remove(&[field]);
        }
    };
    if was.str_at(&["volumeName"]).is_empty() {
        keep(&mut spec, "volumeName");
    }
    if was["storageClassName"].is_null() && old.annotation(CLASS_ANNOTATION).is_none() {
        keep(&mut spec, "storageClassName");
    }
    if claim.str_at(&["status", "phase"]) == "Bound" {
        if !spec.at(&["resources", "requests"]).is_null() {
            spec.set(&["resources", "requests", "storage"], old.at(STORAGE).clone());
        }
        keep(&mut spec, ATTRIBUTES);
    }
    spec
}

impl Strategy for ClaimStrategy {
    fn default(&self, claim: &mut Value) {
        claim.set_default(&["spec", "volumeMode"], "Filesystem");
    }

    fn prepare_for_create(&self, claim: &mut Value) {
        claim.set(&["status"], Value::from([("phase", "Pending".into())]));
        pair_sources(claim);
    }

    fn prepare_for_update(&self, claim: &mut Value, _: &Value) {
        pair_sources(claim);
    }

    fn validate(&self, claim: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        validate_spec(&Cursor::root(claim).field("spec"), &mut errs);
        errs
    }

    fn validate_update(&self, claim: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(claim);
        let (spec, was) = (Cursor::root(claim).field("spec"), Cursor::root(old).field("spec"));
        if !same(&fixed_part(claim, old), was.value) {
            errs.changed(
                &spec.path,
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
        let size = |object: &Value, path: &[&str]| quantity(&Cursor::root(object.at(path)));
        let (new, before) = (size(claim, STORAGE), size(old, STORAGE));
        if new < before && new <= size(old, &["status", "capacity", "storage"]) {
            let path = Path::new("spec.resources.requests.storage");
            errs.forbidden(&path, "field can not be less than status.capacity");
        }
        let mode = Cursor::new(Path::new("volumeMode"), &spec.value["volumeMode"]);
        errs.immutable(&mode, &was.field("volumeMode"));
        if !was[ATTRIBUTES].is_null() {
            let class = spec.field(ATTRIBUTES);
            if class.is_absent() {
                errs.forbidden(&class.path, "update from non-nil value to nil is forbidden");
            } else if text(&class).is_empty() {
                errs.forbidden(&class.path, "update from non-nil value to an empty string is forbidden");
            }
        }
        errs
    }

    fn validate_status_update(&self, claim: &Value, _: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        errs.present(&Cursor::root(claim).fields(&["spec", "accessModes"]), "");
        for (_, amount) in Cursor::root(claim).fields(&["status", "capacity"]).map_entries() {
            basic_resource(&amount, &mut errs);
        }
        errs
    }

    fn warnings(&self, claim: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if claim.annotation(CLASS_ANNOTATION).is_some() {
            warnings.push(format!(
                "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        for field in ["requests", "limits"] {
            let amount = claim.at(&["spec", "resources", field, "storage"]);
            if !amount.is_null() && !quantity(&Cursor::root(amount)).is_integer() {
                let shown = amount.as_str().unwrap_or_default();
                warnings.push(format!(
                    "spec.resources.{field}[storage]: fractional byte value {shown:?} is invalid, must be an integer"
                ));
            }
        }
        warnings
    }

    fn row(&self, claim: &Value, now: Now) -> Option<Vec<Cell>> {
        let (spec, status) = (&claim["spec"], &claim["status"]);
        let phase = if claim.is_deleting() { "Terminating" } else { status.str_at(&["phase"]) };
        let volume = spec.str_at(&["volumeName"]);
        let bound = !volume.is_empty();
        let modes = if bound { short_modes(&status["accessModes"]) } else { String::new() };
        let capacity = if bound { status.str_at(&["capacity", "storage"]) } else { "" };
        let capacity = if bound && capacity.is_empty() { "0" } else { capacity };
        Some(vec![
            claim.name().into(),
            phase.into(),
            volume.into(),
            capacity.into(),
            modes.into(),
            class_of(claim).into(),
            or_unset(&spec[ATTRIBUTES]),
            table_cells::created(claim, now),
            or_unset(&spec["volumeMode"]),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_bound_claim_may_grow() {
        let claim = |size: &str, phase: &str| {
            json(&format!(
                r#"{{"spec":{{"accessModes":["ReadWriteOnce"],"resources":{{"requests":{{"storage":"{size}"}}}}}},"status":{{"phase":"{phase}","capacity":{{"storage":"1Gi"}}}}}}"#
            ))
        };
        let check = |new: &Value, old: &Value, want: usize| {
            assert_eq!(ClaimStrategy.validate_update(new, old).0.len(), want);
        };
        check(&claim("2Gi", "Bound"), &claim("1Gi", "Bound"), 0);
        check(&claim("2Gi", "Pending"), &claim("1Gi", "Pending"), 1);
        check(&claim("1Gi", "Bound"), &claim("2Gi", "Bound"), 1);
    }

    #[test]
    fn both_data_sources_say_the_same() {
        let mut claim = json(r#"{"spec":{"dataSource":{"kind":"PersistentVolumeClaim","name":"a"}}}"#);
        pair_sources(&mut claim);
        assert_eq!(claim.str_at(&["spec", "dataSourceRef", "name"]), "a");
        let mut odd = json(r#"{"spec":{"dataSource":{"kind":"Pod","name":"a"}}}"#);
        pair_sources(&mut odd);
        assert_eq!(odd, json(r#"{"spec":{}}"#));
        let mut errs = FieldErrors::new();
        validate_spec(&Cursor::root(&json("{}")), &mut errs);
        assert_findings(
            &FieldErrors(errs.0[..1].to_vec()),
            &["accessModes: Required value: at least 1 access mode is required"],
        );
    }
}
