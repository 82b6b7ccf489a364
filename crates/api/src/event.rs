//! Events: one kind in two groups. It is stored as core/v1 has it; events.k8s.io/v1 calls the same fields by other names.

use apimachinery::Value;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;

pub(crate) struct CoreEventStrategy;
pub(crate) struct EventStrategy;

/// Each field's name in core/v1 and in events.k8s.io/v1.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(event: &mut Value, from: &str, to: &str) {
    if let Some(value) = event.remove(&[from]) {
        event.set(&[to], value);
    }
}

impl Strategy for CoreEventStrategy {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::strategy::dns_subdomain(name, prefix)
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[
            ("involvedObject.kind", &["involvedObject", "kind"]),
            ("involvedObject.namespace", &["involvedObject", "namespace"]),
            ("involvedObject.name", &["involvedObject", "name"]),
            ("involvedObject.uid", &["involvedObject", "uid"]),
            ("involvedObject.apiVersion", &["involvedObject", "apiVersion"]),
            ("involvedObject.resourceVersion", &["involvedObject", "resourceVersion"]),
            ("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
            ("reason", &["reason"]),
            ("reportingComponent", &["reportingComponent"]),
            ("source", &["source", "component"]),
            ("type", &["type"]),
        ]
    }

    fn row(&self, event: &Value, now: Now) -> Option<Vec<Cell>> {
        Some(row(event, now))
    }
}

impl Strategy for EventStrategy {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::strategy::dns_subdomain(name, prefix)
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[
            ("regarding.kind", &["regarding", "kind"]),
            ("regarding.namespace", &["regarding", "namespace"]),
            ("regarding.name", &["regarding", "name"]),
            ("regarding.uid", &["regarding", "uid"]),
            ("regarding.apiVersion", &["regarding", "apiVersion"]),
            ("regarding.resourceVersion", &["regarding", "resourceVersion"]),
            ("regarding.fieldPath", &["regarding", "fieldPath"]),
            ("reason", &["reason"]),
            ("reportingController", &["reportingController"]),
            ("type", &["type"]),
        ]
    }

    fn to_storage(&self, event: &mut Value) {
        NAMES.iter().for_each(|(core, own)| rename(event, own, core));
    }

    fn to_served(&self, event: &mut Value) {
        NAMES.iter().for_each(|(core, own)| rename(event, core, own));
    }

    fn row(&self, event: &Value, now: Now) -> Option<Vec<Cell>> {
        let mut core = event.clone();
        self.to_storage(&mut core);
        Some(row(&core, now))
    }
}

/// The row of an event as core/v1 has it.
fn row(event: &Value, now: Now) -> Vec<Cell> {
    let first_of =
        |fields: &[&[&str]]| fields.iter().map(|f| event.at(f)).find(|v| !v.is_null()).cloned().unwrap_or_default();
    let last = first_of(&[&["series", "lastObservedTime"], &["lastTimestamp"], &["eventTime"], &["firstTimestamp"]]);
    let first = first_of(&[&["firstTimestamp"], &["eventTime"]]);
    let object = &event["involvedObject"];
    let regarding = format!("{}/{}", object.str_at(&["kind"]).to_lowercase(), object.str_at(&["name"]));
    let source = match (event.str_at(&["source", "component"]), event.str_at(&["source", "host"])) {
        ("", _) => event.str_at(&["reportingComponent"]).to_owned(),
        (component, "") => component.to_owned(),
        (component, host) => format!("{component}, {host}"),
    };
    let count = event["series"]["count"].as_i64().or_else(|| event["count"].as_i64()).unwrap_or(1).max(1);
    vec![
        table_cells::age(&last, now),
        event.str_at(&["type"]).into(),
        event.str_at(&["reason"]).into(),
        regarding.into(),
        object.str_at(&["fieldPath"]).into(),
        source.into(),
        event.str_at(&["message"]).trim().into(),
        table_cells::age(&first, now),
        count.to_string().into(),
        event.name().into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_the_same_in_both_groups() {
        let own = r#"{"metadata":{"name":"a"},"regarding":{"kind":"Pod","name":"p"},"note":"n","reason":"R","type":"Normal",
            "reportingController":"c","deprecatedCount":2,"series":{"count":3,"lastObservedTime":null}}"#;
        let own: Value = serde_json::from_str(own).unwrap();
        let mut event = own.clone();
        EventStrategy.to_storage(&mut event);
        assert_eq!(event.str_at(&["involvedObject", "name"]), "p");
        assert_eq!(event.str_at(&["message"]), "n");
        assert_eq!(event.str_at(&["reportingComponent"]), "c");
        assert_eq!(event["count"].as_i64(), Some(2));
        let now = Now(0);
        assert_eq!(EventStrategy.row(&own, now).map(|r| r.len()), CoreEventStrategy.row(&event, now).map(|r| r.len()));
        EventStrategy.to_served(&mut event);
        assert_eq!(event, own);
    }
}
