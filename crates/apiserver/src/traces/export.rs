//! Spans as OpenTelemetry's protocol has them, and telling a collector of them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::Span;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// So many spans are told at once, at the latest after so long.
const BATCH: usize = 512;
const EVERY: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportResponse {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<SpanMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(int32, tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    pub links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    pub status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Link {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SpanStatus {
    #[prost(int32, tag = "3")]
    pub code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AnyValue {
    #[prost(oneof = "Scalar", tags = "1, 3")]
    pub value: Option<Scalar>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Scalar {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Int(i64),
}

const KIND_INTERNAL: i32 = 1;
const KIND_SERVER: i32 = 2;
const STATUS_ERROR: i32 = 2;

fn attribute(key: &str, value: Scalar) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or_default()
}

impl From<Span> for SpanMessage {
    fn from(span: Span) -> Self {
        let mut attributes: Vec<KeyValue> =
            span.attributes.into_iter().map(|(key, value)| attribute(key, Scalar::Text(value))).collect();
        attributes
            .extend(span.status_code.map(|code| attribute("http.response.status_code", Scalar::Int(code.into()))));
        SpanMessage {
            trace_id: span.context.trace.into(),
            span_id: span.context.span.into(),
            parent_span_id: span.parent.map(Vec::from).unwrap_or_default(),
            name: span.name,
            kind: if span.is_request { KIND_SERVER } else { KIND_INTERNAL },
            start_time_unix_nano: nanos(span.start),
            end_time_unix_nano: nanos(span.end),
            attributes,
            links: span
                .link
                .map(|to| Link { trace_id: to.trace.into(), span_id: to.span.into() })
                .into_iter()
                .collect(),
            status: span.failed.then_some(SpanStatus { code: STATUS_ERROR }),
        }
    }
}

fn request_of(instance: &str, spans: Vec<Span>) -> ExportRequest {
    let text = |key: &str, value: &str| attribute(key, Scalar::Text(value.to_owned()));
    let attributes = vec![text("service.name", "apiserver"), text("service.instance.id", instance)];
    let spans = spans.into_iter().map(SpanMessage::from).collect();
    let scope_spans = vec![ScopeSpans { spans }];
    ExportRequest { resource_spans: vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }] }
}

/// Tells a collector of spans.
pub(crate) struct Teller {
    channel: Channel,
    spans: mpsc::Receiver<Span>,
}

impl Teller {
    pub(super) fn new(channel: Channel, spans: mpsc::Receiver<Span>) -> Self {
        Teller { channel, spans }
    }

    /// Tells what comes until `stop`, and then what is left. `instance` is who tells.
    pub(crate) async fn run(mut self, instance: String, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut tick = tokio::time::interval(EVERY);
        loop {
            let stopping = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                Some(span) = self.spans.recv() => {
                    batch.push(span);
                    if batch.len() < BATCH {
                        continue;
                    }
                    false
                }
                _ = tick.tick() => false,
            };
            if stopping {
                batch.extend(std::iter::from_fn(|| self.spans.try_recv().ok()));
            }
            if !batch.is_empty() {
                let request = request_of(&instance, std::mem::take(&mut batch));
                if let Err(error) = tell(self.channel.clone(), request).await {
                    tracing::warn!(%error, "spans are lost: the collector did not take them");
                }
            }
            if stopping {
                return;
            }
        }
    }
}

async fn tell(channel: Channel, request: ExportRequest) -> Result<(), tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    let asked = async {
        client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let codec = tonic_prost::ProstCodec::<ExportRequest, ExportResponse>::default();
        client.unary(tonic::Request::new(request), PathAndQuery::from_static(EXPORT), codec).await
    };
    let late = |_| tonic::Status::deadline_exceeded("context deadline exceeded");
    tokio::time::timeout(TIMEOUT, asked).await.map_err(late)?.map(|_| ())
}
