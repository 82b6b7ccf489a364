//! StorageClass.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::parameters;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::deprecated_labels::in_expressions;
use crate::validation::labels::label_name;
use crate::validation::names::qualified_name;
use crate::validation::{Checks, same, text};

pub(crate) struct StorageClassStrategy;

const DEFAULT_CLASS: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

fn validate_term(term: &Cursor<'_>, errs: &mut FieldErrors) {
    let mut keys: Vec<&str> = Vec::new();
    for expression in term.field("matchLabelExpressions").elements() {
        let (key, values) = (expression.field("key"), expression.field("values"));
        errs.present(&values, "");
        for (i, value) in values.elements().enumerate() {
            if values.items()[..i].contains(value.value) {
                errs.duplicate(&value.path, value.value.clone());
            }
        }
        label_name(errs, &key);
        if keys.contains(&text(&key)) {
            errs.duplicate(&key.path, text(&key));
        }
        keys.push(text(&key));
    }
}

impl Strategy for StorageClassStrategy {
    fn default(&self, class: &mut Value) {
        class.set_default(&["reclaimPolicy"], "Delete");
        class.set_default(&["volumeBindingMode"], "Immediate");
    }

    fn validate(&self, class: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(class);
        let provisioner = root.field("provisioner");
        if errs.present(&provisioner, "") {
            errs.each(&provisioner, qualified_name(&text(&provisioner).to_lowercase()));
        }
        parameters(&root.field("parameters"), &mut errs);
        let policy = root.field("reclaimPolicy");
        if !text(&policy).is_empty() {
            errs.one_of(&policy, &["Delete", "Retain"]);
        }
        errs.one_of(&root.field("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
        let topologies = root.field("allowedTopologies");
        for (i, term) in topologies.elements().enumerate() {
            validate_term(&term, &mut errs);
            if topologies.items()[..i].contains(term.value) {
                errs.duplicate(&term.path.child("matchLabelExpressions"), "");
            }
        }
        errs
    }

    fn validate_update(&self, class: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let (new, was) = (Cursor::root(class), Cursor::root(old));
        for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if !same(&new[field], &was[field]) {
                errs.invalid(&new.field(field), "field is immutable");
            }
        }
        errs
    }

    fn warnings(&self, class: &Value, _: Option<&Value>) -> Vec<String> {
        let terms = Cursor::root(class).field("allowedTopologies");
        terms.elements().flat_map(|t| in_expressions(&t.field("matchLabelExpressions"))).collect()
    }

    fn row(&self, class: &Value, now: Now) -> Option<Vec<Cell>> {
        let mut name = class.name().to_owned();
        if DEFAULT_CLASS.iter().any(|a| class.annotation(a) == Some("true")) {
            name.push_str(" (default)");
        }
        let expands = class["allowVolumeExpansion"].as_bool() == Some(true);
        Some(vec![
            name.into(),
            class.str_at(&["provisioner"]).into(),
            class["reclaimPolicy"].as_str().unwrap_or("Delete").into(),
            class["volumeBindingMode"].as_str().unwrap_or("Immediate").into(),
            expands.into(),
            table_cells::created(class, now),
        ])
    }
}
