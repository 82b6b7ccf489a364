//! CSIStorageCapacity.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::validation::deprecated_labels::{in_expressions, in_map};
use crate::validation::labels::label_selector;
use crate::validation::names::dns_subdomain;
use crate::validation::resources::non_negative;
use crate::validation::{Checks, same, text};

pub(crate) struct CsiStorageCapacityStrategy;

impl Strategy for CsiStorageCapacityStrategy {
    fn validate(&self, capacity: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(capacity);
        let class = root.field("storageClassName");
        errs.each(&class, dns_subdomain(text(&class)));
        for field in ["capacity", "maximumVolumeSize"] {
            let amount = root.field(field);
            if !amount.is_absent() {
                non_negative(&mut errs, &amount);
            }
        }
        let topology = root.field("nodeTopology");
        if !topology.is_absent() {
            label_selector(&mut errs, &topology, true);
        }
        errs
    }

    fn validate_update(&self, capacity: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(capacity);
        let root = Cursor::root(capacity);
        for field in ["nodeTopology", "storageClassName"] {
            if !same(&root[field], &old[field]) {
                errs.invalid(&root.field(field), "field is immutable");
            }
        }
        errs
    }

    fn warnings(&self, capacity: &Value, _: Option<&Value>) -> Vec<String> {
        let topology = Cursor::root(capacity).field("nodeTopology");
        let mut warnings = in_expressions(&topology.field("matchExpressions"));
        warnings.extend(in_map(&topology.field("matchLabels"), true));
        warnings
    }

    fn row(&self, capacity: &Value, _: Now) -> Option<Vec<Cell>> {
        Some(vec![capacity.name().into(), capacity.meta("creationTimestamp").clone()])
    }
}
