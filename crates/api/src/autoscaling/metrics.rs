//! The metrics that an autoscaler looks at.

use apimachinery::field::{Cursor, FieldErrors};

use super::horizontal_pod_autoscaler::reference;
use crate::validation::names::{dns_label, path_segment};
use crate::validation::resources::{container_resource_name, quantity};
use crate::validation::{Checks, int, text};

const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];

/// Upstream's order, in which the first source that is given is looked at.
const SOURCES: &[(&str, &str)] = &[
    ("object", "Object"),
    ("external", "External"),
    ("pods", "Pods"),
    ("resource", "Resource"),
    ("containerResource", "ContainerResource"),
];

pub(super) fn validate(errs: &mut FieldErrors, list: &Cursor<'_>, to_zero: bool) {
    for metric in list.elements() {
        one(errs, &metric);
    }
    let outside = |t: &str| matches!(t, "Object" | "External");
    if to_zero && !list.value.items().iter().any(|m| outside(m.str_at(&["type"]))) {
        errs.forbidden(
            &list.path,
            "must specify at least one Object or External metric to support scaling to zero replicas",
        );
    }
}

fn one(errs: &mut FieldErrors, metric: &Cursor<'_>) {
    let kind = metric.field("type");
    errs.present(&kind, "must specify a metric source type");
    errs.one_of(&kind, TYPES);
    let given: Vec<Cursor<'_>> =
        SOURCES.iter().map(|(field, _)| metric.field(field)).filter(|s| !s.is_absent()).collect();
    let first = SOURCES.iter().find(|(field, _)| !metric.value[*field].is_null());
    if let Some((field, _)) = first {
        source(errs, &metric.field(field), field);
    }
    let expected = SOURCES.iter().find(|(_, k)| *k == text(&kind)).map(|(field, _)| metric.path.child(field));
    match (&expected, SOURCES.iter().find(|(_, k)| *k == text(&kind))) {
        (Some(path), Some((field, _))) if metric.value[*field].is_null() => {
            errs.required(path, "must populate information for the given metric source");
        }
        (None, _) => {
            errs.one_of(&kind, TYPES);
        }
        _ => {}
    }
    if given.len() != 1 {
        for other in given.iter().filter(|s| Some(&s.path) != expected.as_ref()) {
            errs.forbidden(&other.path, "must populate the given metric source only");
        }
    }
}

fn source(errs: &mut FieldErrors, source: &Cursor<'_>, kind: &str) {
    let aim = source.field("target");
    let has = |field: &str| !aim.value[field].is_null();
    match kind {
        "object" => {
            reference(errs, &source.field("describedObject"), true, false);
            identifier(errs, &source.field("metric"));
            target(errs, &aim);
            if !has("value") && !has("averageValue") {
                errs.required(&aim.path.child("averageValue"), "must set either a target value or averageValue");
            }
        }
        "external" => {
            identifier(errs, &source.field("metric"));
            target(errs, &aim);
            match (has("value"), has("averageValue")) {
                (false, false) => errs.required(
                    &aim.path.child("averageValue"),
                    "must set either a target value for metric or a per-pod target",
                ),
                (true, true) => errs.forbidden(
                    &aim.path.child("value"),
                    "may not set both a target value for metric and a per-pod target",
                ),
                _ => {}
            }
        }
        "pods" => {
            identifier(errs, &source.field("metric"));
            target(errs, &aim);
            if !has("averageValue") {
                errs.required(&aim.path.child("averageValue"), "must specify a positive target averageValue");
            }
        }
        _ => {
            let name = source.field("name");
            if errs.present(&name, "must specify a resource name") && kind == "containerResource" {
                container_resource_name(errs, &name, text(&name));
            }
            if kind == "containerResource" {
                let container = source.field("container");
                if errs.present(&container, "must specify a container") {
                    errs.each(&container, dns_label(text(&container)));
                }
            }
            target(errs, &aim);
            match (has("averageUtilization"), has("averageValue")) {
                (false, false) => errs.required(
                    &aim.path.child("averageUtilization"),
                    "must set either a target raw value or a target utilization",
                ),
                (true, true) => errs.forbidden(
                    &aim.path.child("averageValue"),
                    "may not set both a target raw value and a target utilization",
                ),
                _ => {}
            }
        }
    }
}

fn identifier(errs: &mut FieldErrors, metric: &Cursor<'_>) {
    let name = metric.field("name");
    if errs.present(&name, "must specify a metric name") {
        errs.each(&name, path_segment(text(&name)));
    }
}

fn target(errs: &mut FieldErrors, target: &Cursor<'_>) {
    let kind = target.field("type");
    errs.present(&kind, "must specify a metric target type");
    if !matches!(text(&kind), "Utilization" | "Value" | "AverageValue") {
        errs.invalid_text(&kind, "must be either Utilization, Value, or AverageValue");
    }
    for field in ["value", "averageValue"] {
        let at = target.field(field);
        let amount = quantity(&at);
        if !at.is_absent() && (amount.is_zero() || amount.is_negative()) {
            errs.invalid(&at, "must be positive");
        }
    }
    let utilization = target.field("averageUtilization");
    if !utilization.is_absent() && int(utilization.value) < 1 {
        errs.invalid(&utilization, "must be greater than 0");
    }
}
