//! Traces of requests, told to a collector by OpenTelemetry's protocol (KEP-647).
//!
//! Some requests are followed: those of a share that the configuration names, and those whose caller follows them already
//! and is trusted to say so. A request has a span; what it asks of the store is a span within. Nothing waits for the
//! collector: what it does not take is lost.

mod config;
mod context;
mod export;
mod store;

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use apimachinery::status::Status;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use rand::RngExt;
use tokio::sync::mpsc;

use crate::attributes::{RequestInfo, UserInfo};

pub(crate) use config::Settings;
use context::Context;
pub(crate) use export::Teller;
pub(crate) use store::Traced;

/// So many spans wait to be told.
const QUEUE: usize = 2048;
/// Who may say that a request is part of a trace of theirs.
const TRUSTED: &[&str] = &["system:masters", "system:monitoring"];
const TRACEPARENT: &str = "traceparent";

tokio::task_local! {
    /// What the current request is part of.
    static CURRENT: Current;
}

#[derive(Clone)]
struct Current {
    traces: Arc<Traces>,
    context: Context,
}

pub(crate) struct Traces {
    sender: mpsc::Sender<Span>,
    /// Of a million requests, so many are followed.
    rate: u32,
}

/// What one part of a request took.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    context: Context,
    parent: Option<[u8; 8]>,
    /// Another trace that has to do with it.
    link: Option<Context>,
    name: String,
    is_request: bool,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<(&'static str, String)>,
    status_code: Option<u16>,
    failed: bool,
}

/// A request that is followed.
pub(crate) struct Followed {
    traces: Arc<Traces>,
    span: Span,
}

impl Traces {
    /// And what tells a collector of what is followed.
    ///
    /// # Errors
    /// When the endpoint is none.
    pub(crate) fn new(settings: &Settings) -> Result<(Arc<Self>, Teller), String> {
        let (sender, spans) = mpsc::channel(QUEUE);
        Ok((Arc::new(Traces { sender, rate: settings.rate }), Teller::new(settings.channel()?, spans)))
    }

    /// Begins to follow a request, if it is one to be followed.
    pub(crate) fn follow(
        self: &Arc<Self>,
        parts: &Parts,
        info: &RequestInfo,
        user: &UserInfo,
        audit_id: &str,
    ) -> Option<Followed> {
        let given = parts.headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(Context::parse);
        let span = rand::rng().random();
        let (context, parent, link) = match given {
            Some((caller, sampled)) if TRUSTED.iter().any(|group| user.is_in(group)) => {
                sampled.then_some((Context { span, ..caller }, Some(caller.span), None))?
            }
            given => {
                let context = Context { trace: rand::rng().random(), span };
                context.is_among(self.rate).then_some((context, None, given.map(|(caller, _)| caller)))?
            }
        };
        let mut attributes = vec![
            ("http.request.method", parts.method.to_string()),
            ("url.path", info.path.clone()),
            ("audit-id", audit_id.to_owned()),
        ];
        let agent = parts.headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok());
        attributes.extend(agent.map(|agent| ("user_agent.original", agent.to_owned())));
        let span = Span { parent, link, is_request: true, ..Span::begin(context, name_of(parts, info), attributes) };
        Some(Followed { traces: Arc::clone(self), span })
    }

    fn tell(&self, mut span: Span) {
        span.end = SystemTime::now();
        // Full: the collector is slow or away.
        let _ = self.sender.try_send(span);
    }
}

