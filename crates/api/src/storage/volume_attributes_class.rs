//! VolumeAttributesClass.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::parameters;
use crate::core::volume_sources::csi_driver_name;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::same;

pub(crate) struct VolumeAttributesClassStrategy;

impl Strategy for VolumeAttributesClassStrategy {
    fn validate(&self, class: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(class);
        csi_driver_name(&root.field("driverName"), &mut errs);
        let given = root.field("parameters");
        if given.entries().is_empty() {
            errs.required(&given.path, "must contain at least one key/value pair");
        } else {
            parameters(&given, &mut errs);
        }
        errs
    }

    fn validate_update(&self, class: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(class);
        for (field, why) in [
            ("driverName", "updates to driverName are forbidden."),
            ("parameters", "updates to parameters are forbidden."),
        ] {
            if !same(&root[field], &old[field]) {
                errs.forbidden(&root.path.child(field), why);
            }
        }
        errs
    }

    fn row(&self, class: &Value, now: Now) -> Option<Vec<Cell>> {
        let mut name = class.name().to_owned();
        if class.annotation("volumeattributesclass.kubernetes.io/is-default-class") == Some("true") {
            name.push_str(" (default)");
        }
        Some(vec![name.into(), class.str_at(&["driverName"]).into(), table_cells::created(class, now)])
    }
}
