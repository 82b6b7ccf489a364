//! Defaults of custom resources.

use apimachinery::Value;

use super::schema::flag;

/// Fills in the schema's defaults. A null where none is allowed counts as nothing.
pub(super) fn fill(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            let values = &schema["additionalProperties"];
            let properties = schema["properties"].entries();
            map.retain(|key, value| {
                let known = properties.get(key).or_else(|| values.as_object().map(|_| values));
                !value.is_null() || known.is_none_or(|s| flag(s, "nullable") || s.str_at(&["type"]).is_empty())
            });
            for (key, property) in properties {
                if let Some(default) = property.get("default")
                    && !map.contains_key(key)
                {
                    map.insert(key.clone(), default.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(property) = properties.get(key) {
                    fill(value, property);
                } else if values.as_object().is_some() {
                    fill(value, values);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                fill(item, &schema["items"]);
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "a whole number within the range")]
        Value::Float(f) if schema.str_at(&["type"]) == "integer" && f.fract() == 0.0 && f.abs() < 9e18 => {
            *value = Value::Int(*f as i64);
        }
        _ => {}
    }
}
