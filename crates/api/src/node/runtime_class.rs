//! RuntimeClass.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::deprecated_labels::in_map;
use crate::validation::labels::{label_map, label_name};
use crate::validation::names::{dns_label, label_value};
use crate::validation::node_selector::taint_effect;
use crate::validation::resources::{amount_of, container_resource_name};
use crate::validation::{Checks, text};

pub(crate) struct RuntimeClassStrategy;

fn validate_toleration(toleration: &Cursor<'_>, errs: &mut FieldErrors) {
    let (key, value, effect) = (toleration.field("key"), toleration.field("value"), toleration.field("effect"));
    let operator = toleration.field("operator");
    if !text(&key).is_empty() {
        label_name(errs, &key);
    }
    if text(&key).is_empty() && text(&operator) != "Exists" {
        errs.invalid_text(
            &operator,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if !toleration["tolerationSeconds"].is_null() && text(&effect) != "NoExecute" {
        errs.invalid_text(&effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
    }
    match text(&operator) {
        "Equal" | "" => {
            let wrong = label_value(text(&value));
            if !wrong.is_empty() {
                errs.invalid_text(&operator, wrong.join(";"));
            }
        }
        "Exists" => {
            if !text(&value).is_empty() {
                errs.invalid_struct(&operator, "value must be empty when `operator` is 'Exists'");
            }
        }
        _ => {
            errs.one_of(&operator, &["Equal", "Exists"]);
        }
    }
    if !text(&effect).is_empty() {
        taint_effect(errs, &effect, true);
    }
}

impl Strategy for RuntimeClassStrategy {
    fn validate(&self, class: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(class);
        let handler = root.field("handler");
        errs.each(&handler, dns_label(text(&handler)));
        for (name, amount) in root.fields(&["overhead", "podFixed"]).map_entries() {
            container_resource_name(&mut errs, &amount, name);
            amount_of(&mut errs, &amount, name);
        }
        let scheduling = root.field("scheduling");
        label_map(&mut errs, &scheduling.field("nodeSelector"));
        let tolerations = scheduling.field("tolerations");
        for (i, toleration) in tolerations.elements().enumerate() {
            validate_toleration(&toleration, &mut errs);
            if tolerations.items()[..i].contains(toleration.value) {
                errs.duplicate_struct(&toleration, "");
            }
        }
        errs
    }

    fn validate_update(&self, class: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        errs.immutable(&Cursor::root(class).field("handler"), &Cursor::root(old).field("handler"));
        errs
    }

    fn warnings(&self, class: &Value, _: Option<&Value>) -> Vec<String> {
        in_map(&Cursor::root(class).fields(&["scheduling", "nodeSelector"]), false)
    }

    fn row(&self, class: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(vec![class.name().into(), class.str_at(&["handler"]).into(), table_cells::created(class, now)])
    }
}
