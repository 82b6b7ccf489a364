//! MutatingAdmissionPolicy: changes objects as a policy's expressions say, by an apply configuration or a JSON patch.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::patch::{JsonPatch, strategic_merge};
use apimachinery::schema::TypeRef;
use apimachinery::status::{Cause, Status};
use async_trait::async_trait;

use super::compiled::{Hook, Hooks, Mutation, Policy};
use super::params;
use super::scope::{Facts, Scope};
use crate::admission::dynamic::matching::{Matcher, is_exempt, is_question};
use crate::admission::{Operation, Plugin, Request, Tools};
use crate::authz::Authorizer;
use crate::encoding;

pub(in crate::admission) struct MutatingAdmissionPolicy {
    tools: Tools,
    authorizers: Arc<[Arc<dyn Authorizer>]>,
    hooks: Hooks,
}

impl MutatingAdmissionPolicy {
    pub(in crate::admission) fn new(tools: &Tools) -> Self {
        let hooks = Hooks::new(
            Arc::clone(&tools.lister),
            "mutatingadmissionpolicies.admissionregistration.k8s.io",
            "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
        );
        MutatingAdmissionPolicy { authorizers: tools.authorizers.clone().into(), tools: tools.clone(), hooks }
    }
}

#[async_trait]
impl Plugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update)
            && !is_exempt(request)
            && !is_question(request)
            && !self.hooks.current().is_empty()
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let hooks = self.hooks.current();
        // What changed since each policy ran; those that want to see it run once more.
        let mut seen: Vec<Option<Value>> = Vec::with_capacity(hooks.len());
        for hook in hooks.iter() {
            if request.again && !wants_again(&hook.policy) {
                seen.push(None);
                continue;
            }
            let ran = self.run(hook, request).await?;
            seen.push((ran && wants_again(&hook.policy)).then(|| request.object.clone()));
        }
        for (hook, seen) in hooks.iter().zip(seen) {
            if seen.is_some_and(|seen| seen != request.object) {
                self.run(hook, request).await?;
            }
        }
        Ok(())
    }
}

fn wants_again(policy: &Policy) -> bool {
    policy.spec().str_at(&["reinvocationPolicy"]) == "IfNeeded"
}

impl MutatingAdmissionPolicy {
    /// Whether the policy is for this request.
    async fn run(&self, hook: &Hook, request: &mut Request) -> Result<bool, Status> {
        let policy = &hook.policy;
        let lister = self.tools.lister.as_ref();
        let fail = |request: &Request, binding: Option<&str>, why: String| {
            if policy.ignores_failures() { Ok(()) } else { Err(refusal(request, policy.name(), binding, &why)) }
        };
        let mut ran = false;
        match Matcher::of_policy(&policy.spec()["matchConstraints"]).matches(request, lister, false) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => return fail(request, None, format!("failed to configure policy: {error}")).map(|()| false),
        }
        for binding in &hook.bindings {
            let name = Some(binding.name());
            match Matcher::of_policy(&binding["spec"]["matchResources"]).matches(request, lister, true) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    fail(request, name, format!("failed to configure binding: {error}"))?;
                    continue;
                }
            }
            let params = match params::collect(&policy.object, binding, request, lister, &self.tools.own).await {
                Ok(params) => params,
                Err(why) => {
                    fail(request, name, format!("failed to configure binding: {why}"))?;
                    continue;
                }
            };
            for param in params {
                ran = true;
                let facts = Facts::new(request, lister, &self.authorizers);
                match mutate(policy, facts, param.as_deref(), &type_of(request)) {
                    Ok(Some(changed)) => request.object = changed,
                    Ok(None) => {}
                    Err(why) => fail(request, name, why)?,
                }
            }
        }
        Ok(ran)
    }
}

fn type_of(request: &Request) -> TypeRef {
    encoding::type_of(&request.gvk).unwrap_or_else(TypeRef::any)
}

