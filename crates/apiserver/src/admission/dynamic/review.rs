//! A request as policies and webhooks see it: the `AdmissionRequest`.

use apimachinery::Value;
use apimachinery::meta::{Gvk, Gvr};

use super::matching::operation_name;
use crate::admission::{Operation, Request};

/// The request without its objects.
pub(in crate::admission) fn request_value(request: &Request) -> Value {
    let kind = |gvk: &Gvk| {
        Value::from([
            ("group", gvk.group.as_str().into()),
            ("version", gvk.version.as_str().into()),
            ("kind", gvk.kind.as_str().into()),
        ])
    };
    let resource = |gvr: &Gvr| {
        Value::from([
            ("group", gvr.group.as_str().into()),
            ("version", gvr.version.as_str().into()),
            ("resource", gvr.resource.as_str().into()),
        ])
    };
    let mut value = Value::from([
        ("kind", kind(&request.gvk)),
        ("resource", resource(&request.gvr)),
        ("requestKind", kind(&request.gvk)),
        ("requestResource", resource(&request.gvr)),
        ("name", request.name.as_str().into()),
        ("namespace", request.namespace.as_str().into()),
        ("operation", operation_name(request.operation).into()),
        ("userInfo", request.user.value()),
        ("dryRun", request.dry_run.into()),
    ]);
    if !request.subresource.is_empty() {
        value.set(&["subResource"], request.subresource.as_str());
        value.set(&["requestSubResource"], request.subresource.as_str());
    }
    value.set(&["options"], options_of(request));
    value
}

/// `CreateOptions` and its like, with their kind.
fn options_of(request: &Request) -> Value {
    let kind = match request.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = if request.options.is_null() { Value::object() } else { request.options.clone() };
    options.set_default(&["kind"], kind);
    options.set_default(&["apiVersion"], "meta.k8s.io/v1");
    options
}

/// The object with its kind, as somebody outside needs it.
pub(in crate::admission) fn object_value(request: &Request, object: &Value) -> Value {
    if object.is_null() {
        return Value::Null;
    }
    let mut object = object.clone();
    object.set_default(&["kind"], request.gvk.kind.as_str());
    object.set_default(&["apiVersion"], request.gvk.group_version().to_string());
    object
}
