//! ValidatingAdmissionPolicy: refuses, warns, or notes what a policy's expressions say is wrong.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::{Cause, Status};
use async_trait::async_trait;

use super::compiled::{Hook, Hooks, Policy, Validation};
use super::params;
use super::scope::{Facts, Failure, Scope};
use crate::admission::dynamic::matching::{Matcher, is_exempt, is_question};
use crate::admission::{Plugin, Request, Tools};
use crate::authz::Authorizer;
use expressions::Val;

/// Longer messages of expressions are not shown.
const MAX_MESSAGE: usize = 5 << 10;

pub(in crate::admission) struct ValidatingAdmissionPolicy {
    tools: Tools,
    authorizers: Arc<[Arc<dyn Authorizer>]>,
    hooks: Hooks,
}

impl ValidatingAdmissionPolicy {
    pub(in crate::admission) fn new(tools: &Tools) -> Self {
        let hooks = Hooks::new(
            Arc::clone(&tools.lister),
            "validatingadmissionpolicies.admissionregistration.k8s.io",
            "validatingadmissionpolicybindings.admissionregistration.k8s.io",
        );
        ValidatingAdmissionPolicy { authorizers: tools.authorizers.clone().into(), tools: tools.clone(), hooks }
    }
}

#[async_trait]
impl Plugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, request: &Request) -> bool {
        !is_exempt(request) && !is_question(request) && !self.hooks.current().is_empty()
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let mut denials = Vec::new();
        let mut facts = None;
        for hook in self.hooks.current().iter() {
            self.run(hook, request, &mut facts, &mut denials).await;
        }
        match denials.into_iter().next() {
            None => Ok(()),
            Some(denial) => Err(denial.into_status(request)),
        }
    }
}

impl ValidatingAdmissionPolicy {
    async fn run(&self, hook: &Hook, request: &mut Request, facts: &mut Option<Facts>, denials: &mut Vec<Denial>) {
        let policy = &hook.policy;
        let lister = self.tools.lister.as_ref();
        match Matcher::of_policy(&policy.spec()["matchConstraints"]).matches(request, lister, false) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                denials.extend(misconfigured(policy, None, &error.to_string()));
                return;
            }
        }
        for binding in &hook.bindings {
            let name = binding.name();
            match Matcher::of_policy(&binding["spec"]["matchResources"]).matches(request, lister, true) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    denials.extend(misconfigured(policy, Some(name), &error.to_string()));
                    continue;
                }
            }
            let params = match params::collect(&policy.object, binding, request, lister, &self.tools.own).await {
                Ok(params) => params,
                Err(why) => {
                    denials.extend(misconfigured(policy, Some(name), &why));
                    continue;
                }
            };
            let facts = facts.get_or_insert_with(|| Facts::new(request, lister, &self.authorizers));
            for param in &params {
                let found = evaluate(policy, facts, param.as_deref());
                report(policy, binding, request, found, denials);
            }
        }
    }
}

/// A policy that cannot be evaluated refuses, unless its failures are ignored.
fn misconfigured(policy: &Policy, binding: Option<&str>, why: &str) -> Option<Denial> {
    let of = if binding.is_some() { "binding" } else { "policy" };
    let denial = || Denial::new(policy.name(), binding, "", format!("failed to configure {of}: {why}"));
    (!policy.ignores_failures()).then(denial)
}

/// What a policy found about a request.
#[derive(Default)]
struct Findings {
    /// Reason and message of each validation that does not hold.
    wrong: Vec<(String, String)>,
    notes: Vec<(String, String)>,
}

fn evaluate(policy: &Policy, facts: &Facts, params: Option<&Value>) -> Findings {
    let mut found = Findings::default();
    let scope = Scope::new(facts, params, &policy.variables);
    let fails = !policy.ignores_failures();
    match scope.all_hold(&policy.conditions) {
        Ok(true) => {}
        Ok(false) => return found,
        Err(why) => {
            if fails {
                found.wrong.push((String::new(), why));
            }
            return found;
        }
    }
    for validation in &policy.validations {
        match scope.evaluate(&validation.expression) {
            Ok(Val::Bool(true)) => {}
            Ok(_) => found.wrong.push((validation.reason.clone(), message_of(validation, &scope))),
            Err(failure) => {
                if fails {
                    found.wrong.push((String::new(), failure.to_string()));
                }
                if matches!(failure, Failure::Budget) {
                    break;
                }
            }
        }
    }
    for (key, expression) in &policy.annotations {
        match scope.evaluate(expression) {
            Ok(Val::String(text)) if !text.trim().is_empty() => {
                found.notes.push((key.clone(), text.trim().to_owned()));
            }
            Ok(Val::String(_) | Val::Null) => {}
            Ok(other) => {
                if fails {
                    let why = format!(
                        "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                        expression.source,
                        other.type_name()
                    );
                    found.wrong.push((String::new(), why));
                }
            }
            Err(failure) if fails => found.wrong.push((String::new(), failure.to_string())),
            Err(_) => {}
        }
    }
    found
}

fn message_of<'a>(validation: &'a Validation, scope: &Scope<'a>) -> String {
    let made = validation.message_expression.as_ref().and_then(|expression| scope.evaluate(expression).ok());
    let made = made.as_ref().and_then(Val::as_str).map(str::trim).unwrap_or_default();
    let is_fit = !made.is_empty() && made.len() <= MAX_MESSAGE && !made.contains('\n');
    if is_fit {
        made.to_owned()
    } else if validation.message.is_empty() {
        format!("failed expression: {}", validation.expression.source)
    } else {
        validation.message.clone()
    }
}

