//! Where a pod may run: affinities, tolerations, spread, gates.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::Options;
use crate::validation::labels::{label_name, label_selector};
use crate::validation::names::{dns_label, label_value};
use crate::validation::node_selector::{node_selector, node_selector_term, taint_effect};
use crate::validation::numbers::positive;
use crate::validation::{Checks, int, text};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn affinity(errs: &mut FieldErrors, affinity: &Cursor<'_>, options: Options) {
    node_affinity(errs, affinity, options);
    pod_affinities(errs, affinity, options);
}

pub(super) fn node_affinity(errs: &mut FieldErrors, affinity: &Cursor<'_>, options: Options) {
    let nodes = affinity.field("nodeAffinity");
    let required = nodes.field(REQUIRED);
    if !required.is_absent() {
        node_selector(errs, &required, !options.any_node_values);
    }
    for term in nodes.field(PREFERRED).elements() {
        weight(errs, &term);
        // A preference that cannot be met is harmless, whatever its values are.
        node_selector_term(errs, &term.field("preference"), false);
    }
}

fn weight(errs: &mut FieldErrors, term: &Cursor<'_>) {
    let weight = term.field("weight");
    if !(1..=100).contains(&int(weight.value)) {
        errs.invalid_int(&weight, "must be in the range 1-100");
    }
}

pub(super) fn pod_affinities(errs: &mut FieldErrors, affinity: &Cursor<'_>, options: Options) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.field(kind);
        for term in pods.field(REQUIRED).elements() {
            pod_term(errs, &term, options);
        }
        for weighted in pods.field(PREFERRED).elements() {
            weight(errs, &weighted);
            pod_term(errs, &weighted.field("podAffinityTerm"), options);
        }
    }
}

/// Every term of the affinities between pods.
pub(super) fn pod_terms<'a>(affinity: &Cursor<'a>) -> Vec<Cursor<'a>> {
    let mut all = Vec::new();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.field(kind);
        all.extend(pods.field(REQUIRED).elements());
        all.extend(pods.field(PREFERRED).elements().map(|weighted| weighted.field("podAffinityTerm")));
    }
    all
}

fn pod_term(errs: &mut FieldErrors, term: &Cursor<'_>, options: Options) {
    for selector in ["labelSelector", "namespaceSelector"] {
        label_selector(errs, &term.field(selector), !options.any_selector_values);
    }
    for namespace in term.value["namespaces"].items() {
        // Upstream names neither the field's plural nor the element.
        let at = Cursor::new(term.path.child("namespace"), namespace);
        errs.each(&at, dns_label(text(&at)));
    }
    label_keys(errs, term);
    let key = term.field("topologyKey");
    errs.present(&key, "can not be empty");
    label_name(errs, &key);
}

