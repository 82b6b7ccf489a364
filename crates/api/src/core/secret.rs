//! Secret, ConfigMap and ServiceAccount.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct SecretStrategy;

pub(crate) struct ConfigMapStrategy;

pub(crate) struct ServiceAccountStrategy;

fn count(value: &Value) -> i64 {
    i64::try_from(value.entries().len()).unwrap_or_default()
}

impl Strategy for SecretStrategy {
    fn default(&self, secret: &mut Value) {
        secret.set_default(&["type"], "Opaque");
    }

    fn canonicalize(&self, secret: &mut Value) {
        // Plain text that the client gave becomes data, and wins over it.
        if let Some(Value::Object(texts)) = secret.remove(&["stringData"]) {
            for (key, text) in texts {
                let encoded = base64::Engine::encode(
                    &base64::engine::general_purpose::STANDARD,
                    text.as_str().unwrap_or_default().as_bytes(),
                );
                secret.set(&["data", &key], encoded);
            }
        }
    }

    fn validate_update(&self, secret: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(secret);
        let (new, was) = (Cursor::root(secret), Cursor::root(old));
        errs.immutable(&new.field("type"), &was.field("type"));
        frozen(&new, old, &["data"], &mut errs);
        errs
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("type", &["type"])]
    }

    fn row(&self, secret: &Value, now: Now) -> Option<Vec<Cell>> {
        let kind = secret.str_at(&["type"]);
        Some(vec![secret.name().into(), kind.into(), count(&secret["data"]).into(), table_cells::created(secret, now)])
    }
}

impl Strategy for ConfigMapStrategy {
    fn validate_update(&self, map: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(map);
        frozen(&Cursor::root(map), old, &["data", "binaryData"], &mut errs);
        errs
    }

    fn row(&self, map: &Value, now: Now) -> Option<Vec<Cell>> {
        let entries = count(&map["data"]) + count(&map["binaryData"]);
        Some(vec![map.name().into(), entries.into(), table_cells::created(map, now)])
    }
}

/// What was declared immutable stays, and stays immutable.
fn frozen(new: &Cursor<'_>, old: &Value, fields: &[&str], errs: &mut FieldErrors) {
    if old["immutable"].as_bool() != Some(true) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"].as_bool() != Some(true) {
        errs.forbidden(&new.path.child("immutable"), why);
    }
    for field in fields {
        if new[field] != old[*field] {
            errs.forbidden(&new.path.child(field), why);
        }
    }
}

impl Strategy for ServiceAccountStrategy {
    fn row(&self, account: &Value, now: Now) -> Option<Vec<Cell>> {
        let secrets = i64::try_from(account["secrets"].items().len()).unwrap_or_default();
        Some(vec![account.name().into(), secrets.into(), table_cells::created(account, now)])
    }
}
