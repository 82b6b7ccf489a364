//! What happens to every request, in this order:
//!
//! 1. request info: what is asked
//! 2. guards: a panic is this request's 500 alone; every request is measured
//! 3. authentication: who asks
//! 4. audit and traces: what comes in, and at the end what became of it
//! 5. impersonation: as whom
//! 6. a seat: so many requests at once, and each for so long
//! 7. authorization: may they
//! 8. deadline, then the handler: an aggregated server's, or body limits, decoding, admission, validation, registry, encoding

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use apimachinery::status::Status;
use component_base::flags::go_duration;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::aggregation;
use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::audit::{self, Record};
use crate::authn::{Outcome, ProxyCertificates, bearer_token};
use crate::authz::{self, Authorizer, Decision};
use crate::body::{Body, RequestBody};
use crate::flowcontrol::Flow;
use crate::handlers::{self, Call, error_response};
use crate::impersonation;
use crate::nonresource;
use crate::query::{Query, decode_path};
use crate::request_info::{is_long_running, request_info};
use crate::seats::{Full, Seat};
use crate::server::{ApiServer, Proved};
use crate::traces;

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
///
/// The future is moved several times before it is first polled, and each future holds those that it may wait for: the
/// larger ones of them are boxed here and below, so that what is moved stays small.
pub(crate) async fn serve(server: ApiServer, request: Request<RequestBody>, origin: Origin) -> Response<Body> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = Arc::new(request_info(&parts.method, &decode_path(parts.uri.path()), &query));
    let dry_run = query.get("dryRun").is_some();
    let accept = parts.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let audit_id = audit_id_of(&parts);

    let mut recorded = Recorded { id: audit_id.clone(), record: OnceLock::new() };
    let running = steps(server.clone(), parts, body, query, Arc::clone(&info), origin, &recorded);
    let ran = AssertUnwindSafe(running).catch_unwind().await;
    let mut response = match ran {
        Ok(answered) => {
            let response = answered.unwrap_or_else(|status| error_response(&status, accept.as_deref()));
            recorded.answered(response).await
        }
        Err(_) => {
            tracing::error!(path = info.path, verb = info.verb, "a request panicked");
            recorded.panicked().await;
            let message = "This request caused apiserver to panic. Look in the logs for details.";
            error_response(&Status::internal(message), accept.as_deref())
        }
    };
    response.headers_mut().insert(AUDIT_ID, audit_id);
    server.inner().measured.observe(&info, dry_run, response.status().as_u16(), started.elapsed());
    response
}

/// What is written down of a request, once somebody is known to have made it.
struct Recorded {
    id: HeaderValue,
    /// Empty too when all has been written down.
    record: OnceLock<Arc<Record>>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // The client went away before its answer; what it asked for may have been done all the same.
        if let Some(record) = self.record.take() {
            record.closed_early();
        }
    }
}

impl Recorded {
    fn begin(
        &self,
        server: &ApiServer,
        parts: &Parts,
        info: &Arc<RequestInfo>,
        user: &Arc<UserInfo>,
        remote: Option<std::net::IpAddr>,
    ) -> Option<Arc<Record>> {
        let audit = server.inner().audit.as_ref()?;
        audit.begin(parts, info, user, remote, self.id.to_str().unwrap_or_default())
    }

    async fn answered(&mut self, response: Response<Body>) -> Response<Body> {
        let Some(record) = self.record.get() else { return response };
        let response = Arc::clone(record).answered(response).await;
        self.record.take();
        response
    }

    async fn panicked(&mut self) {
        if let Some(record) = self.record.get() {
            record.panicked().await;
            self.record.take();
        }
    }
}

async fn steps(
    server: ApiServer,
    mut parts: Parts,
    body: RequestBody,
    query: Query,
    info: Arc<RequestInfo>,
    origin: Origin,
    recorded: &Recorded,
) -> Result<Response<Body>, Status> {
    let remote = match &origin {
        Origin::Remote(peer) => Some(peer.address.ip()),
        Origin::Local(_) => None,
    };
    let user = match authenticate(&server, &mut parts, origin).await {
        Ok(user) => user,
        Err(status) => {
            if let Some(record) = recorded.begin(&server, &parts, &info, &Arc::default(), remote) {
                record.refused(StatusCode::UNAUTHORIZED).await;
            }
            return Err(status);
        }
    };
    let audit_id = recorded.id.to_str().unwrap_or_default();
    let followed = server.inner().traces.as_ref().and_then(|t| t.follow(&parts, &info, &user, audit_id));
    let Some(record) = recorded.begin(&server, &parts, &info, &user, remote) else {
        let running = Box::pin(authenticated(server, parts, body, query, info, user, remote));
        return traces::within(followed, running).await;
    };
    let record = recorded.record.get_or_init(|| record);
    record.received().await?;
    let body = record.watch_body(&parts, body);
    let running = Box::pin(authenticated(server, parts, body, query, info, user, remote));
    record.during(traces::within(followed, running)).await
}

