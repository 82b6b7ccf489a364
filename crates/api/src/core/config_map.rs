//! ConfigMap.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::secret::{decoded_len, entries, frozen};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::config_key;

pub(crate) struct ConfigMapStrategy;

/// All values of a ConfigMap or of a Secret together, in bytes.
pub(super) const MAX_DATA: usize = 1 << 20;

impl Strategy for ConfigMapStrategy {
    fn validate(&self, map: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(map);
        let mut total = 0;
        for field in ["data", "binaryData"] {
            for (key, value) in root.field(field).map_entries() {
                for message in config_key(key) {
                    errs.invalid_value(&value.path, key, message);
                }
                if field == "data" && map["binaryData"].get(key).is_some() {
                    errs.invalid_value(&value.path, key, "duplicate of key present in binaryData");
                }
                let text = value.as_str().unwrap_or_default();
                total += if field == "data" { text.len() } else { decoded_len(text) };
            }
        }
        if total > MAX_DATA {
            // That is how upstream's path without a name reads.
            errs.too_long(&Path::new("[]"), MAX_DATA);
        }
        errs
    }

    fn validate_update(&self, map: &Value, old: &Value) -> FieldErrors {
        let mut errs = frozen(&Cursor::root(map), old, &["data", "binaryData"]);
        errs.extend(self.validate(map));
        errs
    }

    fn row(&self, map: &Value, now: Now) -> Option<Vec<Cell>> {
        let count = entries(&map["data"]) + entries(&map["binaryData"]);
        Some(vec![map.name().into(), count.into(), table_cells::created(map, now)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn keys_are_checked_and_unique() {
        let map = serde_json::from_str(r#"{"data":{"a":"","b/c":""},"binaryData":{"a":""}}"#).unwrap();
        let errs = ConfigMapStrategy.validate(&map);
        assert_eq!(errs.0.len(), 2);
        assert_findings(
            &FieldErrors(errs.0[..1].to_vec()),
            &[r#"data[a]: Invalid value: "a": duplicate of key present in binaryData"#],
        );
    }
}
