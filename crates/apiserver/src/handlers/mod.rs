//! From a routed request to an answer: one module for each group of verbs.

mod decode;
mod listing;
pub(crate) mod negotiation;
pub(crate) mod patch;
mod read;
mod reply;
mod respond;
mod route;
mod table;
mod watch;
mod watch_frame;
mod write;

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::status::Status;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{Response, header};

use crate::attributes::{RequestInfo, UserInfo};
use crate::body::{Body, RequestBody};
use crate::gates;
use crate::query::Query;
use crate::registry::Part;
use crate::server::ApiServer;

pub(crate) use decode::{Decoded, body_encoding, decode, read_body};
pub(crate) use read::get;
pub(crate) use reply::{Coded, Reply};
pub(crate) use respond::{error_response, plain_value, respond};
pub(crate) use route::Target;
pub(crate) use table::of_one as table_of_one;
pub(crate) use write::{check_name, fit_namespace, patch, patch_part, update, write_of};

/// A request that was authenticated and authorized.
pub(crate) struct Call {
    pub server: ApiServer,
    pub parts: Parts,
    pub query: Query,
    pub info: Arc<RequestInfo>,
    pub user: Arc<UserInfo>,
    /// Where it comes from; `None`: from inside the process.
    pub remote: Option<IpAddr>,
    /// What the client should know besides the answer.
    pub warnings: Vec<String>,
}

impl Call {
    #[must_use]
    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    #[must_use]
    pub(crate) fn accept(&self) -> Option<&str> {
        self.header(header::ACCEPT)
    }

    /// What the client accepts of what this server has.
    #[must_use]
    pub(crate) fn accepts(&self) -> negotiation::Accept<'_> {
        negotiation::Accept { cbor: self.speaks_cbor(), ..self.accept().into() }
    }

    #[must_use]
    pub(crate) fn speaks_cbor(&self) -> bool {
        self.server.inner().config.feature_gates.enabled(gates::CBOR)
    }

    #[must_use]
    pub(crate) fn user_agent(&self) -> &str {
        self.header(header::USER_AGENT).unwrap_or_default()
    }

    #[must_use]
    pub(crate) fn is_pretty(&self) -> bool {
        self.query.get("pretty").is_some_and(|v| matches!(v, "1" | "true"))
    }
}

/// Answers a request for a resource.
pub(crate) async fn handle(mut call: Call, body: RequestBody) -> Response<Body> {
    let answered = answer(&mut call, body).await;
    let mut response = match answered {
        Ok(response) => response,
        Err(status) => error_response(&status, call.accepts()),
    };
    respond::add_warnings(&mut response, &call.warnings);
    response
}

fn answer(call: &mut Call, body: RequestBody) -> BoxFuture<'_, Result<Response<Body>, Status>> {
    Box::pin(by_verb(call, body))
}

async fn by_verb(call: &mut Call, body: RequestBody) -> Result<Response<Body>, Status> {
    let target = route::route(call)?;
    if let Some(warning) = route::deprecation(&target) {
        call.warnings.push(warning);
    }
    if target.subresource.is_some() {
        return Box::pin(crate::subresources::handle(call, target, body)).await;
    }
    if target.resource.cache.is_none() {
        return Box::pin(crate::subresources::handle_virtual(call, target, body)).await;
    }
    if target.resource.custom.is_some() {
        refuse_protobuf(call)?;
    }
    let verb = call.info.verb.clone();
    match verb.as_str() {
        "get" => read::get(call, &target).await,
        "list" => read::list(call, &target).await,
        "watch" => watch::watch(call, &target).await,
        "create" => write::create(call, &target, body).await,
        "update" => write::update(call, &target, Part::Main, body).await,
        "patch" => write::patch(call, &target, Part::Main, body).await,
        "delete" => write::delete(call, &target, body).await,
        "deletecollection" => write::delete_collection(call, &target, body).await,
        _ => Err(route::not_allowed()),
    }
}

/// Custom resources have no protobuf, but what stands for them (their metadata, a Status) has.
fn refuse_protobuf(call: &Call) -> Result<(), Status> {
    let accepted = negotiation::negotiate(call.accepts(), false)?;
    if accepted.encoding == negotiation::Encoding::Protobuf && matches!(accepted.form, negotiation::Form::Object) {
        return Err(negotiation::unacceptable(&["application/json", "application/yaml"]));
    }
    Ok(())
}