/// What follows once it is known who asks.
async fn authenticated(
    server: ApiServer,
    mut parts: Parts,
    body: RequestBody,
    query: Query,
    info: Arc<RequestInfo>,
    user: Arc<UserInfo>,
    remote: Option<std::net::IpAddr>,
) -> Result<Response<Body>, Status> {
    let authorizers = &server.inner().security.authorizers;
    let user = match impersonation::take_wanted(&mut parts.headers)? {
        Some(wanted) => {
            let gates = &server.inner().config.feature_gates;
            let user = impersonation::impersonate(authorizers, &user, &wanted, &info, gates).await?;
            audit::impersonates(&user);
            user
        }
        None => user,
    };
    let mutating = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let long_running = is_long_running(&info);
    let deadline = if long_running { None } else { Some(deadline_of(&query, server.inner().config.request_timeout)?) };
    let seat = if long_running {
        None
    } else {
        match server.inner().seats.take(mutating, &user, &info).await {
            Ok(seat) => Some(seat),
            Err(Full(flow)) => return Ok(told_of_flow(too_many_requests(), flow.as_deref())),
        }
    };
    let _counted = (!long_running).then(|| server.inner().measured.inflight(mutating));
    let call = Call { server: server.clone(), parts, query, info, user, remote, warnings: Vec::new() };
    let answered = seated(call, body, deadline).await;
    answered.map(|response| told_of_flow(response, seat.as_ref().and_then(Seat::flow)))
}

/// What follows once there is a seat.
async fn seated(call: Call, body: RequestBody, deadline: Option<Duration>) -> Result<Response<Body>, Status> {
    let asked = Attributes { user: Arc::clone(&call.user), request: Arc::clone(&call.info) };
    authorize(&call.server.inner().security.authorizers, &asked).await?;
    let backend = call.server.inner().aggregator.backend_of(&call.info.path);
    within(deadline, async {
        if let Some(backend) = backend {
            Box::pin(aggregation::proxy::handle(call, &backend, body)).await
        } else if call.info.is_resource && call.server.resources().answers_for(&call.info.gvr) {
            handlers::handle(call, body).await
        } else {
            Box::pin(nonresource::handle(call, body)).await
        }
    })
    .await
}

async fn authorize(authorizers: &[Arc<dyn Authorizer>], asked: &Attributes) -> Result<(), Status> {
    let verdict = authz::judge(authorizers, asked).await;
    let allowed = verdict.decision == Decision::Allow;
    audit::annotate("authorization.k8s.io/decision", if allowed { "allow" } else { "forbid" });
    audit::annotate("authorization.k8s.io/reason", &verdict.reason);
    if allowed { Ok(()) } else { Err(authz::forbidden(&asked.user, &asked.request, &verdict.reason)) }
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
    let anonymous = server.inner().security.anonymous.user(&decode_path(parts.uri.path()));
    anonymous.filter(|_| !failed).map(Arc::new).ok_or_else(Status::unauthorized)
}

/// Tells a client how priority and fairness sorted its request.
fn told_of_flow(mut response: Response<Body>, flow: Option<&Flow>) -> Response<Body> {
    const SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
    const LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
    if let Some(flow) = flow {
        for (name, uid) in [(SCHEMA, &flow.schema_uid), (LEVEL, &flow.level_uid)] {
            if let Ok(uid) = HeaderValue::from_str(uid) {
                response.headers_mut().insert(name, uid);
            }
        }
    }
    response
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture;

    /// The codes and messages that are written down when a request ends so.
    async fn written(end: impl AsyncFnOnce(Recorded)) -> Vec<(i64, String)> {
        let (record, kept) = fixture::record();
        end(Recorded { id: HeaderValue::from_static("id"), record: OnceLock::from(record) }).await;
        while kept.events().is_empty() {
            tokio::task::yield_now().await;
        }
        let status = |event: serde_json::Value| event["responseStatus"].clone();
        let told = kept.events().into_iter().map(status);
        told.map(|s| (s["code"].as_i64().unwrap(), s["message"].as_str().unwrap_or_default().to_owned())).collect()
    }

    #[tokio::test]
    async fn a_request_is_written_down_though_its_client_goes_away() {
        let went_away = written(async |recorded| drop(recorded)).await;
        assert_eq!(went_away, [(200, "Connection closed early".to_owned())]);
        let answered = written(async |mut recorded| {
            recorded.answered(Response::new(Body::Empty)).await;
        });
        assert_eq!(answered.await, [(200, String::new())]);
        let panicked = written(async |mut recorded| recorded.panicked().await).await;
        assert_eq!(panicked, [(500, String::new())]);
    }
}
