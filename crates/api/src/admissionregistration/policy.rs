//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::match_rules::{default_match, validate_match};
use super::{failure_policy, match_conditions};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{c_identifier, dns_1035_label, dns_subdomain, qualified_name};
use crate::validation::{Checks, text};

pub(crate) struct PolicyStrategy {
    pub mutating: bool,
}

const MAX_ANNOTATIONS: usize = 20;
const MAX_VALUE_EXPRESSION: usize = 5 << 10;

fn validate_param_kind(kind: &Cursor<'_>, errs: &mut FieldErrors) {
    let (version, name) = (kind.field("apiVersion"), kind.field("kind"));
    if errs.present(&version, "") {
        match text(&version).split('/').collect::<Vec<_>>().as_slice() {
            parts @ ([_] | [_, _]) => {
                let (group, version_part) = if let [group, v] = parts { (*group, *v) } else { ("", parts[0]) };
                if !group.is_empty() {
                    let wrong = dns_subdomain(group);
                    if !wrong.is_empty() {
                        errs.invalid_value(&version.path, group, wrong.join(","));
                    }
                }
                let wrong = dns_1035_label(version_part);
                if version_part.is_empty() {
                    errs.invalid(&version, "version must be specified");
                } else if !wrong.is_empty() {
                    errs.invalid_value(&version.path, version_part, wrong.join(","));
                }
            }
            _ => errs.invalid(&version, format!("unexpected GroupVersion string: {}", text(&version))),
        }
    }
    if errs.present(&name, "") {
        let wrong = dns_1035_label(&text(&name).to_lowercase());
        if !wrong.is_empty() {
            errs.invalid(&name, format!("may have mixed case, but should otherwise match: {}", wrong.join(",")));
        }
    }
}

fn validate_variables(list: &Cursor<'_>, errs: &mut FieldErrors) {
    for variable in list.elements() {
        let (name, expression) = (variable.field("name"), variable.field("expression"));
        if text(&name).trim().is_empty() {
            errs.required(&name.path, "name is not specified");
        } else if !c_identifier(text(&name)).is_empty() {
            errs.invalid(&name, "name is not a valid CEL identifier");
        }
        if text(&expression).trim().is_empty() {
            errs.required(&expression.path, "expression is not specified");
        }
    }
}

