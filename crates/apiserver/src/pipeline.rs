//! What happens to every request, in this order:
//!
//! 1. request info: what is asked
//! 2. guards: a panic is this request's 500 alone; every request is measured
//! 3. authentication: who asks
//! 4. impersonation: as whom
//! 5. a seat: so many requests at once
//! 6. authorization: may they
//! 7. deadline, then the handler: body limits, decoding, admission, validation, registry, encoding

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::status::Status;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response};

use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::authn::{Outcome, bearer_token};
use crate::authz::Decision;
use crate::body::{Body, RequestBody};
use crate::handlers::{self, Call, error_response};
use crate::nonresource;
use crate::query::{Query, decode_path};
use crate::request_info::{is_long_running, request_info};
use crate::server::{ApiServer, Proved};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Where a request comes from.
#[derive(Clone)]
pub(crate) enum Origin {
    Remote(Arc<Peer>),
    /// From inside the process; this is who asks.
    Local(Arc<UserInfo>),
}

/// The other end of a connection.
pub(crate) struct Peer {
    pub address: SocketAddr,
    pub(crate) proved: Proved,
}

/// Answers a request. Never fails: what goes wrong is an answer too.
pub(crate) async fn serve(server: ApiServer, request: Request<RequestBody>, origin: Origin) -> Response<Body> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = Arc::new(request_info(&parts.method, &decode_path(parts.uri.path()), &query));
    let dry_run = query.get("dryRun").is_some();
    let accept = parts.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let audit_id = audit_id_of(&parts);

    let running = steps(server.clone(), parts, body, query, Arc::clone(&info), origin);
    let mut response = match AssertUnwindSafe(running).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => error_response(&status, accept.as_deref()),
        Err(_) => {
            tracing::error!(path = info.path, verb = info.verb, "a request panicked");
            let message = "This request caused apiserver to panic. Look in the logs for details.";
            error_response(&Status::internal(message), accept.as_deref())
        }
    };
    response.headers_mut().insert(AUDIT_ID, audit_id);
    server.inner().measured.observe(&info, dry_run, response.status().as_u16(), started.elapsed());
    response
}

async fn steps(
    server: ApiServer,
    mut parts: Parts,
    body: RequestBody,
    query: Query,
    info: Arc<RequestInfo>,
    origin: Origin,
) -> Result<Response<Body>, Status> {
    let user = authenticate(&server, &mut parts, origin).await?;
    let mutating = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let long_running = is_long_running(&info);
    let _seat = (!long_running).then(|| server.inner().measured.inflight(mutating));
    authorize(&server, &user, &info).await?;
    let deadline = if long_running { None } else { Some(server.inner().config.request_timeout) };
    let call = Call { server, parts, query, info, user, warnings: Vec::new() };
    within(deadline, async {
        if call.info.is_resource && call.server.resources().has_group_version(&call.info.gvr.group_version()) {
            handlers::handle(call, body).await
        } else {
            nonresource::handle(call, body).await
        }
    })
    .await
}

async fn authenticate(server: &ApiServer, parts: &mut Parts, origin: Origin) -> Result<Arc<UserInfo>, Status> {
    let peer = match origin {
        Origin::Local(user) => return Ok(user),
        Origin::Remote(peer) => peer,
    };
    if let Some(certificates) = &peer.proved.client {
        parts.extensions.insert(certificates.clone());
    }
    // Credentials that nobody accepts are not the same as none.
    let mut failed = peer.proved.unknown || bearer_token(parts).is_some();
    for authenticator in &server.inner().security.authenticators {
        match authenticator.authenticate(parts).await {
            Outcome::User(authenticated) => return Ok(Arc::new(authenticated.user)),
            Outcome::Pass => {}
            Outcome::Failed(why) => {
                tracing::debug!(why, "credentials were refused");
                failed = true;
            }
        }
    }
    if failed { Err(Status::unauthorized()) } else { Ok(Arc::new(anonymous())) }
}

fn anonymous() -> UserInfo {
    UserInfo { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..UserInfo::default() }
}

async fn authorize(server: &ApiServer, user: &Arc<UserInfo>, info: &Arc<RequestInfo>) -> Result<(), Status> {
    let attributes = Attributes { user: Arc::clone(user), request: Arc::clone(info) };
    let mut reasons = Vec::new();
    for authorizer in &server.inner().security.authorizers {
        let verdict = authorizer.authorize(&attributes).await;
        match verdict.decision {
            Decision::Allow => return Ok(()),
            Decision::Deny => {
                reasons = vec![verdict.reason];
                break;
            }
            Decision::NoOpinion => reasons.push(verdict.reason),
        }
    }
    reasons.retain(|r| !r.is_empty());
    Err(forbidden(user, info, &reasons.join(", ")))
}

fn forbidden(user: &UserInfo, info: &RequestInfo, reason: &str) -> Status {
    let (name, verb) = (&user.name, &info.verb);
    let mut why = if info.is_resource {
        let gvr = &info.gvr;
        let mut resource = gvr.resource.to_string();
        if !info.subresource.is_empty() {
            resource = format!("{resource}/{}", info.subresource);
        }
        let what = format!("User {name:?} cannot {verb} resource {resource:?} in API group {:?}", gvr.group.as_str());
        if info.namespace.is_empty() {
            format!("{what} at the cluster scope")
        } else {
            format!("{what} in the namespace {:?}", info.namespace)
        }
    } else {
        format!("User {name:?} cannot {verb} path {:?}", info.path)
    };
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    Status::forbidden(&info.gvr, &info.name, &why)
}

async fn within(
    deadline: Option<Duration>,
    answer: impl Future<Output = Response<Body>>,
) -> Result<Response<Body>, Status> {
    let Some(deadline) = deadline else { return Ok(answer.await) };
    tokio::time::timeout(deadline, answer)
        .await
        .map_err(|_| Status::timeout("Timeout: request did not complete within the allotted timeout", 0))
}

/// The client's own id for the request, if it has a sane one, else a new one.
fn audit_id_of(parts: &Parts) -> HeaderValue {
    let given = parts.headers.get(AUDIT_ID).filter(|v| !v.is_empty() && v.len() <= 64);
    given.cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().to_string();
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}