/// The object as the policy would have it; `None` where its conditions do not hold.
fn mutate(policy: &Policy, mut facts: Facts, params: Option<&Value>, ty: &TypeRef) -> Result<Option<Value>, String> {
    if !Scope::new(&facts, params, &policy.variables).all_hold(&policy.conditions)? {
        return Ok(None);
    }
    for mutation in &policy.mutations {
        // Each mutation sees what those before it did, variables included.
        let mut object = facts.object.clone();
        match mutation {
            Mutation::Apply(expression) => {
                let scope = Scope::new(&facts, params, &policy.variables);
                let made = scope.evaluate(expression).map_err(|e| e.to_string())?;
                let applied = made.to_value().filter(|v| v.as_object().is_some()).ok_or_else(|| {
                    format!("unsupported return type from ApplyConfiguration expression: {}", made.type_name())
                })?;
                refuse_identity(&applied)?;
                strategic_merge(&mut object, applied, ty).map_err(|e| format!("error applying patch: {e}"))?;
            }
            Mutation::Patch(expression) => {
                let scope = Scope::new(&facts, params, &policy.variables);
                let made = scope.evaluate(expression).map_err(|e| e.to_string())?;
                let operations =
                    made.to_value().ok_or_else(|| "type of JSONPatch expression is not a list".to_owned())?;
                let text = serde_json::to_vec(&operations).map_err(|e| e.to_string())?;
                let patch = JsonPatch::parse(&text).map_err(|e| e.to_string())?;
                patch.apply(&mut object).map_err(|e| format!("JSON Patch: {e}"))?;
            }
        }
        facts.object = object;
    }
    Ok(Some(facts.object))
}

/// A policy may not make another object of the one that it is for.
fn refuse_identity(applied: &Value) -> Result<(), String> {
    for path in
        [&["apiVersion"] as &[&str], &["kind"], &["metadata", "name"], &["metadata", "namespace"], &["metadata", "uid"]]
    {
        if !applied.at(path).is_null() {
            return Err(format!("failed to apply patch: {} must not be set by an apply configuration", path.join(".")));
        }
    }
    Ok(())
}

fn refusal(request: &Request, policy: &str, binding: Option<&str>, why: &str) -> Status {
    let with = binding.map(|binding| format!(" with binding '{binding}'")).unwrap_or_default();
    let message = format!("policy '{policy}'{with} denied request: {why}");
    let mut status = request.forbidden(&message);
    (status.reason, status.code) = ("Invalid", 422);
    if let Some(details) = &mut status.details {
        details.causes.push(Cause { message, ..Cause::default() });
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::OwnObjects;
    use crate::admission::fixture::request;
    use crate::lister::fixture::MapLister;

    async fn run(spec: &str, object: &str) -> Result<String, String> {
        let lister = Arc::new(MapLister::default());
        let rules = r#""matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["pods"]}]}"#;
        let policy = format!(r#"{{"metadata":{{"name":"p"}},"spec":{{{rules},{spec}}}}}"#);
        let binding = r#"{"metadata":{"name":"b"},"spec":{"policyName":"p"}}"#;
        lister.put("mutatingadmissionpolicies.admissionregistration.k8s.io", serde_json::from_str(&policy).unwrap());
        lister.put(
            "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
            serde_json::from_str(binding).unwrap(),
        );
        let tools = Tools { lister, authorizers: Vec::new(), own: Arc::new(OwnObjects::default()) };
        let mut request = request(Operation::Create, "pods", object);
        let done = MutatingAdmissionPolicy::new(&tools).admit(&mut request).await;
        done.map_err(|e| e.to_string()).map(|()| serde_json::to_string(&request.object).unwrap())
    }

    const POD: &str =
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"image":"i","name":"c"}]}}"#;

    #[tokio::test]
    async fn configurations_are_merged_by_keys() {
        let spec = r#""mutations":[{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":"Object{spec: Object.spec{containers: [Object.spec.containers{name: 'c', tty: true}, Object.spec.containers{name: 'd', image: object.spec.containers[0].image}]}}"}}]"#;
        let got = run(spec, POD).await.unwrap();
        assert!(
            got.contains(r#"{"image":"i","name":"c","tty":true}"#) && got.contains(r#"{"image":"i","name":"d"}"#),
            "{got}"
        );
    }

    #[tokio::test]
    async fn patches_follow_one_another() {
        let spec = r#""mutations":[{"patchType":"JSONPatch","jsonPatch":{"expression":"[JSONPatch{op: 'add', path: '/metadata/labels', value: {'a': 'b'}}]"}},{"patchType":"JSONPatch","jsonPatch":{"expression":"[JSONPatch{op: 'replace', path: '/metadata/labels/a', value: object.metadata.labels.a + 'c'}]"}}]"#;
        let got = run(spec, POD).await.unwrap();
        assert!(got.contains(r#""labels":{"a":"bc"}"#), "{got}");
    }

    #[tokio::test]
    async fn a_failure_refuses() {
        let spec = r#""mutations":[{"patchType":"JSONPatch","jsonPatch":{"expression":"[JSONPatch{op: 'remove', path: '/spec/nope'}]"}}]"#;
        let refused = run(spec, POD).await.unwrap_err();
        assert!(
            refused.starts_with("pods \"a\" is forbidden: policy 'p' with binding 'b' denied request: JSON Patch: "),
            "{refused}"
        );
        assert!(run(&format!(r#""failurePolicy":"Ignore",{spec}"#), POD).await.is_ok());
    }
}
