//! What happens to every request, in this order:
//!
//! 1. request info: what is asked
//! 2. guards: a panic is this request's 500 alone; every request is measured
//! 3. authentication: who asks
//! 4. impersonation: as whom
//! 5. a seat: so many requests at once, and each for so long
//! 6. authorization: may they
//! 7. deadline, then the handler: body limits, decoding, admission, validation, registry, encoding

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::status::Status;
use component_base::flags::go_duration;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::authn::{Outcome, ProxyCertificates, bearer_token};
use crate::authz;
use crate::body::{Body, RequestBody};
use crate::handlers::{self, Call, error_response};
use crate::impersonation;
use crate::nonresource;
use crate::query::{Query, decode_path};
use crate::request_info::{is_long_running, request_info};
use crate::seats::Full;
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
    let remote = match &origin {
        Origin::Remote(peer) => Some(peer.address.ip()),
        Origin::Local(_) => None,
    };
    let user = authenticate(&server, &mut parts, origin).await?;
    let authorizers = &server.inner().security.authorizers;
    let user = match impersonation::take_wanted(&mut parts.headers)? {
        Some(wanted) => {
            let gates = &server.inner().config.feature_gates;
            impersonation::impersonate(authorizers, &user, &wanted, &info, gates).await?
        }
        None => user,
    };
    let mutating = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let long_running = is_long_running(&info);
    let deadline = if long_running { None } else { Some(deadline_of(&query, server.inner().config.request_timeout)?) };
    let _seat = if long_running || is_exempt(&user, &info) {
        None
    } else {
        match server.inner().seats.take(mutating).await {
            Ok(seat) => Some(seat),
            Err(Full) => return Ok(too_many_requests()),
        }
    };
    let _counted = (!long_running).then(|| server.inner().measured.inflight(mutating));
    let asked = Attributes { user: Arc::clone(&user), request: Arc::clone(&info) };
    authz::decide(authorizers, &asked).await?;
    let call = Call { server, parts, query, info, user, remote, warnings: Vec::new() };
    within(deadline, async {
        if call.info.is_resource && call.server.resources().answers_for(&call.info.gvr) {
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
    if let Some(certificates) = &peer.proved.proxy {
        parts.extensions.insert(ProxyCertificates(certificates.clone()));
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

/// The operator's own requests, and questions about the server's health, are answered however busy it is.
fn is_exempt(user: &UserInfo, info: &RequestInfo) -> bool {
    let is_probe = ["/healthz", "/livez", "/readyz"].iter().any(|path| info.path.starts_with(path));
    user.is_in("system:masters") || (!info.is_resource && is_probe)
}

fn too_many_requests() -> Response<Body> {
    let text = "Too many requests, please try again later.\n";
    let mut response = nonresource::text(StatusCode::TOO_MANY_REQUESTS, text.to_owned());
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// How long a request may take: as long as its client says, but no longer than `most`.
///
/// # Errors
/// 400 for a timeout that is no duration.
fn deadline_of(query: &Query, most: Duration) -> Result<Duration, Status> {
    match query.get("timeout").filter(|timeout| !timeout.is_empty()) {
        None => Ok(most),
        Some(timeout) => match go_duration(timeout) {
            Ok(Duration::ZERO) => Ok(most),
            Ok(timeout) => Ok(timeout.min(most)),
            Err(why) => Err(Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))),
        },
    }
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
