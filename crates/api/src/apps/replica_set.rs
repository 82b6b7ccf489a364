//! ReplicaSet.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::rules::{self, int_cells, template_cells};
use crate::core::pod::{Options, default_template, template_warnings};
use crate::go_json::immutable_selector;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::Checks;

pub(crate) struct ReplicaSetStrategy;

fn validate(set: &Value, options: Options) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(set).field("spec");
    errs.non_negative(&spec.field("replicas"));
    errs.non_negative(&spec.field("minReadySeconds"));
    rules::selector(&mut errs, &spec, "deployment");
    rules::replicated_template(&mut errs, &spec, options);
    errs
}

impl Strategy for ReplicaSetStrategy {
    fn default(&self, set: &mut Value) {
        set.set_default(&["spec", "replicas"], 1i64);
        default_template(set, &["spec", "template"]);
    }

    fn prepare_for_create(&self, set: &mut Value) {
        set.set(&["status"], Value::from([("replicas", 0i64.into())]));
    }

    fn validate(&self, set: &Value) -> FieldErrors {
        validate(set, Options::strict(false))
    }

    fn validate_update(&self, set: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate(set, Options::keeping(false, old.at(&["spec", "template"])));
        let selector = |o| Cursor::root(o).fields(&["spec", "selector"]);
        immutable_selector(&mut errs, &selector(set), &selector(old));
        errs
    }

    fn validate_status_update(&self, set: &Value, _: &Value) -> FieldErrors {
        rules::replica_status(set)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(object, old, &["spec", "template"], true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("status.replicas", &["status", "replicas"])]
    }

    fn row(&self, set: &Value, now: Now) -> Option<Vec<Cell>> {
        let mut row: Vec<Cell> = vec![set.name().into()];
        row.extend(int_cells(set, &[&["spec", "replicas"], &["status", "replicas"], &["status", "readyReplicas"]]));
        row.push(table_cells::created(set, now));
        row.extend(template_cells(set));
        Some(row)
    }
}
