//! Small kinds with a few defaults only.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct PriorityClassStrategy;
pub(crate) struct LeaseStrategy;

impl Strategy for PriorityClassStrategy {
    fn default(&self, class: &mut Value) {
        class.set_default(&["preemptionPolicy"], "PreemptLowerPriority");
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, _: &Value, _: &Value) -> bool {
        false
    }
}

impl Strategy for LeaseStrategy {
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
