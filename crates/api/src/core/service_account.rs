//! ServiceAccount.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct ServiceAccountStrategy;

const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Of a reference to a secret, only its name counts.
fn keep_names(account: &mut Value) {
    if let Some(secrets) = account.get_mut("secrets") {
        for secret in secrets.items_mut() {
            secret.make_object().retain(|field, _| field == "name");
        }
    }
}

impl Strategy for ServiceAccountStrategy {
    fn prepare_for_create(&self, account: &mut Value) {
        keep_names(account);
    }

    fn prepare_for_update(&self, account: &mut Value, _: &Value) {
        keep_names(account);
    }

    fn warnings(&self, account: &Value, old: Option<&Value>) -> Vec<String> {
        let marked = |v: &Value| v.annotation(MOUNTABLE).is_some();
        if !marked(account) || old.is_some_and(marked) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted \
             secrets"
        )]
    }

    fn row(&self, account: &Value, now: Now) -> Option<Vec<Cell>> {
        let secrets = i64::try_from(account["secrets"].items().len()).unwrap_or_default();
        Some(vec![account.name().into(), secrets.into(), table_cells::created(account, now)])
    }
}
