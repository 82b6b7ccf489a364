//! Which requests webhooks and policies are about.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::labels::label_selector;
use crate::validation::names::path_segment;
use crate::validation::{Checks, text};

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

fn only_wildcard(list: &Cursor<'_>, others: &str, errs: &mut FieldErrors) {
    if list.items().len() > 1 && list.items().iter().any(|v| v.as_str() == Some("*")) {
        errs.invalid(list, format!("if '*' is present, must not specify other {others}"));
    }
}

fn validate_resources(list: &Cursor<'_>, errs: &mut FieldErrors) {
    errs.present(list, "");
    let (mut wild_subs, mut wild_resources): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut plain = false;
    for item in list.elements() {
        let name = text(&item);
        if name.is_empty() {
            errs.required(&item.path, "");
            continue;
        }
        let Some((resource, sub)) = name.split_once('/') else {
            plain = name != "*";
            continue;
        };
        if wild_subs.contains(&resource) {
            errs.invalid(&item, format!("if '{resource}/*' is present, must not specify {name}"));
        }
        if wild_resources.contains(&sub) {
            errs.invalid(&item, format!("if '*/{sub}' is present, must not specify {name}"));
        }
        if sub == "*" {
            wild_subs.push(resource);
        }
        if resource == "*" {
            wild_resources.push(sub);
        }
    }
    let has = |what: &str| list.items().iter().any(|v| v.as_str() == Some(what));
    if list.items().len() > 1 && has("*/*") {
        errs.invalid(list, "if '*/*' is present, must not specify other resources");
    }
    if has("*") && plain {
        errs.invalid(list, "if '*' is present, must not specify other resources without subresources");
    }
}

pub(super) fn validate_rule(rule: &Cursor<'_>, errs: &mut FieldErrors) {
    let operations = rule.field("operations");
    errs.present(&operations, "");
    only_wildcard(&operations, "operations", errs);
    for operation in operations.elements() {
        errs.one_of(&operation, OPERATIONS);
    }
    let (groups, versions) = (rule.field("apiGroups"), rule.field("apiVersions"));
    errs.present(&groups, "");
    only_wildcard(&groups, "API groups", errs);
    errs.present(&versions, "");
    only_wildcard(&versions, "API versions", errs);
    for version in versions.elements() {
        errs.present(&version, "");
    }
    validate_resources(&rule.field("resources"), errs);
    let scope = rule.field("scope");
    if !scope.is_absent() {
        errs.one_of(&scope, &["*", "Cluster", "Namespaced"]);
    }
}

/// What `matchConstraints` and `matchResources` say when nothing is said.
pub(super) fn default_match(at: &mut Value) {
    at.set_default(&["matchPolicy"], "Equivalent");
    at.set_default(&["namespaceSelector"], Value::object());
    at.set_default(&["objectSelector"], Value::object());
    for field in ["resourceRules", "excludeResourceRules"] {
        default_rules(at, field);
    }
}

pub(super) fn default_rules(at: &mut Value, field: &str) {
    if let Some(rules) = at.get_mut(field) {
        rules.items_mut().iter_mut().for_each(|rule| rule.set_default(&["scope"], "*"));
    }
}

pub(super) fn validate_match(at: &Cursor<'_>, errs: &mut FieldErrors) {
    let policy = at.field("matchPolicy");
    if policy.is_absent() {
        errs.required(&policy.path, "");
    } else {
        errs.one_of(&policy, &["Equivalent", "Exact"]);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        let selector = at.field(field);
        if selector.is_absent() {
            errs.required(&selector.path, "");
        } else {
            label_selector(errs, &selector, true);
        }
    }
    for rule in ["resourceRules", "excludeResourceRules"].into_iter().flat_map(|f| at.field(f).elements()) {
        let names = rule.field("resourceNames");
        for (i, name) in names.elements().enumerate() {
            errs.each(&name, path_segment(text(&name)));
            if names.items()[..i].contains(name.value) {
                errs.duplicate(&name.path, text(&name));
            }
        }
        validate_rule(&rule, errs);
    }
}
