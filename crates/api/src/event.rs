//! Events: one kind in two groups. It is stored as core/v1 has it; events.k8s.io/v1 calls the same fields by other names.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_subdomain, or_prefix, path_segment, qualified_name};
use crate::validation::{Checks, int, same, text};

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

const MAX_NAME: usize = 128;
const MAX_NOTE: usize = 1024;

/// What every event must be like, old or new: it is what it was stored as that counts.
fn validate_any(event: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let root = Cursor::root(event);
    let (namespace, about) = (event.namespace(), root.fields(&["involvedObject", "namespace"]));
    let mismatch = "does not match event.namespace";
    if event["eventTime"].is_null() {
        let fits = match text(&about) {
            "" => matches!(namespace, "" | "default"),
            other => other == namespace,
        };
        if !fits {
            errs.invalid_text(&about, mismatch);
        }
    } else {
        if text(&about).is_empty() && !matches!(namespace, "default" | "kube-system") {
            errs.invalid_text(&about, mismatch);
        }
        let controller = Cursor::new(Path::new("reportingController"), &event["reportingComponent"]);
        errs.present(&controller, "");
        errs.each(&controller, qualified_name(text(&controller)));
        for (field, max, required) in [
            ("reportingInstance", MAX_NAME, true),
            ("action", MAX_NAME, true),
            ("reason", MAX_NAME, true),
            ("message", MAX_NOTE, false),
        ] {
            let at = root.field(field);
            if required {
                errs.present(&at, "");
            }
            if text(&at).len() > max {
                errs.invalid_value(&at.path, "", format!("can have at most {max} characters"));
            }
        }
    }
    for message in dns_subdomain(namespace) {
        errs.invalid_value(&Path::new("namespace"), namespace, message);
    }
    errs
}

fn validate_series(event: &Value, errs: &mut FieldErrors) {
    let series = &event["series"];
    if series.is_null() {
        return;
    }
    if int(&series["count"]) < 2 {
        errs.invalid_value(&Path::new("series.count"), "", "should be at least 2");
    }
    if series["lastObservedTime"].is_null() {
        errs.required(&Path::new("series.lastObservedTime"), "");
    }
}

/// What only events of events.k8s.io must be like, when they are new.
fn validate_new(event: &Value, errs: &mut FieldErrors) {
    validate_series(event, errs);
    let root = Cursor::root(event);
    errs.present(&root.field("eventTime"), "");
    let kind = event.str_at(&["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        errs.invalid_value(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let set = match field {
            "source" => event[field].entries().values().any(|v| !v.is_empty_value()),
            _ => !event[field].is_empty_value(),
        };
        if set {
            errs.invalid_value(&Path::new(field), "", "needs to be unset");
        }
    }
}

/// What stays of an event of events.k8s.io, by the names that upstream's messages use.
const STAYS: &[(&str, &str)] = &[
    ("involvedObject", "involvedObject"),
    ("reason", "reason"),
    ("message", "message"),
    ("source", "source"),
    ("firstTimestamp", "firstTimestamp"),
    ("lastTimestamp", "lastTimestamp"),
    ("count", "count"),
    ("reason", "reason"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

impl Strategy for CoreEventStrategy {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        if prefix { Vec::new() } else { path_segment(name) }
    }

    fn validate(&self, event: &Value) -> FieldErrors {
        validate_any(event)
    }

    fn allow_create_on_update(&self) -> bool {
        true
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
        or_prefix(dns_subdomain, name, prefix)
    }

    fn validate(&self, event: &Value) -> FieldErrors {
        let mut core = event.clone();
        self.to_storage(&mut core);
        let mut errs = validate_any(&core);
        validate_new(&core, &mut errs);
        errs
    }

    fn validate_update(&self, event: &Value, old: &Value) -> FieldErrors {
        let (mut core, mut was) = (event.clone(), old.clone());
        self.to_storage(&mut core);
        self.to_storage(&mut was);
        let mut errs = validate_any(&core);
        if !same(&core["series"], &was["series"]) {
            validate_series(&core, &mut errs);
        }
        for (field, shown) in STAYS {
            let new = Cursor::new(Path::new(shown), &core[*field]);
            if !same(new.value, &was[*field]) {
                match new.value {
                    Value::Object(_) => errs.invalid_struct(&new, "field is immutable"),
                    Value::Int(_) => errs.invalid_int(&new, "field is immutable"),
                    _ => errs.invalid_text(&new, "field is immutable"),
                }
            }
        }
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
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
        // Written always in core/v1, and here only when there is something.
        for field in ["reportingController", "reportingInstance"] {
            if event.str_at(&[field]).is_empty() {
                event.remove(&[field]);
            }
        }
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