impl Span {
    fn begin(context: Context, name: String, attributes: Vec<(&'static str, String)>) -> Self {
        let start = SystemTime::now();
        Span {
            context,
            parent: None,
            link: None,
            name,
            is_request: false,
            start,
            end: start,
            attributes,
            status_code: None,
            failed: false,
        }
    }
}

/// Runs a request, followed or not.
pub(crate) async fn within<T>(
    followed: Option<Followed>,
    running: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let Some(Followed { traces, mut span }) = followed else { return running.await };
    let current = Current { traces: Arc::clone(&traces), context: span.context };
    let answered = CURRENT.scope(current, running).await;
    let code = answered.as_ref().map_or_else(|status| status.code, |response| response.status().as_u16());
    span.status_code = Some(code);
    span.failed = code >= StatusCode::INTERNAL_SERVER_ERROR.as_u16();
    traces.tell(span);
    answered
}

/// Runs a part of a request; one that is not followed costs nothing more.
async fn part<T, E>(
    name: &str,
    attributes: impl FnOnce() -> Vec<(&'static str, String)>,
    running: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Ok(Current { traces, context }) = CURRENT.try_with(Clone::clone) else { return running.await };
    let own = Context { span: rand::rng().random(), ..context };
    let mut span = Span { parent: Some(context.span), ..Span::begin(own, name.to_owned(), attributes()) };
    let done = running.await;
    span.failed = done.is_err();
    traces.tell(span);
    done
}

/// Tells whoever is asked for the sake of the current request that it is followed.
pub(crate) fn pass_on(headers: &mut HeaderMap) {
    let value = CURRENT.try_with(|current| HeaderValue::from_str(&current.context.to_string()));
    if let Ok(Ok(value)) = value {
        headers.insert(TRACEPARENT, value);
    }
}

/// Upstream's name of a request's span.
fn name_of(parts: &Parts, info: &RequestInfo) -> String {
    let method = &parts.method;
    if !info.is_resource {
        return method.to_string();
    }
    let gvr = &info.gvr;
    let mut path = if gvr.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", gvr.group) };
    path.push_str(&format!("/{}", gvr.version));
    if !info.namespace.is_empty() {
        path.push_str("/namespaces/{:namespace}");
    }
    path.push_str(&format!("/{}", gvr.resource));
    if !info.name.is_empty() {
        path.push_str("/{:name}");
    }
    if !info.subresource.is_empty() {
        path.push_str(&format!("/{}", info.subresource));
    }
    format!("{method} {path}")
}

#[cfg(test)]
mod tests {
    use http::{Method, Request};

    use super::*;
    use crate::query::Query;
    use crate::request_info::request_info;

    fn follower(rate: u32) -> (Arc<Traces>, mpsc::Receiver<Span>) {
        let (sender, spans) = mpsc::channel(8);
        (Arc::new(Traces { sender, rate }), spans)
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    async fn run(traces: &Arc<Traces>, parent: &str, group: &str) {
        let request = Request::get("/api/v1/namespaces/n/pods/p").header(TRACEPARENT, parent).body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let info = request_info(&Method::GET, parts.uri.path(), &Query::parse(""));
        let user = UserInfo { groups: vec![group.to_owned()], ..UserInfo::default() };
        let running = async {
            part("Get etcd3", || vec![("key", "/k".to_owned())], async { Ok(()) }).await?;
            Ok(Response::new(()))
        };
        let answered = within(traces.follow(&parts, &info, &user, "a"), running).await;
        assert!(answered.is_ok());
    }

    #[tokio::test]
    async fn a_trace_goes_on_where_its_caller_is_trusted() {
        let (traces, mut spans) = follower(0);
        run(&traces, PARENT, "system:masters").await;
        let (inner, outer) = (spans.recv().await.unwrap(), spans.recv().await.unwrap());
        let (caller, _) = Context::parse(PARENT).unwrap();
        assert_eq!((outer.context.trace, outer.parent, outer.link), (caller.trace, Some(caller.span), None));
        assert_eq!((inner.context.trace, inner.parent), (caller.trace, Some(outer.context.span)));
        assert_eq!(outer.name, "GET /api/v1/namespaces/{:namespace}/pods/{:name}");
        assert_eq!((outer.status_code, inner.name.as_str()), (Some(200), "Get etcd3"));
        run(&traces, &PARENT.replace("-01", "-00"), "system:masters").await;
        run(&traces, PARENT, "dev").await;
        assert!(spans.try_recv().is_err(), "not followed");
    }

    #[tokio::test]
    async fn others_are_followed_by_chance() {
        let (traces, mut spans) = follower(1_000_000);
        run(&traces, PARENT, "dev").await;
        let _ = spans.recv().await;
        let outer = spans.recv().await.unwrap();
        let (caller, _) = Context::parse(PARENT).unwrap();
        assert_ne!(outer.context.trace, caller.trace);
        assert_eq!((outer.parent, outer.link), (None, Some(caller)));
    }
}
