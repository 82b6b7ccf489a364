//! flowcontrol.apiserver.k8s.io.

pub(crate) mod flow_schema;
pub(crate) mod priority_level;

use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::{Checks, text};

/// Conditions have types, each once.
fn conditions(list: &Cursor<'_>, errs: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for condition in list.elements() {
        let kind = condition.field("type");
        if seen.contains(&text(&kind)) {
            errs.duplicate(&kind.path, text(&kind));
        }
        seen.push(text(&kind));
        errs.present(&kind, "must not be empty");
    }
}
