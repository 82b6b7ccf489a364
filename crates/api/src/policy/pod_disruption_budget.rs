//! PodDisruptionBudget.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::labels::{label_selector, selector_is_valid};
use crate::validation::numbers::{at_most_all, non_negative_or_percent};
use crate::validation::{Checks, conditions, int};

pub(crate) struct PodDisruptionBudgetStrategy;

fn validate(budget: &Value, check_values: bool) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(budget).field("spec");
    let bounds = ["minAvailable", "maxUnavailable"].map(|field| spec.field(field));
    if bounds.iter().all(|b| !b.is_absent()) {
        errs.invalid_struct(&spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for bound in bounds.iter().filter(|b| !b.is_absent()) {
        non_negative_or_percent(&mut errs, bound);
        at_most_all(&mut errs, bound);
    }
    label_selector(&mut errs, &spec.field("selector"), check_values);
    let policy = spec.field("unhealthyPodEvictionPolicy");
    if !policy.is_absent() {
        errs.one_of(&policy, &["AlwaysAllow", "IfHealthyBudget"]);
    }
    errs
}

impl Strategy for PodDisruptionBudgetStrategy {
    fn prepare_for_create(&self, budget: &mut Value) {
        let counters = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
        budget.set(&["status"], Value::Object(counters.iter().map(|f| ((*f).into(), Value::from(0i64))).collect()));
    }

    fn validate(&self, budget: &Value) -> FieldErrors {
        validate(budget, true)
    }

    fn validate_update(&self, budget: &Value, old: &Value) -> FieldErrors {
        validate(budget, selector_is_valid(&Cursor::root(old).fields(&["spec", "selector"])))
    }

    fn validate_status_update(&self, budget: &Value, _: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let status = Cursor::root(budget).field("status");
        conditions::validate(&mut errs, &status.field("conditions"));
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            errs.non_negative(&status.field(field));
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, budget: &Value, now: Now) -> Option<Vec<Cell>> {
        let bound = |field: &str| match budget.at(&["spec", field]) {
            Value::Null => "N/A".to_owned(),
            Value::String(percent) => percent.to_string(),
            number => int(number).to_string(),
        };
        Some(vec![
            budget.name().into(),
            bound("minAvailable").into(),
            bound("maxUnavailable").into(),
            int(budget.at(&["status", "disruptionsAllowed"])).into(),
            table_cells::created(budget, now),
        ])
    }
}
