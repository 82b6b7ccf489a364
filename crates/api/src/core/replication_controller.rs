//! ReplicationController: what ReplicaSets came from.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::apps::rules::{self, int_cells};
use crate::core::pod::{Options, default_template, template_warnings, validate_template};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::Checks;

pub(crate) struct ReplicationControllerStrategy;

fn validate(controller: &Value, options: Options) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(controller).field("spec");
    errs.non_negative(&spec.field("minReadySeconds"));
    let selector = spec.field("selector");
    errs.present(&selector, "");
    errs.non_negative(&spec.field("replicas"));
    let template = spec.field("template");
    if template.is_absent() {
        errs.required(&template.path, "");
        return errs;
    }
    let labels = template.value.at(&["metadata", "labels"]);
    if selector.value.entries().iter().any(|(k, v)| labels.get(k) != Some(v)) {
        rules::does_not_match(&mut errs, &template);
    }
    validate_template(&mut errs, &template, options);
    rules::runs_always(&mut errs, &template, "ReplicationController");
    errs
}

impl Strategy for ReplicationControllerStrategy {
    fn default(&self, controller: &mut Value) {
        let labels = controller.at(&["spec", "template", "metadata", "labels"]).clone();
        if !labels.entries().is_empty() {
            if controller.at(&["spec", "selector"]).is_empty_value() {
                controller.set(&["spec", "selector"], labels.clone());
            }
            if controller.meta("labels").is_empty_value() {
                controller.set(&["metadata", "labels"], labels);
            }
        }
        controller.set_default(&["spec", "replicas"], 1i64);
        default_template(controller, &["spec", "template"]);
    }

    fn prepare_for_create(&self, controller: &mut Value) {
        controller.set(&["status"], Value::from([("replicas", 0i64.into())]));
    }

    fn validate(&self, controller: &Value) -> FieldErrors {
        validate(controller, Options::strict(false))
    }

    fn validate_update(&self, controller: &Value, old: &Value) -> FieldErrors {
        validate(controller, Options::keeping(false, old.at(&["spec", "template"])))
    }

    fn validate_status_update(&self, controller: &Value, _: &Value) -> FieldErrors {
        rules::replica_status(controller)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(object, old, &["spec", "template"], true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Once there were no owners: its pods stay unless the client says otherwise.
    fn orphans_dependents_by_default(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("status.replicas", &["status", "replicas"])]
    }

    fn row(&self, controller: &Value, now: Now) -> Option<Vec<Cell>> {
        let mut row: Vec<Cell> = vec![controller.name().into()];
        row.extend(int_cells(
            controller,
            &[&["spec", "replicas"], &["status", "replicas"], &["status", "readyReplicas"]],
        ));
        row.push(table_cells::created(controller, now));
        let (names, images) = table_cells::containers(controller.at(&["spec", "template", "spec"]));
        row.extend([names.into(), images.into(), table_cells::labels(controller.at(&["spec", "selector"])).into()]);
        Some(row)
    }
}
