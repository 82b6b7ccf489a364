//! ValidatingAdmissionPolicyBinding and MutatingAdmissionPolicyBinding.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::match_rules::{default_match, validate_match};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::labels::label_selector;
use crate::validation::names::{dns_subdomain, path_segment};
use crate::validation::{Checks, text};

pub(crate) struct PolicyBindingStrategy {
    pub mutating: bool,
}

fn validate_params(params: &Cursor<'_>, errs: &mut FieldErrors) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let (name, selector, missing) =
        (params.field("name"), params.field("selector"), params.field("parameterNotFoundAction"));
    let named = !text(&name).is_empty();
    if named {
        errs.each(&name, path_segment(text(&name)));
        if !selector.is_absent() {
            errs.forbidden(&name.path, EXCLUSIVE);
        }
    }
    if !selector.is_absent() {
        label_selector(errs, &selector, true);
        if named {
            errs.forbidden(&selector.path, EXCLUSIVE);
        }
    }
    if !named && selector.is_absent() {
        errs.required(&params.path, "one of name or selector must be specified");
    }
    if errs.present(&missing, "") {
        errs.one_of(&missing, &["Deny", "Allow"]);
    }
}

fn validate_actions(actions: &Cursor<'_>, errs: &mut FieldErrors) {
    for (i, action) in actions.elements().enumerate() {
        errs.one_of(&action, &["Audit", "Deny", "Warn"]);
        if actions.items()[..i].contains(action.value) {
            errs.duplicate(&action.path, text(&action));
        }
    }
    let has = |name: &str| actions.items().iter().any(|a| a.as_str() == Some(name));
    if has("Deny") && has("Warn") {
        errs.invalid(
            actions,
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and \
             headers serves no purpose)",
        );
    }
    errs.present(actions, "at least one validation action is required");
}

impl Strategy for PolicyBindingStrategy {
    fn default(&self, binding: &mut Value) {
        if !binding.at(&["spec", "matchResources"]).is_null() {
            default_match(binding.entry(&["spec", "matchResources"]));
        }
    }

    fn validate(&self, binding: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(binding).field("spec");
        let policy = spec.field("policyName");
        if errs.present(&policy, "") {
            errs.each(&policy, dns_subdomain(text(&policy)));
        }
        let (params, resources) = (spec.field("paramRef"), spec.field("matchResources"));
        if !params.is_absent() {
            validate_params(&params, &mut errs);
        }
        if !resources.is_absent() {
            validate_match(&resources, &mut errs);
        }
        if !self.mutating {
            validate_actions(&spec.field("validationActions"), &mut errs);
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, binding: &Value, now: Now) -> Option<Vec<Cell>> {
        let params = binding.at(&["spec", "paramRef"]);
        let shown = if params.is_null() {
            "<unset>".to_owned()
        } else if !params.str_at(&["namespace"]).is_empty() {
            format!("{}/{}", params.str_at(&["namespace"]), params.str_at(&["name"]))
        } else if !params["selector"].is_null() {
            table_cells::selector(&params["selector"])
        } else {
            params.str_at(&["name"]).to_owned()
        };
        let policy = binding.str_at(&["spec", "policyName"]);
        Some(vec![binding.name().into(), policy.into(), shown.into(), table_cells::created(binding, now)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn a_binding_names_a_policy_and_what_to_do() {
        let binding = serde_json::from_str(r#"{"spec":{"paramRef":{"name":"a","selector":{}}}}"#).unwrap();
        assert_findings(
            &PolicyBindingStrategy { mutating: false }.validate(&binding),
            &[
                "spec.policyName: Required value",
                "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
                "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive",
                "spec.paramRef.parameterNotFoundAction: Required value",
                "spec.validationActions: Required value: at least one validation action is required",
            ],
        );
    }
}
