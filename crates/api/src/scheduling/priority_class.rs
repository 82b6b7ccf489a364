//! PriorityClass.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::{Checks, int};

pub(crate) struct PriorityClassStrategy;

const HIGHEST: i64 = 1_000_000_000;
/// What the system itself needs; nobody else may be as important.
const SYSTEM: &[(&str, i64)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Why a class with a name of the system is none of the system's.
fn no_system_class(name: &str, class: &Value) -> Option<String> {
    let Some((_, value)) = SYSTEM.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if int(&class["value"]) != *value {
        return Some(format!("value of {name} PriorityClass must be {value}"));
    }
    (class["globalDefault"].as_bool() == Some(true))
        .then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

impl Strategy for PriorityClassStrategy {
    fn default(&self, class: &mut Value) {
        class.set_default(&["preemptionPolicy"], "PreemptLowerPriority");
    }

    fn validate(&self, class: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(class);
        if class.name().starts_with("system-") {
            if let Some(why) = no_system_class(class.name(), class) {
                errs.forbidden(
                    &root.fields(&["metadata", "name"]).path,
                    format!(
                        "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                    ),
                );
            }
        } else if int(&class["value"]) > HIGHEST {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errs.forbidden(&root.path.child("value"), why);
        }
        let policy = root.field("preemptionPolicy");
        if !policy.is_absent() && errs.present(&policy, "") {
            errs.one_of(&policy, &["PreemptLowerPriority", "Never"]);
        }
        errs
    }

    fn validate_update(&self, class: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let (root, before) = (Cursor::root(class), Cursor::root(old));
        if int(&class["value"]) != int(&old["value"]) {
            errs.forbidden(&root.path.child("value"), "may not be changed in an update.");
        }
        errs.immutable(&root.field("preemptionPolicy"), &before.field("preemptionPolicy"));
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn row(&self, class: &Value, now: Now) -> Option<Vec<Cell>> {
        let policy = class.str_at(&["preemptionPolicy"]);
        Some(vec![
            class.name().into(),
            int(&class["value"]).into(),
            class["globalDefault"].as_bool().unwrap_or_default().into(),
            table_cells::created(class, now),
            if policy.is_empty() { "PreemptLowerPriority" } else { policy }.into(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(class: &str, want: &[&str]) {
        assert_findings(&PriorityClassStrategy.validate(&serde_json::from_str(class).unwrap()), want);
    }

    #[test]
    fn the_systems_names_are_its_own() {
        check(r#"{"metadata":{"name":"system-node-critical"},"value":2000001000}"#, &[]);
        check(
            r#"{"metadata":{"name":"system-x"},"value":1}"#,
            &[
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. \
               error: system-x is not a known system priority class",
            ],
        );
        check(
            r#"{"metadata":{"name":"x"},"value":1000000001}"#,
            &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
        );
    }
}
