//! Subresources: views of an object, parts of it, and what is done with it.

mod binding;
mod component_status;
mod eviction;
mod parts;
mod reviews;
mod scale;

use apimachinery::Value;
use apimachinery::status::Status;
use http::{Response, StatusCode};

use crate::body::{Body, RequestBody};
use crate::handlers::{
    Call, Coded, Decoded, Reply, Target, body_encoding, decode, get, negotiation, patch, read_body, respond, update,
};

/// Answers a request for a subresource.
///
/// # Errors
/// What the subresource has against it.
pub(crate) async fn handle(call: &mut Call, target: Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let name = target.subresource.map_or("", |s| s.name.as_str());
    match (name, call.info.verb.as_str()) {
        ("status" | "approval" | "ephemeralcontainers" | "resize", "get") => get(call, &target).await,
        ("status" | "approval" | "ephemeralcontainers" | "resize" | "finalize", "update") => {
            update(call, &target, parts::part_of(name), body).await
        }
        ("status" | "approval" | "ephemeralcontainers" | "resize", "patch") => {
            patch(call, &target, parts::part_of(name), body).await
        }
        ("scale", verb) => scale::handle(call, &target, verb.to_owned().as_str(), body).await,
        ("binding", "create") => binding::bind(call, &target, body).await,
        ("eviction", "create") => eviction::evict(call, &target, body).await,
        ("token", "create") => reviews::token(call, &target, body).await,
        ("log" | "exec" | "attach" | "portforward" | "proxy", _) => crate::proxy::handle(call, &target, body).await,
        _ => Err(Status::no_such_path()),
    }
}

/// Answers a request for a resource that is not stored.
///
/// # Errors
/// What the resource has against it.
pub(crate) async fn handle_virtual(
    call: &mut Call,
    target: Target,
    body: RequestBody,
) -> Result<Response<Body>, Status> {
    let resource = target.resource.def.gvr.resource.as_str();
    match (resource, call.info.verb.as_str()) {
        ("bindings", "create") => binding::bind(call, &target, body).await,
        ("componentstatuses", "list") => component_status::list(call, &target).await,
        ("componentstatuses", "get") => component_status::get(call, &target).await,
        (_, "create") => reviews::review(call, &target, body).await,
        _ => Err(Status::no_such_path()),
    }
}

/// Reads a body that must be of the subresource's own kind.
async fn decoded_body(call: &mut Call, target: &Target, body: RequestBody) -> Result<Value, Status> {
    let encoding = body_encoding(call)?;
    let bytes = read_body(body).await?;
    let gvk = target.subresource.map_or_else(|| target.resource.def.gvk(), |s| s.gvk.clone());
    let Decoded { object, mut warnings } = decode(&bytes, encoding, &gvk, crate::registry::FieldValidation::Warn)?;
    call.warnings.append(&mut warnings);
    Ok(object)
}

async fn answer_value(call: &Call, value: Value, code: StatusCode) -> Result<Response<Body>, Status> {
    let accepts = negotiation::Accept { no_table: true, ..call.accepts() };
    let accepted = negotiation::negotiate(accepts, call.is_pretty())?;
    respond(call, accepted, Coded { code, reply: Reply::Value(value) }).await
}

/// `Success`, as a POST that makes no object is answered.
async fn answer_created(call: &Call) -> Result<Response<Body>, Status> {
    let status = Value::from([
        ("kind", "Status".into()),
        ("apiVersion", "v1".into()),
        ("metadata", Value::object()),
        ("status", "Success".into()),
        ("code", 201.into()),
    ]);
    answer_value(call, status, StatusCode::CREATED).await
}
