//! Namespace.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::Checks;
use crate::validation::names::qualified_name;

const FINALIZER: &str = "kubernetes";

pub(crate) struct NamespaceStrategy;

impl Strategy for NamespaceStrategy {
    fn default(&self, namespace: &mut Value) {
        let name = namespace.name().to_owned();
        if !name.is_empty() {
            namespace.set(&["metadata", "labels", "kubernetes.io/metadata.name"], name);
        }
    }

    fn prepare_for_create(&self, namespace: &mut Value) {
        namespace.set(&["status"], Value::from([("phase", "Active".into())]));
        let finalizers = namespace.entry(&["spec", "finalizers"]).make_array();
        if !finalizers.iter().any(|f| f.as_str() == Some(FINALIZER)) {
            finalizers.push(FINALIZER.into());
        }
    }

    fn prepare_for_update(&self, namespace: &mut Value, old: &Value) {
        // The content controller's list is changed through `finalize` only.
        namespace.set(&["spec", "finalizers"], old.at(&["spec", "finalizers"]).clone());
        namespace.set(&["status"], old["status"].clone());
    }

    fn validate(&self, namespace: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let finalizers = Cursor::root(namespace).fields(&["spec", "finalizers"]);
        for finalizer in finalizers.elements() {
            let at = Cursor::new(finalizers.path.clone(), finalizer.value);
            let name = at.as_str().unwrap_or_default();
            errs.each(&at, qualified_name(name));
            if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
                errs.invalid(&at, "name is neither a standard finalizer name nor is it fully qualified");
            }
        }
        errs
    }

    fn validate_status_update(&self, namespace: &Value, _: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let phase = namespace.str_at(&["status", "phase"]);
        let path = Cursor::root(namespace).fields(&["status", "Phase"]).path;
        match (namespace.is_deleting(), phase) {
            (false, "Active") | (true, "Terminating") => {}
            (false, _) => errs.invalid_value(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty"),
            (true, _) => {
                errs.invalid_value(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
            }
        }
        errs
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::strategy::dns_label(name, prefix)
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("status.phase", &["status", "phase"])]
    }

    fn row(&self, namespace: &Value, now: Now) -> Option<Vec<Cell>> {
        let phase = namespace.str_at(&["status", "phase"]);
        Some(vec![namespace.name().into(), phase.into(), table_cells::created(namespace, now)])
    }
}
