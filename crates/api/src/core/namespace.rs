//! Namespace.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

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
