//! ResourceQuota.

use std::collections::BTreeSet;

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::Strategy;
use crate::validation::resources::{amount_of, is_standard_quota, quota_resource_name};
use crate::validation::{Checks, text};

pub(crate) struct ResourceQuotaStrategy;

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
const OPPOSITES: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
const COMPUTE: &[&str] = &["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

/// Can that scope limit that resource?
fn is_limited_by(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            resource == "pods" || COMPUTE.contains(&resource)
        }
        _ => true,
    }
}

fn amounts(errs: &mut FieldErrors, at: &Cursor<'_>) {
    for (name, amount) in at.map_entries() {
        quota_resource_name(errs, &amount, name);
        amount_of(errs, &amount, name);
    }
}

fn unfit(spec: &Cursor<'_>, scope: &str) -> usize {
    let hard = spec["hard"].entries();
    hard.keys().filter(|k| is_standard_quota(k) && !is_limited_by(scope, k)).count()
}

fn conflicts(named: &BTreeSet<&str>) -> usize {
    OPPOSITES.iter().filter(|pair| pair.iter().all(|scope| named.contains(scope))).count()
}

fn scopes(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let scopes = spec.field("scopes");
    let named: BTreeSet<&str> = scopes.items().iter().filter_map(Value::as_str).collect();
    for scope in scopes.items().iter().filter_map(Value::as_str) {
        if !SCOPES.contains(&scope) {
            errs.invalid(&scopes, "unsupported scope");
        }
        for _ in 0..unfit(spec, scope) {
            errs.invalid(&scopes, "unsupported scope applied to resource");
        }
    }
    for _ in 0..conflicts(&named) {
        errs.invalid(&scopes, "conflicting scopes");
    }
}

fn scope_selector(spec: &Cursor<'_>, errs: &mut FieldErrors) {
    let selector = spec.field("scopeSelector");
    let list = selector.field("matchExpressions");
    let mut named = BTreeSet::new();
    for item in list.elements() {
        // Upstream's paths have no index here.
        let at = |field: &str| Cursor::new(list.path.child(field), &item.value[field]);
        let (scope, operator, values) = (at("scopeName"), at("operator"), at("values"));
        if !SCOPES.contains(&text(&scope)) {
            errs.invalid_text(&scope, "unsupported scope");
        }
        for _ in 0..unfit(spec, text(&scope)) {
            errs.invalid_struct(
                &Cursor::new(list.path.clone(), selector.value),
                "unsupported scope applied to resource",
            );
        }
        let values_matter = matches!(text(&scope), "PriorityClass" | "VolumeAttributesClass");
        if SCOPES.contains(&text(&scope)) && !values_matter && text(&operator) != "Exists" {
            errs.invalid_text(
                &operator,
                "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                 ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match text(&operator) {
            "In" | "NotIn" => {
                errs.present(
                    &values,
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                );
            }
            "Exists" | "DoesNotExist" => {
                if !values.items().is_empty() {
                    errs.invalid(
                        &values,
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    );
                }
            }
            _ => errs.invalid_text(&operator, "not a valid selector operator"),
        }
        named.insert(text(&scope));
    }
    for _ in 0..conflicts(&named) {
        errs.invalid(&Cursor::new(list.path.clone(), &spec["scopes"]), "conflicting scopes");
    }
}

fn validate_spec(quota: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(quota).field("spec");
    amounts(&mut errs, &spec.field("hard"));
    scopes(&spec, &mut errs);
    scope_selector(&spec, &mut errs);
    errs
}

fn validate_status(quota: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let status = Cursor::root(quota).field("status");
    amounts(&mut errs, &status.field("hard"));
    amounts(&mut errs, &status.field("used"));
    errs
}

impl Strategy for ResourceQuotaStrategy {
    fn prepare_for_create(&self, quota: &mut Value) {
        quota.set(&["status"], Value::object());
    }

    fn validate(&self, quota: &Value) -> FieldErrors {
        validate_spec(quota)
    }

    fn validate_update(&self, quota: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate_spec(quota);
        let scopes = Cursor::root(quota).fields(&["spec", "scopes"]);
        let set =
            |list: &Value| list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect::<BTreeSet<_>>();
        if set(scopes.value) != set(old.at(&["spec", "scopes"])) {
            errs.invalid(&scopes, "field is immutable");
        }
        errs
    }

    fn validate_status_update(&self, quota: &Value, _: &Value) -> FieldErrors {
        validate_status(quota)
    }

    fn row(&self, quota: &Value, now: crate::strategy::Now) -> Option<Vec<crate::strategy::Cell>> {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (name, hard) in quota.at(&["status", "hard"]).entries() {
            let used = quota.at(&["status", "used", name]).as_str().unwrap_or("0");
            let text = format!("{name}: {used}/{}", hard.as_str().unwrap_or_default());
            if name.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
        }
        let age = crate::table_cells::created(quota, now);
        Some(vec![quota.name().into(), requests.join(", ").into(), limits.join(", ").into(), age])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn scopes_fit_resources() {
        let quota = serde_json::from_str(
            r#"{"spec":{"hard":{"pods":"1.5","requests.cpu":"1","widgets":"1"},"scopes":["BestEffort"],
                "scopeSelector":{"matchExpressions":[{"scopeName":"Terminating","operator":"In"}]}}}"#,
        )
        .unwrap();
        let errs = ResourceQuotaStrategy.validate(&quota);
        let paths: Vec<&str> = errs.0.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "spec.hard[pods]",
                "spec.hard[widgets]",
                "spec.hard[widgets]",
                "spec.scopes",
                "spec.scopeSelector.matchExpressions.operator",
                "spec.scopeSelector.matchExpressions.values",
            ]
        );
        assert_findings(
            &FieldErrors(errs.0[3..4].to_vec()),
            &[r#"spec.scopes: Invalid value: ["BestEffort"]: unsupported scope applied to resource"#],
        );
    }
}