fn report(policy: &Policy, binding: &Value, request: &mut Request, found: Findings, denials: &mut Vec<Denial>) {
    let actions: Vec<&str> = binding["spec"]["validationActions"].items().iter().filter_map(Value::as_str).collect();
    let mut failures = Vec::new();
    for (i, (reason, message)) in found.wrong.into_iter().enumerate() {
        if actions.contains(&"Warn") {
            request.warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                policy.name(),
                binding.name()
            ));
        }
        if actions.contains(&"Audit") {
            let list = actions.iter().map(|a| Value::from(*a)).collect();
            failures.push(Value::from([
                ("message", message.as_str().into()),
                ("policy", policy.name().into()),
                ("binding", binding.name().into()),
                ("expressionIndex", Value::Int(i64::try_from(i).unwrap_or_default())),
                ("validationActions", Value::Array(list)),
            ]));
        }
        if actions.contains(&"Deny") {
            denials.push(Denial::new(policy.name(), Some(binding.name()), &reason, message));
        }
    }
    if !failures.is_empty() {
        let text = serde_json::to_string(&failures).unwrap_or_default();
        request.audit_annotations.insert("validation.policy.admission.k8s.io/validation_failure".to_owned(), text);
    }
    for (key, value) in found.notes {
        request.audit_annotations.insert(format!("{}/{key}", policy.name()), value);
    }
}

/// Why a request is refused.
struct Denial {
    reason: &'static str,
    code: u16,
    message: String,
}

impl Denial {
    fn new(policy: &str, binding: Option<&str>, reason: &str, why: String) -> Self {
        let (reason, code) = match reason {
            "Unauthorized" => ("Unauthorized", 401),
            "Forbidden" => ("Forbidden", 403),
            "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
            _ => ("Invalid", 422),
        };
        let with = binding.map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
        Denial { reason, code, message: format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {why}") }
    }

    fn into_status(self, request: &Request) -> Status {
        let mut status = request.forbidden(&self.message);
        (status.reason, status.code) = (self.reason, self.code);
        let cause = Cause { message: self.message, ..Cause::default() };
        if let Some(details) = &mut status.details {
            details.causes.push(cause);
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fixture::request;
    use crate::admission::{Operation, OwnObjects};
    use crate::lister::fixture::MapLister;

    /// A policy for config maps with this spec, bound to this parameter.
    async fn run(spec: &str, object: &str) -> (Result<(), String>, Vec<String>) {
        let lister = Arc::new(MapLister::default());
        let put = |resource: &str, text: String| lister.put(resource, serde_json::from_str(&text).unwrap());
        let rules = r#""matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}]}"#;
        put(
            "validatingadmissionpolicies.admissionregistration.k8s.io",
            format!(r#"{{"metadata":{{"name":"p"}},"spec":{{{rules},{spec}}}}}"#),
        );
        put(
            "validatingadmissionpolicybindings.admissionregistration.k8s.io",
            r#"{"metadata":{"name":"b"},"spec":{"policyName":"p","validationActions":["Deny","Warn"],"paramRef":{"name":"limit"}}}"#.to_owned(),
        );
        put("configmaps", r#"{"metadata":{"name":"limit","namespace":"ns"},"data":{"max":"2"}}"#.to_owned());
        let tools = Tools { lister, authorizers: Vec::new(), own: Arc::new(OwnObjects::default()) };
        let plugin = ValidatingAdmissionPolicy::new(&tools);
        let mut request = request(Operation::Create, "configmaps", object);
        let result = plugin.validate(&mut request).await.map_err(|e| format!("{} {}", e.code, e.message));
        (result, request.warnings)
    }

    #[track_caller]
    fn check(got: &(Result<(), String>, Vec<String>), want: Option<&str>) {
        assert_eq!(got.0.as_ref().err().map(String::as_str), want);
        assert_eq!(got.1.is_empty(), want.is_none(), "{:?}", got.1);
    }

    const OBJECT: &str = r#"{"metadata":{"name":"a"},"data":{"x":"1","y":"2","z":"3"}}"#;

    #[tokio::test]
    async fn expressions_refuse_in_their_own_words() {
        let spec = r#""variables":[{"name":"n","expression":"size(object.data)"},{"name":"m","expression":"variables.n + 1"}],"validations":[{"expression":"variables.m < 4","messageExpression":"'has ' + string(variables.n)","reason":"Forbidden"}]"#;
        let refused =
            "403 configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: has 3";
        check(&run(spec, OBJECT).await, Some(refused));
        check(&run(spec, r#"{"metadata":{"name":"a"},"data":{}}"#).await, None);
    }

    #[tokio::test]
    async fn parameters_and_conditions_are_seen() {
        let spec = r#""paramKind":{"apiVersion":"v1","kind":"ConfigMap"},"validations":[{"expression":"size(object.data) <= int(params.data.max)"}]"#;
        let refused = "422 configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: size(object.data) <= int(params.data.max)";
        check(&run(spec, OBJECT).await, Some(refused));
        let spared = format!(r#""matchConditions":[{{"name":"c","expression":"object.metadata.name != 'a'"}}],{spec}"#);
        check(&run(&spared, OBJECT).await, None);
    }

    #[tokio::test]
    async fn failures_count_unless_they_are_ignored() {
        let spec = r#""validations":[{"expression":"object.nope == 1"}]"#;
        let refused = "422 configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: expression 'object.nope == 1' resulted in error: no such key: nope";
        check(&run(spec, OBJECT).await, Some(refused));
        check(&run(&format!(r#""failurePolicy":"Ignore",{spec}"#), OBJECT).await, None);
    }
}
