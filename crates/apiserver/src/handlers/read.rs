//! Get and list.

use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::status::Status;
use http::{Response, StatusCode};

use super::reply::{Coded, Listing, Reply};
use super::{Call, Target, negotiation, respond};
use crate::body::Body;
use crate::cache::selection::Selection;
use crate::registry::{ListOptions, Stored};

pub(crate) async fn get(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let version = call.query.get("resourceVersion").unwrap_or_default();
    let registry = call.server.registry();
    let object = registry.get(&target.resource, &call.info.namespace, &call.info.name, version).await?;
    let stored = Stored::of(&object);
    let reply = Reply::Stored { resource: &target.resource, stored };
    respond::respond(call, accepted, Coded { code: StatusCode::OK, reply }).await
}

pub(super) async fn list(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let options = ListOptions::parse(&call.query, false)?;
    let selection = selection(call, target, &options)?;
    match call.server.registry().list(&target.resource, &selection, &options).await {
        Ok(result) => {
            let reply = Reply::List(Listing { resource: &target.resource, result });
            respond::respond(call, accepted, Coded { code: StatusCode::OK, reply }).await
        }
        Err(failure) => {
            let mut status = failure.status.to_value();
            let code = StatusCode::from_u16(failure.status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            match failure.continue_token {
                None => Err(failure.status),
                Some(token) => {
                    status.set(&["metadata", "continue"], token);
                    Ok(respond::plain_value(&status, code, accepted.encoding))
                }
            }
        }
    }
}

/// What a list, a watch or a deletecollection selects.
pub(super) fn selection(call: &Call, target: &Target, options: &ListOptions) -> Result<Selection, Status> {
    let bad = |e: &dyn std::fmt::Display| Status::bad_request(e.to_string());
    let labels = LabelSelector::parse(&options.label_selector).map_err(|e| bad(&e))?;
    let fields = FieldSelector::parse(&options.field_selector).map_err(|e| bad(&e))?;
    let namespace = call.info.namespace.as_str();
    let in_namespace = !namespace.is_empty() && target.resource.def.is_namespaced();
    // The deprecated watch of one object has its name in the path.
    let name = (call.info.verb == "watch" && !call.info.name.is_empty()).then_some(call.info.name.as_str());
    let selection = Selection::new(in_namespace.then_some(namespace), name, labels);
    let shape = &target.resource.stored().shape;
    if let Some(custom) = &target.resource.custom {
        // All versions share a cache, but not what they can be selected by.
        let own: Vec<&str> = custom.selectable.iter().map(String::as_str).collect();
        return selection.with_some_fields(shape, &fields, &|field| own.contains(&field)).map_err(|e| bad(&e));
    }
    selection.with_fields(shape, &fields).map_err(|e| bad(&e))
}
