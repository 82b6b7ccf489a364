//! CSINode.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use crate::core::volume_sources::csi_driver_name;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::qualified_name;
use crate::validation::{Checks, text};

pub(crate) struct CsiNodeStrategy;

const MAX_NODE_ID: usize = 192;

fn validate_driver(driver: &Cursor<'_>, errs: &mut FieldErrors) {
    csi_driver_name(&driver.field("name"), errs);
    let id = driver.field("nodeID");
    errs.present(&id, "");
    if text(&id).len() > MAX_NODE_ID {
        errs.invalid(&id, format!("must be {MAX_NODE_ID} characters or less"));
    }
    errs.non_negative(&driver.fields(&["allocatable", "count"]));
    let keys = &driver["topologyKeys"];
    for (i, key) in keys.items().iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        if name.is_empty() {
            errs.required(&driver.path, "");
        }
        if keys.items()[..i].contains(key) {
            errs.duplicate(&driver.path, name);
        }
        for message in qualified_name(name) {
            errs.invalid_value(&driver.path, keys.clone(), message);
        }
    }
}

impl Strategy for CsiNodeStrategy {
    fn validate(&self, node: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let mut names: Vec<&str> = Vec::new();
        for driver in Cursor::root(node).fields(&["spec", "drivers"]).elements() {
            validate_driver(&driver, &mut errs);
            let name = driver.field("name");
            if names.contains(&text(&name)) {
                errs.duplicate(&name.path, text(&name));
            }
            names.push(text(&name));
        }
        errs
    }

    fn validate_update(&self, node: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(node);
        for was in old.at(&["spec", "drivers"]).items() {
            for driver in node.at(&["spec", "drivers"]).items().iter().filter(|d| d["name"] == was["name"]) {
                // How much a node takes may change; all else of a driver is what it registered with.
                let fixed = |d: &Value| {
                    let mut fixed = d.clone();
                    fixed.remove(&["allocatable"]);
                    fixed
                };
                if fixed(was) != fixed(driver) {
                    errs.invalid_struct(&Cursor::new(Path::new("CSINodeDriver"), driver), "field is immutable");
                }
            }
        }
        errs
    }

    fn row(&self, node: &Value, now: Now) -> Option<Vec<Cell>> {
        let drivers = i64::try_from(node.at(&["spec", "drivers"]).items().len()).unwrap_or_default();
        Some(vec![node.name().into(), drivers.into(), table_cells::created(node, now)])
    }
}
