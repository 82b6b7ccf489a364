//! PodTemplate: a template that stands alone.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::core::pod::{Options, default_template, template_warnings, validate_template};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct PodTemplateStrategy;

impl Strategy for PodTemplateStrategy {
    fn default(&self, template: &mut Value) {
        default_template(template, &["template"]);
    }

    fn validate(&self, template: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        validate_template(&mut errs, &Cursor::root(template).field("template"), Options::strict(false));
        errs
    }

    fn validate_update(&self, template: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let options = Options::keeping(false, &old["template"]);
        validate_template(&mut errs, &Cursor::root(template).field("template"), options);
        errs
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(object, old, &["template"], false)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, template: &Value, old: &Value) -> bool {
        template["template"] != old["template"]
    }

    fn row(&self, template: &Value, _: Now) -> Option<Vec<Cell>> {
        let (names, images) = table_cells::containers(template.at(&["template", "spec"]));
        let labels = table_cells::labels(template.at(&["template", "metadata", "labels"]));
        Some(vec![template.name().into(), names.into(), images.into(), labels.into()])
    }
}
