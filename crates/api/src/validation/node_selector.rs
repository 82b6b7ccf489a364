//! Selectors of nodes, and the taints that keep pods from them.

use apimachinery::field::{Cursor, FieldErrors};

use super::labels::label_name;
use super::names::{dns_subdomain, label_value};
use super::{Checks, text};

/// A `NodeSelector`.
pub(crate) fn node_selector(errs: &mut FieldErrors, selector: &Cursor<'_>, check_values: bool) {
    let terms = selector.field("nodeSelectorTerms");
    if !errs.present(&terms, "must have at least one node selector term") {
        return;
    }
    for term in terms.elements() {
        node_selector_term(errs, &term, check_values);
    }
}

/// A `NodeSelectorTerm`.
pub(crate) fn node_selector_term(errs: &mut FieldErrors, term: &Cursor<'_>, check_values: bool) {
    for requirement in term.field("matchExpressions").elements() {
        by_label(errs, &requirement, check_values);
    }
    for requirement in term.field("matchFields").elements() {
        by_field(errs, &requirement);
    }
}

fn by_label(errs: &mut FieldErrors, requirement: &Cursor<'_>, check_values: bool) {
    let values = requirement.field("values");
    match requirement.str_at(&["operator"]) {
        "In" | "NotIn" => {
            errs.present(&values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" => {
            if !values.items().is_empty() {
                errs.forbidden(&values.path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
        }
        "Gt" | "Lt" => {
            if values.items().len() != 1 {
                errs.required(&values.path, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
        }
        _ => errs.invalid_text(&requirement.field("operator"), "not a valid selector operator"),
    }
    label_name(errs, &requirement.field("key"));
    if check_values {
        for value in values.elements() {
            errs.each(&value, label_value(text(&value)));
        }
    }
}

fn by_field(errs: &mut FieldErrors, requirement: &Cursor<'_>) {
    let (key, values) = (requirement.field("key"), requirement.field("values"));
    match requirement.str_at(&["operator"]) {
        "In" | "NotIn" => {
            if values.items().len() != 1 {
                errs.required(
                    &values.path,
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                );
            }
        }
        _ => errs.invalid_text(&requirement.field("operator"), "not a valid selector operator"),
    }
    if text(&key) == "metadata.name" {
        for value in values.elements() {
            errs.each(&value, dns_subdomain(text(&value)));
        }
    } else {
        errs.invalid_text(&key, "not a valid field selector key");
    }
}

/// The taints of a node.
pub(crate) fn taints(errs: &mut FieldErrors, taints: &Cursor<'_>) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for taint in taints.elements() {
        label_name(errs, &taint.field("key"));
        let value = taint.field("value");
        let wrong = label_value(text(&value));
        if !wrong.is_empty() {
            errs.invalid_text(&value, wrong.join(";"));
        }
        taint_effect(errs, &taint.field("effect"), false);
        let this = (taint.value.str_at(&["key"]), taint.value.str_at(&["effect"]));
        if seen.contains(&this) {
            errs.duplicate_struct(&taint, "taints must be unique by key and effect pair");
        } else {
            seen.push(this);
        }
    }
}

/// The effect of a taint, or of a toleration (where none means all).
pub(crate) fn taint_effect(errs: &mut FieldErrors, effect: &Cursor<'_>, allow_empty: bool) {
    match text(effect) {
        "" if allow_empty => {}
        "" => errs.required(&effect.path, ""),
        _ => {
            errs.one_of(effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    }
}
