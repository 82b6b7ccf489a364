//! ControllerRevision: a state of a set, kept for rolling back.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::{Checks, int, same};

pub(crate) struct ControllerRevisionStrategy;

impl Strategy for ControllerRevisionStrategy {
    fn validate(&self, revision: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(revision);
        if revision["data"].is_null() {
            errs.required(&root.path.child("data"), "data is mandatory");
        }
        errs.non_negative(&root.field("revision"));
        errs
    }

    fn validate_update(&self, revision: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(revision);
        let data = Cursor::root(revision).field("data");
        if !same(data.value, &old["data"]) {
            errs.invalid(&data, "field is immutable");
        }
        errs
    }

    fn row(&self, revision: &Value, now: Now) -> Option<Vec<Cell>> {
        let owner = revision
            .meta("ownerReferences")
            .items()
            .iter()
            .find(|o| o["controller"].as_bool() == Some(true))
            .map_or_else(|| "<none>".to_owned(), controller);
        let age = table_cells::created(revision, now);
        Some(vec![revision.name().into(), owner.into(), int(&revision["revision"]).into(), age])
    }
}

/// `statefulset.apps/web`.
fn controller(owner: &Value) -> String {
    let kind = owner.str_at(&["kind"]).to_lowercase();
    match owner.str_at(&["apiVersion"]).split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", owner.str_at(&["name"])),
        None => format!("{kind}/{}", owner.str_at(&["name"])),
    }
}
