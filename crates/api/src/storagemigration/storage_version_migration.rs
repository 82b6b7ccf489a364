//! StorageVersionMigration.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::Strategy;
use crate::validation::conditions;
use crate::validation::{Checks, text};

pub(crate) struct StorageVersionMigrationStrategy;

impl Strategy for StorageVersionMigrationStrategy {
    fn validate(&self, migration: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let resource = Cursor::root(migration).fields(&["spec", "resource"]);
        let name = resource.field("resource");
        if text(&name).is_empty() {
            errs.required(&name.path, "resource is required");
        }
        errs
    }

    fn validate_update(&self, migration: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(migration);
        let resource = |value| Cursor::root(value).fields(&["spec", "resource"]);
        errs.immutable_struct(&resource(migration), &resource(old));
        errs
    }

    fn validate_status_update(&self, migration: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let (status, before) = (Cursor::root(migration).field("status"), Cursor::root(old).field("status"));
        conditions::validate(&mut errs, &status.field("conditions"));
        let has = |condition: &str| {
            let conditions = status.field("conditions");
            conditions.items().iter().any(|c| c.str_at(&["type"]) == condition && c.str_at(&["status"]) == "True")
        };
        if has("Succeeded") && has("Failed") {
            errs.invalid_bare(
                &status.field("conditions").path,
                "Both success and failed conditions cannot be true at the same time",
            );
        }
        let (version, known) = (status.field("resourceVersion"), before.field("resourceVersion"));
        if !text(&version).is_empty() && text(&version).parse::<u64>().is_err() {
            errs.invalid_text(&version, "resource version is not well formed");
        }
        if !text(&known).is_empty() && text(&known) != text(&version) {
            errs.invalid_text(&version, "field is immutable");
        }
        errs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_migrated_is_named_and_stays() {
        let nothing = json(r#"{"spec":{"resource":{}}}"#);
        let want = ["spec.resource.resource: Required value: resource is required"];
        assert_findings(&StorageVersionMigrationStrategy.validate(&nothing), &want);
        let (a, b) =
            (json(r#"{"spec":{"resource":{"resource":"a"}}}"#), json(r#"{"spec":{"resource":{"resource":"b"}}}"#));
        assert_findings(&StorageVersionMigrationStrategy.validate_update(&a, &a), &[]);
        assert_eq!(StorageVersionMigrationStrategy.validate_update(&a, &b).0.len(), 1);
    }

    #[test]
    fn it_cannot_both_succeed_and_fail_and_begins_once() {
        let condition = |kind: &str| {
            format!(
                r#"{{"type":"{kind}","status":"True","reason":"R","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}}"#
            )
        };
        let status = |version: &str, conditions: &str| {
            json(&format!(r#"{{"status":{{"resourceVersion":"{version}","conditions":[{conditions}]}}}}"#))
        };
        let check = |new: &Value, old: &Value, count| {
            assert_eq!(StorageVersionMigrationStrategy.validate_status_update(new, old).0.len(), count, "{new:?}");
        };
        let none = json("{}");
        check(&status("5", &condition("Succeeded")), &none, 0);
        check(&status("5", &format!("{},{}", condition("Succeeded"), condition("Failed"))), &none, 1);
        check(&status("x", ""), &none, 1);
        check(&status("6", ""), &status("5", ""), 1);
    }
}
