//! The expressions of a policy against the types of what it is about.

use expressions::{Program, Type, admission};
use k8s_openapi::api::admissionregistration::v1::{ExpressionWarning, ValidatingAdmissionPolicySpec};

/// What a policy is about, as far as its types are known.
#[derive(Debug, Default)]
pub(super) struct Types {
    /// `GROUP/VERSION, Kind=KIND`, as warnings show it, and the type.
    pub(super) kinds: Vec<(String, Type)>,
    /// `None`: there are no parameters, or nobody knows their type.
    pub(super) params: Option<Type>,
}

/// A warning for each expression that does not fit one of the kinds.
pub(super) fn warnings(spec: &ValidatingAdmissionPolicySpec, types: &Types) -> Vec<ExpressionWarning> {
    let mut warnings = Vec::new();
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        let message = validation.message_expression.as_deref().unwrap_or_default();
        for (field, expression) in [("expression", validation.expression.as_str()), ("messageExpression", message)] {
            let wrong = if expression.is_empty() { Vec::new() } else { mistakes(spec, types, expression) };
            if !wrong.is_empty() {
                let field_ref = format!("spec.validations[{i}].{field}");
                warnings.push(ExpressionWarning { field_ref, warning: wrong.join("\n") });
            }
        }
    }
    warnings
}

fn mistakes(spec: &ValidatingAdmissionPolicySpec, types: &Types, expression: &str) -> Vec<String> {
    let variables = || spec.variables.iter().flatten().map(|v| (v.name.as_str(), v.expression.as_str()));
    let of_kind = |(kind, object): &(String, Type)| {
        let mut names = admission::declarations(object, types.params.as_ref());
        admission::declare_variables(&mut names, variables());
        let error = Program::checked(expression, &names).err()?;
        Some(format!("{kind}: {error}\n"))
    };
    types.kinds.iter().filter_map(of_kind).collect()
}

#[cfg(test)]
mod tests {
    use expressions::ObjectType;
    use k8s_openapi::api::admissionregistration::v1::{Validation, Variable};

    use super::*;

    #[test]
    fn what_does_not_fit_a_kind_is_told() {
        let spec = ObjectType::new([("replicas".into(), Type::Int)]);
        let deployment = Type::Object(ObjectType::new([("spec".into(), Type::Object(spec.into()))]).into());
        let types = Types {
            kinds: vec![("apps/v1, Kind=Deployment".into(), deployment), ("/v1, Kind=Odd".into(), Type::Dyn)],
            params: None,
        };
        let validation = |expression: &str, message: Option<&str>| Validation {
            expression: expression.into(),
            message_expression: message.map(Into::into),
            ..Validation::default()
        };
        let policy = ValidatingAdmissionPolicySpec {
            variables: Some(vec![Variable { name: "n".into(), expression: "object.spec.replicas".into() }]),
            validations: Some(vec![
                validation("object.spec.replicas > '1'", None),
                validation("object.spec.maxRetries < 10", Some("'at most ' + variables.n")),
                validation("variables.n < 10", Some("'fine'")),
            ]),
            ..ValidatingAdmissionPolicySpec::default()
        };
        let told: Vec<(String, String)> =
            warnings(&policy, &types).into_iter().map(|w| (w.field_ref, w.warning)).collect();
        let want = [
            (
                "spec.validations[0].expression",
                "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n",
            ),
            (
                "spec.validations[1].expression",
                "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'maxRetries'\n | object.spec.maxRetries < 10\n | ...........^\n",
            ),
            (
                "spec.validations[1].messageExpression",
                "apps/v1, Kind=Deployment: ERROR: <input>:1:12: found no matching overload for '_+_' applied to '(string, int)'\n | 'at most ' + variables.n\n | ...........^\n",
            ),
        ];
        assert_eq!(told, want.map(|(field, warning)| (field.to_owned(), warning.to_owned())));
    }
}
