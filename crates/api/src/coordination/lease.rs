//! Lease.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::int;

pub(crate) struct LeaseStrategy;

/// Fields of a feature that is off: coordinated leader election.
const DROPPED: [&str; 2] = ["strategy", "preferredHolder"];

impl Strategy for LeaseStrategy {
    fn prepare_for_create(&self, lease: &mut Value) {
        for field in DROPPED {
            lease.remove(&["spec", field]);
        }
    }

    fn prepare_for_update(&self, lease: &mut Value, old: &Value) {
        for field in DROPPED.iter().filter(|field| old.at(&["spec", field]).is_null()) {
            lease.remove(&["spec", field]);
        }
    }

    fn validate(&self, lease: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(lease).field("spec");
        let (duration, transitions) = (spec.field("leaseDurationSeconds"), spec.field("leaseTransitions"));
        if !duration.is_absent() && int(duration.value) <= 0 {
            errs.invalid(&duration, "must be greater than 0");
        }
        if int(transitions.value) < 0 {
            errs.invalid(&transitions, "must be greater than or equal to 0");
        }
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn row(&self, lease: &Value, now: Now) -> Option<Vec<Cell>> {
        let holder = lease.str_at(&["spec", "holderIdentity"]);
        Some(vec![lease.name().into(), holder.into(), table_cells::created(lease, now)])
    }
}
