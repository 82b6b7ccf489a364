//! When a job's pods count as failed, and when some of them are enough.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::indexes;
use crate::validation::labels::label_name;
use crate::validation::{Checks, int, text};

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_PATTERNS: usize = 20;
const MAX_INDEXES: usize = 64 << 10;

/// As Go prints a list of strings.
fn quoted(values: &[&str]) -> String {
    let all: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
    format!("valid values: [{}]", all.join(" "))
}

fn one_of(errs: &mut FieldErrors, at: &Cursor<'_>, allowed: &[&str]) {
    if errs.present(at, &quoted(allowed)) {
        errs.one_of(at, allowed);
    }
}

pub(super) fn failure(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let rules = spec.fields(&["podFailurePolicy", "rules"]);
    let count = rules.value.items().len();
    if count > MAX_RULES {
        errs.too_many(&rules.path, count, MAX_RULES);
    }
    let containers: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| spec.value.at(&["template", "spec", list]).items())
        .map(|c| c.str_at(&["name"]))
        .collect();
    for rule in rules.elements() {
        let action = rule.field("action");
        if text(&action) == "FailIndex" {
            if spec.value["backoffLimitPerIndex"].is_null() {
                errs.invalid(&action, "requires the backoffLimitPerIndex to be set");
            }
        } else {
            one_of(errs, &action, &["Count", "FailIndex", "FailJob", "Ignore"]);
        }
        let (codes, conditions) = (rule.field("onExitCodes"), rule.field("onPodConditions"));
        if !codes.is_absent() {
            exit_codes(errs, &codes, &containers);
        }
        pod_conditions(errs, &conditions);
        match (codes.is_absent(), conditions.is_empty_value()) {
            (false, false) => {
                errs.invalid_bare(&rule.path, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (true, true) => {
                errs.invalid_bare(&rule.path, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

fn pod_conditions(errs: &mut FieldErrors, list: &Cursor<'_>) {
    let count = list.value.items().len();
    if count > MAX_PATTERNS {
        errs.too_many(&list.path, count, MAX_PATTERNS);
    }
    for pattern in list.elements() {
        label_name(errs, &pattern.field("type"));
        one_of(errs, &pattern.field("status"), &["False", "True", "Unknown"]);
    }
}

fn exit_codes(errs: &mut FieldErrors, at: &Cursor<'_>, containers: &[&str]) {
    let operator = at.field("operator");
    one_of(errs, &operator, &["In", "NotIn"]);
    let container = at.field("containerName");
    if !container.is_absent() && !containers.contains(&text(&container)) {
        errs.invalid(&container, "must be one of the container or initContainer names in the pod template");
    }
    let values = at.field("values");
    let numbers: Vec<i64> = values.value.items().iter().map(int).collect();
    if numbers.is_empty() {
        let shown = if values.is_absent() { Value::Null } else { Value::Array(Vec::new()) };
        errs.invalid_value(&values.path, shown, "at least one value is required");
    } else if numbers.len() > MAX_EXIT_CODES {
        errs.too_many(&values.path, numbers.len(), MAX_EXIT_CODES);
    }
    for (i, number) in numbers.iter().enumerate() {
        if text(&operator) == "In" && *number == 0 {
            errs.invalid_value(&values.path.index(i), *number, "must not be 0 for the In operator");
        }
        if numbers[..i].contains(number) {
            errs.duplicate(&values.path.index(i), *number);
        }
    }
    if !numbers.is_sorted() {
        errs.invalid(&values, "must be ordered");
    }
}

pub(super) fn success(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let rules = spec.fields(&["successPolicy", "rules"]);
    errs.present(&rules, "at least one rules must be specified when the successPolicy is specified");
    let count = rules.value.items().len();
    if count > MAX_RULES {
        errs.too_many(&rules.path, count, MAX_RULES);
    }
    let completions = int(&spec.value["completions"]);
    for rule in rules.elements() {
        let (enough, indexes) = (rule.field("succeededCount"), rule.field("succeededIndexes"));
        if enough.is_absent() && indexes.is_absent() {
            errs.required(&rule.path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if text(&indexes).len() > MAX_INDEXES {
            errs.too_long(&indexes.path, MAX_INDEXES);
        }
        match indexes::count(text(&indexes), completions) {
            Ok(n) => total = n,
            Err(why) => errs.invalid(&indexes, format!("error parsing succeededIndexes: {why}")),
        }
        if enough.is_absent() {
            continue;
        }
        errs.non_negative(&enough);
        let bound = |n: i64, what: &str| format!("must be less than or equal to {n} (the number of {what})");
        if int(enough.value) > completions {
            errs.invalid(&enough, bound(completions, "specified completions"));
        }
        if !indexes.is_absent() && int(enough.value) > total {
            errs.invalid(&enough, bound(total, "indexes in the specified succeededIndexes field"));
        }
    }
}
