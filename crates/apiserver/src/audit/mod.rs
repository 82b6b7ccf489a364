//! Audit: who asked for what, and what became of it, as events (`audit.k8s.io/v1`).
//!
//! [`policy`] says how much of which requests is written down, [`Record`] gathers it while a request is answered, and the
//! backends ([`log`], [`webhook`]) take the events. Without a policy nothing of this runs.

mod body;
mod event;
mod log;
mod policy;
mod queue;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::status::Status;
use bytes::Bytes;
use component_base::metrics::prometheus_client;
use http::request::Parts;
use http::{Response, StatusCode, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio_util::task::TaskTracker;

use crate::attributes::{RequestInfo, UserInfo};
use crate::body::{Body, RequestBody};
use crate::config::{AuditConfig, AuditMode};
use crate::proxy::PassedOn;
use crate::request_info::is_long_running;
use policy::{Level, Policy, Stage};

/// How long a server that ends waits for what is queued.
const CLOSE: Duration = Duration::from_secs(10);

tokio::task_local! {
    /// What is gathered of the request that is being answered.
    static RECORD: Arc<Record>;
}

/// Takes events.
#[async_trait::async_trait]
trait Backend: Send + Sync {
    /// Whether it has the event now.
    async fn take(&self, event: &Bytes) -> bool;

    /// Takes no more; returns when nothing waits any more.
    async fn close(&self) {}
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    level: &'static str,
}

/// Where events go.
struct Sink {
    backend: Arc<dyn Backend>,
    /// What it cannot be told of does not go on.
    strict: bool,
}

/// What a server writes down of its requests.
pub(crate) struct Audit {
    policy: Policy,
    sinks: Vec<Sink>,
    events: Counter,
    levels: Family<LevelLabels, Counter>,
    /// What is written down of requests that have ended.
    writing: TaskTracker,
}

/// What is gathered of one request.
pub(crate) struct Record {
    audit: Arc<Audit>,
    level: Level,
    omitted: Vec<Stage>,
    omit_managed_fields: bool,
    long_running: bool,
    id: String,
    uri: String,
    info: Arc<RequestInfo>,
    user: Arc<UserInfo>,
    ips: Vec<String>,
    user_agent: String,
    received: Timestamp,
    gathered: Mutex<Gathered>,
}

/// What becomes known while the request is answered.
#[derive(Default)]
struct Gathered {
    impersonated: Option<Arc<UserInfo>>,
    annotations: BTreeMap<String, String>,
    /// Of the object: name, namespace, uid and version, where the path does not say them.
    object: Value,
    request: body::Capture,
}

impl Audit {
    /// `None`: nothing is written down.
    ///
    /// # Errors
    /// What is wrong with the policy or a backend.
    pub(crate) fn new(config: &AuditConfig) -> Result<Option<Arc<Self>>, String> {
        let Some(path) = &config.policy_file else {
            if config.log.is_some() || config.webhook.is_some() {
                tracing::warn!("there is no audit policy file: no events are recorded");
            }
            return Ok(None);
        };
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let policy = Policy::parse(&text).map_err(|why| format!("loading audit policy file: {why}"))?;
        let mut sinks = Vec::new();
        let mut add = |backend: Arc<dyn Backend>, mode| {
            sinks.push(Sink { backend, strict: mode == AuditMode::BlockingStrict });
        };
        if let Some(log) = &config.log {
            add(Arc::new(log::Log::open(log)?), log.mode);
        }
        if let Some(webhook) = &config.webhook {
            add(Arc::new(webhook::Webhook::new(webhook)?), webhook.mode);
        }
        if sinks.is_empty() {
            tracing::warn!("there is an audit policy but no log and no webhook: no events are recorded");
            return Ok(None);
        }
        Ok(Some(Arc::new(Audit {
            policy,
            sinks,
            events: Counter::default(),
            levels: Family::default(),
            writing: TaskTracker::new(),
        })))
    }

    /// Returns when everything is where it belongs, or takes too long. For the end of a server.
    pub(crate) async fn close(&self) {
        let closed = async {
            self.writing.close();
            self.writing.wait().await;
            for sink in &self.sinks {
                sink.backend.close().await;
            }
        };
        if tokio::time::timeout(CLOSE, closed).await.is_err() {
            tracing::error!("audit events were dropped: their backend takes too long at the end");
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("apiserver_audit_event", "Audit events that were made", self.events.clone());
        registry.register(
            "apiserver_audit_level",
            "Requests, by how much is written down of them",
            self.levels.clone(),
        );
    }

    /// Begins to gather; `None` for a request of which nothing is written down.
    pub(crate) fn begin(
        self: &Arc<Self>,
        parts: &Parts,
        info: &Arc<RequestInfo>,
        user: &Arc<UserInfo>,
        remote: Option<std::net::IpAddr>,
        id: &str,
    ) -> Option<Arc<Record>> {
        let decided = self.policy.decide(user, info);
        self.levels.get_or_create(&LevelLabels { level: decided.level.name() }).inc();
        if decided.level == Level::None {
            return None;
        }
        let text = |name: header::HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Some(Arc::new(Record {
            audit: Arc::clone(self),
            level: decided.level,
            omitted: decided.omitted,
            omit_managed_fields: decided.omit_managed_fields,
            long_running: is_long_running(info),
            id: id.to_owned(),
            uri: parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            info: Arc::clone(info),
            user: Arc::clone(user),
            ips: event::source_ips(&parts.headers, remote),
            user_agent: text(header::USER_AGENT).to_owned(),
            received: Timestamp::now(),
            gathered: Mutex::default(),
        }))
    }
}

impl Record {
    /// Keeps a copy of the request's body, if it is to be written down.
    pub(crate) fn watch_body(self: &Arc<Self>, parts: &Parts, body: RequestBody) -> RequestBody {
        if self.level < Level::Request || !self.info.is_resource {
            return body;
        }
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        self.gathered.lock().request.content_type = content_type.to_owned();
        body::watched(Arc::clone(self), body)
    }

    fn saw_request(&self, data: &Bytes) {
        self.gathered.lock().request.push(data);
    }

    /// Answers a request with this at hand.
    pub(crate) async fn during<T>(self: &Arc<Self>, answering: impl Future<Output = T>) -> T {
        RECORD.scope(Arc::clone(self), answering).await
    }

    fn annotate(&self, key: &str, value: &str) {
        self.gathered.lock().annotations.insert(key.to_owned(), value.to_owned());
    }

    /// The request has come in.
    ///
    /// # Errors
    /// When that cannot be written down where it must be.
    pub(crate) async fn received(&self) -> Result<(), Status> {
        let written = self.write(Stage::RequestReceived, None).await;
        if written { Ok(()) } else { Err(Status::internal("failed to store audit event")) }
    }

    /// Credentials were there that nobody accepts.
    pub(crate) async fn refused(&self, code: StatusCode) {
        let outcome = event::Outcome::bare(code);
        self.write(Stage::ResponseStarted, Some(&outcome)).await;
    }

    pub(crate) async fn panicked(&self) {
        let outcome = event::Outcome::bare(StatusCode::INTERNAL_SERVER_ERROR);
        self.write(Stage::Panic, Some(&outcome)).await;
    }

    /// Nobody waits for the answer any more. Says the same as upstream, which also calls it a success.
    pub(crate) fn closed_early(self: Arc<Self>) {
        let outcome = event::Outcome { closed_early: true, ..event::Outcome::bare(StatusCode::OK) };
        self.complete(outcome);
    }

    fn complete(self: Arc<Self>, outcome: event::Outcome) {
        let writing = self.audit.writing.clone();
        writing.spawn(async move { self.write(Stage::ResponseComplete, Some(&outcome)).await });
    }

    /// The answer is there; when it has been sent, that is written down too.
    pub(crate) async fn answered(self: Arc<Self>, response: Response<Body>) -> Response<Body> {
        let (mut parts, answer) = response.into_parts();
        let mut outcome = event::Outcome::bare(parts.status);
        if self.long_running {
            self.write(Stage::ResponseStarted, Some(&outcome)).await;
        }
        let is_error = parts.status.is_client_error() || parts.status.is_server_error();
        let wanted = parts.extensions.remove::<PassedOn>().is_none()
            && (is_error
                || (self.level == Level::RequestResponse && !self.long_running)
                || self.info.verb.starts_with("delete"));
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        content_type.unwrap_or_default().clone_into(&mut outcome.response.content_type);
        outcome.response.gzip = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding == "gzip");
        let answer = match answer {
            Body::Stream(stream) => {
                return Response::from_parts(parts, Body::stream(body::sent(self, stream, outcome, wanted)));
            }
            whole => whole,
        };
        if wanted {
            match &answer {
                Body::Full(bytes) => outcome.response.push(bytes),
                Body::Parts(all) => all.iter().for_each(|bytes| outcome.response.push(bytes)),
                Body::Empty | Body::Stream(_) => {}
            }
        }
        self.write(Stage::ResponseComplete, Some(&outcome)).await;
        Response::from_parts(parts, answer)
    }

    /// Hands the event of a stage to every backend, unless that is omitted. Gives whether all have it that must.
    async fn write(&self, stage: Stage, outcome: Option<&event::Outcome>) -> bool {
        if self.omitted.contains(&stage) {
            return true;
        }
        let event = event::of(self, stage, outcome);
        let mut bytes = Vec::with_capacity(1024);
        crate::encoding::write_json(&mut bytes, &event);
        let bytes = Bytes::from(bytes);
        self.audit.events.inc();
        let mut written = true;
        for sink in &self.audit.sinks {
            written &= sink.backend.take(&bytes).await || !sink.strict;
        }
        written
    }
}

/// Notes as whom the request is answered.
pub(crate) fn impersonates(user: &Arc<UserInfo>) {
    let _ = RECORD.try_with(|record| record.gathered.lock().impersonated = Some(Arc::clone(user)));
}

/// Notes something about the request that is being answered.
pub(crate) fn annotate(key: &str, value: &str) {
    let _ = RECORD.try_with(|record| record.annotate(key, value));
}

/// Notes the object that the request is about.
pub(crate) fn about(object: &Value) {
    let _ = RECORD.try_with(|record| {
        let mut gathered = record.gathered.lock();
        for field in ["name", "namespace", "uid", "resourceVersion"] {
            let text = object.str_at(&["metadata", field]);
            if !text.is_empty() {
                gathered.object.set(&[field], text);
            }
        }
    });
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// Keeps what it takes.
    #[derive(Default)]
    pub(crate) struct Kept(Mutex<Vec<Bytes>>);

    #[async_trait::async_trait]
    impl Backend for Kept {
        async fn take(&self, event: &Bytes) -> bool {
            self.0.lock().push(event.clone());
            true
        }
    }

    impl Kept {
        pub(crate) fn events(&self) -> Vec<serde_json::Value> {
            self.0.lock().iter().map(|event| serde_json::from_slice(event).unwrap()).collect()
        }
    }

    /// What is gathered of a `DELETE` of which everything is written down, and where it is.
    pub(crate) fn record() -> (Arc<Record>, Arc<Kept>) {
        let kept = Arc::new(Kept::default());
        let policy = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","rules":[{"level":"RequestResponse"}]}"#;
        let audit = Arc::new(Audit {
            policy: Policy::parse(policy).unwrap(),
            sinks: vec![Sink { backend: Arc::clone(&kept) as Arc<dyn Backend>, strict: false }],
            events: Counter::default(),
            levels: Family::default(),
            writing: TaskTracker::new(),
        });
        let (parts, ()) = http::Request::delete("/api/v1/nodes/n/proxy/x").body(()).unwrap().into_parts();
        let info =
            RequestInfo { verb: "delete".to_owned(), path: parts.uri.path().to_owned(), ..RequestInfo::default() };
        let record = audit.begin(&parts, &Arc::new(info), &Arc::default(), None, "id").unwrap();
        (record, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_another_servers_answer_only_the_code_is_told() {
        for (passed_on, message) in [(false, serde_json::json!("no")), (true, serde_json::Value::Null)] {
            let (record, kept) = fixture::record();
            let mut response = Response::new(Body::from(r#"{"kind":"Status","message":"no"}"#.to_owned()));
            *response.status_mut() = StatusCode::NOT_FOUND;
            if passed_on {
                response.extensions_mut().insert(PassedOn);
            }
            record.answered(response).await;
            let event = &kept.events()[0];
            assert_eq!(
                (&event["responseStatus"]["code"], &event["responseStatus"]["message"]),
                (&404.into(), &message)
            );
            assert_eq!(event["responseObject"]["message"], message);
        }
    }
}
