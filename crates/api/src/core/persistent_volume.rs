//! PersistentVolume.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::access_modes::{access_modes, basic_resource, class_name, class_of, or_unset, short_modes, volume_mode};
use super::volume_sources as sources;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::deprecated_labels::in_expressions;
use crate::validation::node_selector::node_selector;
use crate::validation::resources::positive;
use crate::validation::{Checks, same, text};

pub(crate) struct VolumeStrategy;

/// Where a volume's source stands beside everything else in `spec`.
fn source_of(volume: &Value) -> Value {
    let mut source = Value::object();
    for name in sources::NAMES {
        if let Some(value) = volume["spec"].get(name) {
            source.set(&[name], value.clone());
        }
    }
    source
}

fn is_root_path(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| part.is_empty() || part == ".")
}

fn validate(volume: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(volume).field("spec");
    let modes = spec.field("accessModes");
    errs.present(&modes, "");
    access_modes(&modes, &mut errs);
    let capacity = spec.field("capacity");
    errs.present(&capacity, "");
    if capacity.get("storage").is_none() || capacity.entries().len() > 1 {
        errs.not_supported(&capacity, &["storage"]);
    }
    for (_, amount) in capacity.map_entries() {
        basic_resource(&amount, &mut errs);
        positive(&mut errs, &amount);
    }
    let policy = spec.field("persistentVolumeReclaimPolicy");
    if !text(&policy).is_empty() {
        errs.one_of(&policy, &["Delete", "Recycle", "Retain"]);
    }
    let affinity = spec.field("nodeAffinity");
    if !affinity.is_absent() {
        let required = affinity.field("required");
        if required.is_absent() {
            errs.required(&required.path, "must specify required node constraints");
        } else {
            node_selector(&mut errs, &required, old.is_null());
        }
    }
    let found = sources::validate(&spec, &mut errs);
    if found == Some("local") && affinity.is_absent() {
        errs.required(&Path::new("metadata.annotations"), "Local volume requires node affinity");
    }
    if found == Some("hostPath") && is_root_path(spec.str_at(&["hostPath", "path"])) && text(&policy) == "Recycle" {
        errs.forbidden(&policy.path, "may not be 'recycle' for a hostPath mount of '/'");
    }
    class_name(&spec.field("storageClassName"), &mut errs);
    volume_mode(&spec.field("volumeMode"), &mut errs);
    let attributes = spec.field("volumeAttributesClassName");
    if !attributes.is_absent() {
        if text(&attributes).is_empty() {
            errs.required(&attributes.path, "an empty string is disallowed");
        } else {
            class_name(&attributes, &mut errs);
        }
        if spec["csi"].is_null() {
            errs.required(&spec.path.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
    errs
}

impl Strategy for VolumeStrategy {
    fn default(&self, volume: &mut Value) {
        volume.set_default(&["spec", "persistentVolumeReclaimPolicy"], "Retain");
        volume.set_default(&["spec", "volumeMode"], "Filesystem");
        sources::default(volume.entry(&["spec"]));
    }

    fn prepare_for_create(&self, volume: &mut Value) {
        volume.set(&["status"], Value::from([("phase", "Pending".into())]));
    }

    fn stamp(&self, volume: &mut Value, old: Option<&Value>, now: &str) {
        let phase = |v: &Value| v.str_at(&["status", "phase"]).to_owned();
        let since = |v: &Value| v.at(&["status", "lastPhaseTransitionTime"]).clone();
        let moved = old.is_none_or(|old| phase(old) != phase(volume) && since(old) == since(volume));
        if moved {
            volume.set(&["status", "lastPhaseTransitionTime"], now);
        }
    }

    fn validate(&self, volume: &Value) -> FieldErrors {
        validate(volume, &Value::Null)
    }

    fn validate_update(&self, volume: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate(volume, old);
        let (mut new, was) = (source_of(volume), source_of(old));
        if was.at(&["csi", "controllerExpandSecretRef"]).is_null() && !was["csi"].is_null() {
            new.remove(&["csi", "controllerExpandSecretRef"]);
        }
        if !same(&new, &was) {
            let path = Path::new("spec.persistentvolumesource");
            errs.changed(&path, "spec.persistentvolumesource is immutable after creation");
        }
        let (spec, before) = (Cursor::root(volume).field("spec"), Cursor::root(old).field("spec"));
        let mode = Cursor::new(Path::new("volumeMode"), &spec.value["volumeMode"]);
        errs.immutable(&mode, &before.field("volumeMode"));
        if !before["nodeAffinity"].is_null() {
            let affinity = Cursor::new(Path::new("nodeAffinity"), &spec.value["nodeAffinity"]);
            errs.immutable_struct(&affinity, &before.field("nodeAffinity"));
        }
        let attributes = "volumeAttributesClassName";
        if !before[attributes].is_null() && spec[attributes].is_null() {
            errs.forbidden(&spec.path.child(attributes), "update from non-nil value to nil is forbidden");
        }
        errs
    }

    fn warnings(&self, volume: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if volume.annotation("volume.beta.kubernetes.io/storage-class").is_some() {
            warnings.push(
                "metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use \
                 \"storageClassName\" attribute instead"
                    .to_owned(),
            );
        }
        if volume.annotation("volume.beta.kubernetes.io/mount-options").is_some() {
            warnings.push(
                "metadata.annotations[volume.beta.kubernetes.io/mount-options]: deprecated since v1.31; use \"mountOptions\" \
                 attribute instead"
                    .to_owned(),
            );
        }
        if volume.str_at(&["spec", "persistentVolumeReclaimPolicy"]) == "Recycle" {
            warnings.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
                 approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        warnings.extend(sources::warnings(&volume["spec"]));
        let terms = Cursor::root(volume).fields(&["spec", "nodeAffinity", "required", "nodeSelectorTerms"]);
        warnings.extend(terms.elements().flat_map(|t| in_expressions(&t.field("matchExpressions"))));
        warnings
    }

    fn row(&self, volume: &Value, now: Now) -> Option<Vec<Cell>> {
        let (spec, status) = (&volume["spec"], &volume["status"]);
        let claim = &spec["claimRef"];
        let claim = match claim.str_at(&["name"]) {
            "" => String::new(),
            name => format!("{}/{name}", claim.str_at(&["namespace"])),
        };
        let phase = status.str_at(&["phase"]);
        let phase = if volume.is_deleting() { "Terminating" } else { phase };
        Some(vec![
            volume.name().into(),
            spec.at(&["capacity", "storage"]).as_str().unwrap_or_default().into(),
            short_modes(&spec["accessModes"]).into(),
            spec.str_at(&["persistentVolumeReclaimPolicy"]).into(),
            phase.into(),
            claim.into(),
            class_of(volume).into(),
            or_unset(&spec["volumeAttributesClassName"]),
            status.str_at(&["reason"]).into(),
            table_cells::created(volume, now),
            or_unset(&spec["volumeMode"]),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_keeps_its_source() {
        let json = |spec: &str| -> Value {
            serde_json::from_str(&format!(
                r#"{{"spec":{{"capacity":{{"storage":"1Gi"}},"accessModes":["ReadWriteOnce"],{spec}}}}}"#
            ))
            .unwrap()
        };
        let old = json(r#""csi":{"driver":"a.b","volumeHandle":"h"}"#);
        assert!(VolumeStrategy.validate(&old).is_empty());
        let expanding = json(
            r#""csi":{"driver":"a.b","volumeHandle":"h","controllerExpandSecretRef":{"name":"a","namespace":"b"}}"#,
        );
        assert!(VolumeStrategy.validate_update(&expanding, &old).is_empty());
        let other = json(r#""csi":{"driver":"a.b","volumeHandle":"x"}"#);
        assert_eq!(VolumeStrategy.validate_update(&other, &old).0[0].path.as_str(), "spec.persistentvolumesource");
        let mut stamped = old.clone();
        VolumeStrategy.stamp(&mut stamped, None, "2026-01-01T00:00:00Z");
        assert_eq!(stamped.str_at(&["status", "lastPhaseTransitionTime"]), "2026-01-01T00:00:00Z");
    }
}
