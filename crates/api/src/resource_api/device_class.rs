//! DeviceClass.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::devices::{MAX_ITEMS, configuration, selectors};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::resources::is_extended;
use crate::validation::text;

pub(crate) struct DeviceClassStrategy;

impl Strategy for DeviceClassStrategy {
    fn validate(&self, class: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(class).field("spec");
        selectors(&spec.field("selectors"), &mut errs);
        let config = spec.field("config");
        if config.items().len() > MAX_ITEMS {
            errs.too_many(&config.path, config.items().len(), MAX_ITEMS);
        }
        for item in config.elements() {
            configuration(&item, &mut errs);
        }
        let extended = spec.field("extendedResourceName");
        if !extended.is_absent() && !is_extended(text(&extended)) {
            errs.invalid(&extended, "must be a valid extended resource name");
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, class: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(vec![class.name().into(), table_cells::created(class, now)])
    }
}
