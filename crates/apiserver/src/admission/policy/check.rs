//! Are the expressions of a policy, or of a webhook's conditions, expressions of the type that is asked for?

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};
use expressions::{Declarations, DeclaredType, Program, Type, admission};

/// Of a ValidatingAdmissionPolicy or MutatingAdmissionPolicy. What is empty is no business of ours.
#[must_use]
pub(crate) fn check_policy(policy: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(policy).field("spec");
    let any = Type::Dyn;
    let mut names = admission::declarations(&any, (!spec["paramKind"].is_null()).then_some(&any));
    check_conditions(&spec.field("matchConditions"), &names, &mut errs);
    let variables: Vec<Cursor<'_>> = spec.field("variables").elements().collect();
    let pairs = variables.iter().map(|v| (v.str_at(&["name"]), v.str_at(&["expression"])));
    for (i, error) in admission::declare_variables(&mut names, pairs) {
        let expression = variables[i].field("expression");
        if !expression.str_at(&[]).trim().is_empty() {
            errs.invalid(&expression, format!("compilation failed: {error}"));
        }
    }
    for validation in spec.field("validations").elements() {
        check(&validation.field("expression"), &names, is_bool, "bool", &mut errs);
        check(&validation.field("messageExpression"), &names, is_text, "string", &mut errs);
    }
    for annotation in spec.field("auditAnnotations").elements() {
        let is_note = |of: &DeclaredType| matches!(of, DeclaredType::String | DeclaredType::Null);
        check(&annotation.field("valueExpression"), &names, is_note, "one of [string null_type]", &mut errs);
    }
    names.makes_objects = true;
    for mutation in spec.field("mutations").elements() {
        let at = |kind: &str| mutation.fields(&[kind, "expression"]);
        check(&at("applyConfiguration"), &names, is_object, "Object", &mut errs);
        check(&at("jsonPatch"), &names, is_patch, "list(JSONPatch)", &mut errs);
    }
    errs
}

/// Of a webhook configuration.
#[must_use]
pub(crate) fn check_webhooks(configuration: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let names = admission::declarations(&Type::Dyn, None);
    for webhook in Cursor::root(configuration).field("webhooks").elements() {
        check_conditions(&webhook.field("matchConditions"), &names, &mut errs);
    }
    errs
}

fn check_conditions(conditions: &Cursor<'_>, names: &Declarations, errs: &mut FieldErrors) {
    for condition in conditions.elements() {
        check(&condition.field("expression"), names, is_bool, "bool", errs);
    }
}

fn check(
    at: &Cursor<'_>,
    names: &Declarations,
    fits: impl Fn(&DeclaredType) -> bool,
    wanted: &str,
    errs: &mut FieldErrors,
) {
    let source = at.value.as_str().unwrap_or_default().trim();
    if source.is_empty() {
        return;
    }
    match Program::checked(source, names) {
        Err(error) => errs.invalid(at, format!("compilation failed: {error}")),
        Ok((_, of)) if !fits(&of) => errs.invalid(at, format!("must evaluate to {wanted}")),
        Ok(_) => {}
    }
}

fn is_bool(of: &DeclaredType) -> bool {
    *of == DeclaredType::Bool
}

fn is_text(of: &DeclaredType) -> bool {
    *of == DeclaredType::String
}

fn is_object(of: &DeclaredType) -> bool {
    matches!(of, DeclaredType::Made(name) if name == "Object") || *of == DeclaredType::Dyn
}

fn is_patch(of: &DeclaredType) -> bool {
    match of {
        DeclaredType::List(item) => {
            matches!(&**item, DeclaredType::Dyn) || matches!(&**item, DeclaredType::Made(name) if name == "JSONPatch")
        }
        other => *other == DeclaredType::Dyn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(errs: &FieldErrors, want: &[&str]) {
        let got: Vec<String> = errs.0.iter().map(ToString::to_string).collect();
        assert_eq!(got, want);
    }

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_policy_has_expressions_of_the_right_types() {
        let policy = json(
            r#"{"spec":{"matchConditions":[{"expression":"object.x"}],"variables":[{"name":"n","expression":"size(object.list)"},{"name":"x","expression":"nope"}],
            "validations":[{"expression":"variables.n > 'a'"},{"expression":"variables.n > 1","messageExpression":"variables.n"},{"expression":""},{"expression":"params.x == 1"}],
            "auditAnnotations":[{"valueExpression":"1"},{"valueExpression":"object.x == 1 ? 'a' : 'b'"}]}}"#,
        );
        check(
            &check_policy(&policy),
            &[
                r#"spec.matchConditions[0].expression: Invalid value: "object.x": must evaluate to bool"#,
                "spec.variables[1].expression: Invalid value: \"nope\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'nope' (in container '')\n | nope\n | ^",
                "spec.validations[0].expression: Invalid value: \"variables.n > 'a'\": compilation failed: ERROR: <input>:1:13: found no matching overload for '_>_' applied to '(int, string)'\n | variables.n > 'a'\n | ............^",
                r#"spec.validations[1].messageExpression: Invalid value: "variables.n": must evaluate to string"#,
                "spec.validations[3].expression: Invalid value: \"params.x == 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.x == 1\n | ^",
                r#"spec.auditAnnotations[0].valueExpression: Invalid value: "1": must evaluate to one of [string null_type]"#,
            ],
        );
    }

    #[test]
    fn mutations_make_objects_and_patches() {
        let policy = json(
            r#"{"spec":{"mutations":[{"applyConfiguration":{"expression":"Object{spec: Object.spec{replicas: 1}}"}},
            {"jsonPatch":{"expression":"[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]"}},
            {"jsonPatch":{"expression":"Object{}"}}]}}"#,
        );
        check(
            &check_policy(&policy),
            &[r#"spec.mutations[2].jsonPatch.expression: Invalid value: "Object{}": must evaluate to list(JSONPatch)"#],
        );
    }

    #[test]
    fn conditions_of_webhooks_are_expressions() {
        let webhooks = json(
            r#"{"webhooks":[{"matchConditions":[{"expression":"request.operation == 'CREATE'"},{"expression":"!("}]}]}"#,
        );
        let errs = check_webhooks(&webhooks);
        assert_eq!(errs.0.len(), 1);
        assert_eq!(errs.0[0].path.as_str(), "webhooks[0].matchConditions[1].expression");
    }
}
