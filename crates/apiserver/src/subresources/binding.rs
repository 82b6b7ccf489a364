//! `binding`: a pod gets its node.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use http::Response;

use super::{answer_created, decoded_body};
use crate::admission::Operation;
use crate::body::{Body, RequestBody};
use crate::handlers::{Call, Target, fit_namespace, write_of};
use crate::registry::{Part, Preconditions, Rules, WriteKind, WriteOptions, timestamp};

/// `pods/NAME/binding`, and `bindings`, where the binding names the pod.
pub(super) async fn bind(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let mut binding = decoded_body(call, target, body).await?;
    let options = WriteOptions::parse(&call.query, WriteKind::Create, call.user_agent())?;
    let pods = Gvr::new("", "v1", "pods");
    let resource = call.server.resources().get(&pods).ok_or_else(Status::no_such_path)?;
    let mut write = write_of(call, target, options);
    fit_namespace(&mut binding, &write)?;
    if target.subresource.is_some() && binding.name() != write.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    write.name = binding.name().into();
    let registry = Arc::clone(call.server.registry());
    let mut request = write.admission_request(Operation::Create, binding, Value::Null);
    registry.admission.admit(&mut request).await?;
    check(&request.object)?;
    registry.admission.validate(&mut request).await?;
    call.warnings.append(&mut request.warnings);

    let binding = request.object;
    write.resource = resource;
    let text = |field: &str| binding.str_at(&["metadata", field]).to_owned();
    let preconditions = Preconditions { uid: Some(text("uid")).filter(|u| !u.is_empty()), resource_version: None };
    let version = text("resourceVersion");
    let change = |pod: &Value| assigned(pod, &binding, &version);
    registry.update(&mut write, Part::Other(&Assignment), &preconditions, false, &change).await?;
    answer_created(call).await
}

/// Upstream gives the findings as they are, without a reason or details.
fn check(binding: &Value) -> Result<(), Status> {
    let mut errs = FieldErrors::new();
    let target = Cursor::root(binding).field("target");
    let kind = target.field("kind");
    if !matches!(kind.as_str(), None | Some("" | "Node")) {
        errs.not_supported(&kind, &["Node", "<empty>"]);
    }
    if target.str_at(&["name"]).is_empty() {
        errs.required(&target.path.child("name"), "");
    }
    let texts: Vec<String> = errs.0.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [] => Ok(()),
        [one] => Err(Status::new(500, "", one.clone())),
        many => Err(Status::new(500, "", format!("[{}]", many.join(", ")))),
    }
}

/// The pod on its node.
fn assigned(pod: &Value, binding: &Value, version: &str) -> Result<Value, Status> {
    let name = pod.name();
    let conflict = |why: String| Err(Status::conflict(&Gvr::new("", "v1", "pods/binding"), name, &why));
    if pod.is_deleting() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = pod.str_at(&["spec", "nodeName"]);
    if !node.is_empty() {
        return conflict(format!("pod {name} is already assigned to node {node:?}"));
    }
    if !pod.at(&["spec", "schedulingGates"]).items().is_empty() {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    if !version.is_empty() {
        pod.set(&["metadata", "resourceVersion"], version);
    }
    pod.set(&["spec", "nodeName"], binding.str_at(&["target", "name"]));
    for (key, value) in binding.meta("annotations").entries() {
        pod.set(&["metadata", "annotations", key], value.clone());
    }
    for (key, value) in binding.meta("labels").entries() {
        pod.set_default(&["metadata", "labels", key], value.clone());
    }
    set_condition(
        &mut pod,
        Value::from([
            ("type", "PodScheduled".into()),
            ("status", "True".into()),
            ("lastProbeTime", Value::Null),
            ("lastTransitionTime", timestamp().into()),
        ]),
    );
    Ok(pod)
}

/// Puts a condition in the place of the one of its type; its transition time is kept when its status is.
pub(super) fn set_condition(pod: &mut Value, mut condition: Value) {
    let conditions = pod.entry(&["status", "conditions"]).make_array();
    let kind = condition.str_at(&["type"]).to_owned();
    match conditions.iter_mut().find(|c| c.str_at(&["type"]) == kind) {
        Some(before) => {
            if before["status"] == condition["status"] {
                condition.set(&["lastTransitionTime"], before["lastTransitionTime"].clone());
            }
            *before = condition;
        }
        None => conditions.push(condition),
    }
}

/// Only the server itself makes this change; nothing of it is the client's.
pub(super) struct Assignment;

impl Rules for Assignment {
    fn prepare(&self, _: &mut Value, _: &Value) {}

    fn validate(&self, _: &Value, _: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    fn is_admitted(&self) -> bool {
        false
    }

    fn raises_generation(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_pod_is_assigned_once() {
        let binding = json(r#"{"metadata":{"name":"p","annotations":{"x":"y"}},"target":{"kind":"Node","name":"n1"}}"#);
        check(&binding).unwrap();
        let pod = assigned(&json(r#"{"metadata":{"name":"p"}}"#), &binding, "").unwrap();
        assert_eq!(pod.str_at(&["spec", "nodeName"]), "n1");
        assert_eq!(pod.annotation("x"), Some("y"));
        assert_eq!(
            assigned(&pod, &binding, "").unwrap_err().message,
            r#"Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n1""#
        );
    }

    #[test]
    fn a_binding_needs_a_node() {
        assert_eq!(check(&json(r#"{"target":{}}"#)).unwrap_err().message, "target.name: Required value");
    }
}