/// `matchLabelKeys` and `mismatchLabelKeys`, which the server has merged into the selector already.
fn label_keys(errs: &mut FieldErrors, term: &Cursor<'_>) {
    let selector = &term.value["labelSelector"];
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.field(field);
        if keys.is_empty_value() {
            continue;
        }
        if selector.is_null() {
            errs.forbidden(&keys.path, "must not be specified when labelSelector is not set");
            continue;
        }
        for key in keys.elements() {
            label_name(errs, &key);
        }
    }
    let matched: Vec<&str> = strings(&term.value["matchLabelKeys"]);
    let mut seen: Vec<&str> =
        selector["matchLabels"].entries().keys().map(compact_str::CompactString::as_str).collect();
    for expression in selector["matchExpressions"].items() {
        let key = expression.str_at(&["key"]);
        if let Some(i) = matched.iter().rposition(|k| *k == key)
            && seen.contains(&key)
        {
            errs.invalid_value(&term.path.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        seen.push(key);
    }
    let mismatched = strings(&term.value["mismatchLabelKeys"]);
    for (i, key) in matched.iter().enumerate().filter(|(_, k)| mismatched.contains(k)) {
        let at = term.path.child("matchLabelKeys").index(i);
        errs.invalid_value(&at, *key, "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

fn strings(list: &Value) -> Vec<&str> {
    list.items().iter().filter_map(Value::as_str).collect()
}

pub(super) fn spread(errs: &mut FieldErrors, list: &Cursor<'_>, options: Options) {
    let all: Vec<Cursor<'_>> = list.elements().collect();
    for (i, constraint) in all.iter().enumerate() {
        positive(errs, &constraint.field("maxSkew"));
        let (topology, action) = (constraint.field("topologyKey"), constraint.field("whenUnsatisfiable"));
        errs.present(&topology, "can not be empty");
        errs.one_of(&action, &["DoNotSchedule", "ScheduleAnyway"]);
        let is_same = |other: &Cursor<'_>| {
            ["topologyKey", "whenUnsatisfiable"]
                .iter()
                .all(|f| other.value.str_at(&[f]) == constraint.value.str_at(&[f]))
        };
        if all[i + 1..].iter().any(is_same) {
            let shown = format!("{{{}, {}}}", text(&topology), text(&action));
            errs.duplicate(&constraint.path.child("{topologyKey, whenUnsatisfiable}"), shown);
        }
        let domains = constraint.field("minDomains");
        if !domains.is_absent() {
            positive(errs, &domains);
            if text(&action) != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", text(&action));
                errs.invalid(&domains, why);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = constraint.field(policy);
            if !policy.is_absent() {
                errs.one_of(&policy, &["Honor", "Ignore"]);
            }
        }
        if options.legacy_match_label_keys {
            legacy_label_keys(errs, constraint);
        } else {
            label_keys(errs, constraint);
        }
        if !options.any_spread_selectors {
            label_selector(errs, &constraint.field("labelSelector"), true);
        }
    }
}

/// Only what `matchLabelKeys` may be, for objects that were made before they were merged into selectors.
pub(super) fn match_label_keys_of_spread(errs: &mut FieldErrors, list: &Cursor<'_>) {
    for constraint in list.elements() {
        label_keys(errs, &constraint);
    }
}

fn legacy_label_keys(errs: &mut FieldErrors, constraint: &Cursor<'_>) {
    let keys = constraint.field("matchLabelKeys");
    if keys.is_empty_value() {
        return;
    }
    let selector = &constraint.value["labelSelector"];
    if selector.is_null() {
        errs.forbidden(&keys.path, "must not be specified when labelSelector is not set");
    }
    for key in keys.elements() {
        label_name(errs, &key);
        let in_selector = selector["matchLabels"].get(text(&key)).is_some()
            || selector["matchExpressions"].items().iter().any(|e| e.str_at(&["key"]) == text(&key));
        if in_selector {
            errs.invalid(&key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

pub(super) fn tolerations(errs: &mut FieldErrors, list: &Cursor<'_>) {
    for toleration in list.elements() {
        let (key, operator) = (toleration.field("key"), toleration.field("operator"));
        let (value, effect) = (toleration.field("value"), toleration.field("effect"));
        if !text(&key).is_empty() {
            label_name(errs, &key);
        } else if text(&operator) != "Exists" {
            errs.invalid_text(
                &operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if !toleration.value["tolerationSeconds"].is_null() && text(&effect) != "NoExecute" {
            errs.invalid_text(&effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match text(&operator) {
            "" | "Equal" => {
                let wrong = label_value(text(&value));
                if !wrong.is_empty() {
                    errs.invalid_value(&operator.path, text(&value), wrong.join(";"));
                }
            }
            "Exists" if !text(&value).is_empty() => {
                errs.invalid_value(&operator.path, text(&value), "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Lt" | "Gt" => errs.not_supported(&operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => errs.not_supported(&operator, &["Equal", "Exists"]),
        }
        if !text(&effect).is_empty() {
            taint_effect(errs, &effect, true);
        }
    }
}

/// What must happen before the scheduler looks at the pod.
pub(super) fn gates(errs: &mut FieldErrors, list: &Cursor<'_>) {
    let mut seen: Vec<&str> = Vec::new();
    for gate in list.elements() {
        let name = gate.value.str_at(&["name"]);
        label_name(errs, &Cursor::new(gate.path.clone(), &name.into()));
        if seen.contains(&name) {
            errs.duplicate(&gate.path, name);
        }
        seen.push(name);
    }
}

/// Merges `matchLabelKeys` and `mismatchLabelKeys` into selectors, with the values that the pod's own labels have.
pub(super) fn merge_label_keys(pod: &mut Value) {
    let labels = pod.at(&["metadata", "labels"]).clone();
    let merge = |term: &mut Value| {
        if term["labelSelector"].is_null() {
            return;
        }
        for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            let keys: Vec<String> = strings(&term[field]).into_iter().map(str::to_owned).collect();
            for key in keys {
                let Some(value) = labels[key.as_str()].as_str() else { continue };
                let expression = Value::from([
                    ("key", key.as_str().into()),
                    ("operator", operator.into()),
                    ("values", vec![Value::from(value)].into()),
                ]);
                term.entry(&["labelSelector", "matchExpressions"]).make_array().push(expression);
            }
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = pod.get_mut("spec").and_then(|s| s.get_mut("affinity")).and_then(|a| a.get_mut(kind)) else {
            continue;
        };
        if let Some(terms) = pods.get_mut(REQUIRED) {
            terms.items_mut().iter_mut().for_each(merge);
        }
        if let Some(terms) = pods.get_mut(PREFERRED) {
            terms.items_mut().iter_mut().filter_map(|t| t.get_mut("podAffinityTerm")).for_each(merge);
        }
    }
    if let Some(constraints) = pod.get_mut("spec").and_then(|s| s.get_mut("topologySpreadConstraints")) {
        constraints.items_mut().iter_mut().for_each(merge);
    }
}
