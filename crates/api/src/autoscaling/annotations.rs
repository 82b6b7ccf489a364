//! What v1 has no fields for and keeps in annotations: JSON with the fields in the order of Go's structs.

use apimachinery::Value;

use crate::go_json::Struct;

pub(super) const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
pub(super) const STATUSES: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
pub(super) const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
pub(super) const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
pub(super) const ALL: [&str; 4] = [METRICS, STATUSES, CONDITIONS, BEHAVIOR];

/// A reference, with its fields in Go's order.
pub(super) fn reference(at: &Value) -> Struct {
    let reference = Struct::default().always("kind", &at["kind"]).always("name", &at["name"]);
    if at.str_at(&["apiVersion"]).is_empty() { reference } else { reference.always("apiVersion", &at["apiVersion"]) }
}

/// The scaling rules, which are written as upstream's internal structs: with capitals, and nothing left out.
pub(super) fn behavior(at: &Value) -> String {
    let rules = |at: &Value| -> Option<Struct> {
        if at.is_null() {
            return None;
        }
        let policies: Vec<String> = at["policies"]
            .items()
            .iter()
            .map(|p| {
                let policy = Struct::default().always("Type", &p["type"]).always("Value", &p["value"]);
                policy.always("PeriodSeconds", &p["periodSeconds"]).finish()
            })
            .collect();
        let window = &at["stabilizationWindowSeconds"];
        let whole = Struct::default().always("StabilizationWindowSeconds", window);
        let whole = whole.always("SelectPolicy", &at["selectPolicy"]).list("Policies", &policies);
        Some(whole.always("Tolerance", &at["tolerance"]))
    };
    let mut whole = Struct::default();
    for (name, field) in [("ScaleUp", "scaleUp"), ("ScaleDown", "scaleDown")] {
        whole = match rules(&at[field]) {
            Some(rules) => whole.nested(name, Some(rules)),
            None => whole.always(name, &Value::Null),
        };
    }
    whole.finish()
}

/// Reads [`behavior`] back.
pub(super) fn parse_behavior(text: &str) -> Option<Value> {
    fn lower(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut out = Value::object();
                for (key, field) in map.iter().filter(|(_, v)| !v.is_null()) {
                    let mut chars = key.chars();
                    let first = chars.next().map(|c| c.to_ascii_lowercase());
                    let name: String = first.into_iter().chain(chars).collect();
                    out.make_object().insert(name, lower(field));
                }
                out
            }
            Value::Array(items) => items.iter().map(lower).collect::<Vec<_>>().into(),
            other => other.clone(),
        }
    }
    serde_json::from_str::<Value>(text).ok().filter(|v| matches!(v, Value::Object(_))).map(|v| lower(&v))
}