fn validate_validation(validation: &Cursor<'_>, errs: &mut FieldErrors) {
    let expression = validation.field("expression");
    if text(&expression).trim().is_empty() {
        errs.required(&expression.path, "expression is not specified");
    }
    let (worded, message) = (validation.field("messageExpression"), validation.field("message"));
    if !text(&worded).is_empty() && text(&worded).trim().is_empty() {
        errs.invalid(&worded, "must be non-empty if specified");
    }
    if !text(&message).is_empty() && text(&message).trim().is_empty() {
        errs.invalid(&message, "message must be non-empty if specified");
    } else if text(&message).trim().contains(['\n', '\r']) {
        errs.invalid(&message, "message must not contain line breaks");
    }
    let reason = validation.field("reason");
    if !reason.is_absent() {
        errs.one_of(&reason, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
}

fn validate_annotations(policy: &str, list: &Cursor<'_>, errs: &mut FieldErrors) {
    if list.items().len() > MAX_ANNOTATIONS {
        errs.invalid_struct(list, format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations"));
    }
    let mut keys: Vec<&str> = Vec::new();
    for annotation in list.elements() {
        let (key, value) = (annotation.field("key"), annotation.field("valueExpression"));
        let full = format!("{policy}/{}", text(&key));
        for message in qualified_name(&full) {
            errs.invalid_value(&key.path, full.as_str(), message);
        }
        if text(&value).trim().is_empty() {
            errs.required(&value.path, "valueExpression is not specified");
        } else if text(&value).len() > MAX_VALUE_EXPRESSION {
            errs.required(&value.path, "must not exceed 5kb in length");
        }
        if keys.contains(&text(&key)) {
            errs.duplicate(&key.path, text(&key));
        }
        keys.push(text(&key));
    }
}

fn validate_mutations(list: &Cursor<'_>, errs: &mut FieldErrors) {
    if list.items().is_empty() {
        errs.required(&list.path, "mutations must contain at least one item");
    }
    for mutation in list.elements() {
        let kind = mutation.field("patchType");
        let (apply, patch) = (mutation.field("applyConfiguration"), mutation.field("jsonPatch"));
        let (wanted, other) = match text(&kind) {
            "ApplyConfiguration" => (apply, patch),
            "JSONPatch" => (patch, apply),
            "" => {
                errs.required(&kind.path, "");
                continue;
            }
            _ => {
                errs.one_of(&kind, &["ApplyConfiguration", "JSONPatch"]);
                continue;
            }
        };
        if wanted.is_absent() {
            errs.required(&wanted.path, format!("must be specified when patchType is {}", text(&kind)));
        } else {
            let expression = wanted.field("expression");
            if text(&expression).trim().is_empty() {
                errs.required(&expression.path, "expression is not specified");
            }
        }
        if !other.is_absent() {
            errs.invalid_struct(&other, format!("must not be specified when patchType is {}", text(&kind)));
        }
    }
}

impl PolicyStrategy {
    fn validate_rules(&self, policy: &Value, conditions: bool) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(policy).field("spec");
        failure_policy(&spec.field("failurePolicy"), &mut errs);
        let (kind, constraints) = (spec.field("paramKind"), spec.field("matchConstraints"));
        if !kind.is_absent() {
            validate_param_kind(&kind, &mut errs);
        }
        if constraints.is_absent() {
            errs.required(&constraints.path, "");
        } else {
            validate_match(&constraints, &mut errs);
            errs.present(&constraints.field("resourceRules"), "");
        }
        if conditions {
            match_conditions(&spec.field("matchConditions"), &mut errs);
        }
        validate_variables(&spec.field("variables"), &mut errs);
        if self.mutating {
            validate_mutations(&spec.field("mutations"), &mut errs);
            let again = spec.field("reinvocationPolicy");
            if again.is_absent() {
                errs.required(&again.path, "");
            } else {
                errs.one_of(&again, &["IfNeeded", "Never"]);
            }
            return errs;
        }
        let (validations, annotations) = (spec.field("validations"), spec.field("auditAnnotations"));
        if validations.items().is_empty() && annotations.items().is_empty() {
            let why = "validations or auditAnnotations must contain at least one item";
            errs.required(&validations.path, why);
            errs.required(&annotations.path, why);
        }
        for validation in validations.elements() {
            validate_validation(&validation, &mut errs);
        }
        validate_annotations(policy.name(), &annotations, &mut errs);
        errs
    }
}

impl Strategy for PolicyStrategy {
    fn default(&self, policy: &mut Value) {
        policy.set_default(&["spec", "failurePolicy"], "Fail");
        if !policy.at(&["spec", "matchConstraints"]).is_null() {
            default_match(policy.entry(&["spec", "matchConstraints"]));
        }
        if self.mutating {
            policy.set_default(&["spec", "reinvocationPolicy"], "Never");
        }
    }

    fn validate(&self, policy: &Value) -> FieldErrors {
        self.validate_rules(policy, true)
    }

    fn validate_update(&self, policy: &Value, old: &Value) -> FieldErrors {
        let same = |path: &[&str]| policy.at(path) == old.at(path);
        let unchanged = same(&["spec", "paramKind"]) && same(&["spec", "matchConditions"]);
        self.validate_rules(policy, !unchanged)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, policy: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &policy["spec"];
        let count = if self.mutating { spec["mutations"].items().len() } else { spec["validations"].items().len() };
        let kind = &spec["paramKind"];
        let kind = if kind.is_null() {
            "<unset>".to_owned()
        } else {
            format!("{}/{}", kind.str_at(&["apiVersion"]), kind.str_at(&["kind"]))
        };
        let age = table_cells::created(policy, now);
        Some(vec![policy.name().into(), i64::try_from(count).unwrap_or_default().into(), kind.into(), age])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn a_policy_says_what_it_is_about() {
        let mut policy: Value = serde_json::from_str(
            r#"{"metadata":{"name":"p"},"spec":{"matchConstraints":{},"paramKind":{"apiVersion":"a/b/c"}}}"#,
        )
        .unwrap();
        let strategy = PolicyStrategy { mutating: false };
        strategy.default(&mut policy);
        let why = "Required value: validations or auditAnnotations must contain at least one item";
        assert_findings(
            &strategy.validate(&policy),
            &[
                r#"spec.paramKind.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
                "spec.paramKind.kind: Required value",
                "spec.matchConstraints.resourceRules: Required value",
                &format!("spec.validations: {why}"),
                &format!("spec.auditAnnotations: {why}"),
            ],
        );
    }
}
