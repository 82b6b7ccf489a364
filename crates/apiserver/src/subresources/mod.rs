//! Subresources: views of an object, parts of it, and what is done with it.

use apimachinery::status::Status;
use http::Response;

use crate::body::{Body, RequestBody};
use crate::handlers::{Call, Target, get, patch, update};

/// Answers a request for a subresource.
///
/// # Errors
/// What the subresource has against it.
pub(crate) async fn handle(call: &mut Call, target: Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let name = target.subresource.map_or("", |s| s.name.as_str());
    match (name, call.info.verb.as_str()) {
        ("status", "get") => get(call, &target).await,
        ("status", "update") => update(call, &target, body).await,
        ("status", "patch") => patch(call, &target, body).await,
        _ => Err(Status::no_such_path()),
    }
}
