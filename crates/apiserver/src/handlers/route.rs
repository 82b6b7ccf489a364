//! Finds the resource that a request is about, and whether it takes the verb.

use api::Subresource;
use apimachinery::status::{Details, Status};
use http::Method;

use super::Call;
use crate::resources::Resource;

/// What a request is about.
pub(crate) struct Target {
    pub resource: Resource,
    pub subresource: Option<&'static Subresource>,
}

/// # Errors
/// 404 for what is not served, 405 for a verb that it does not take.
pub(super) fn route(call: &Call) -> Result<Target, Status> {
    let info = &call.info;
    let resource = call.server.resources().get(&info.gvr).ok_or_else(Status::no_such_path)?;
    let def = resource.def;
    let named = !info.name.is_empty() && path_has_name(call);
    let in_namespace = !info.namespace.is_empty() && info.gvr.resource != "namespaces";
    // A namespaced object is reached through its namespace only; a cluster-scoped one never is.
    if in_namespace != def.is_namespaced() && (in_namespace || named) {
        return Err(Status::no_such_path());
    }
    let subresource = match info.subresource.as_str() {
        "" => None,
        name => Some(def.subresource(name).ok_or_else(Status::no_such_path)?),
    };
    if !info.rest.is_empty() && info.subresource != "proxy" {
        return Err(Status::no_such_path());
    }
    let verbs = subresource.map_or(&def.verbs, |s| &s.verbs);
    let verb = info.verb.as_str();
    // What stands behind a proxy may know methods for which there is no verb.
    let is_passed_on = info.subresource == "proxy" && call.parts.method == Method::OPTIONS;
    let taken = is_passed_on || verbs.iter().any(|v| v == verb);
    // Objects are created in a collection; everything below an object is posted to by name.
    let fits = match verb {
        "create" => subresource.is_some() || !named,
        "update" | "patch" | "get" | "delete" => named,
        _ => true,
    };
    let across_namespaces = def.is_namespaced() && !in_namespace && !matches!(verb, "list" | "watch");
    if !taken || !fits || across_namespaces {
        return Err(not_allowed());
    }
    Ok(Target { resource, subresource })
}

/// What clients of a deprecated resource are told.
#[must_use]
pub(crate) fn deprecation(target: &Target) -> Option<String> {
    if let Some(custom) = &target.resource.custom {
        return custom.deprecation.clone();
    }
    let gvr = &target.resource.def.gvr;
    match (gvr.group.as_str(), gvr.resource.as_str()) {
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+".to_owned()),
        ("", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned())
        }
        _ => None,
    }
}

/// The name of the request stands in its path, not only in a field selector.
fn path_has_name(call: &Call) -> bool {
    !matches!(call.info.verb.as_str(), "list" | "deletecollection") && !is_collection_watch(call)
}

fn is_collection_watch(call: &Call) -> bool {
    call.info.verb == "watch" && !call.info.path.split('/').any(|part| part == "watch")
}

#[must_use]
pub(super) fn not_allowed() -> Status {
    Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        .with_details(Details::default())
}
