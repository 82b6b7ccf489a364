//! Bodies of requests and answers, watched while they pass.

use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use apimachinery::Value;
use apimachinery::codec::{self, Options, cbor, protobuf, yaml};
use apimachinery::schema::TypeRef;
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};

use super::Record;
use super::event::Outcome;
use crate::body::{BoxError, RequestBody, request_body};
use crate::encoding;

/// More of a body is not kept.
const MAX: usize = 4 << 20;

/// What has passed of a body.
#[derive(Clone, Default)]
pub(super) struct Capture {
    pub content_type: String,
    pub gzip: bool,
    bytes: BytesMut,
    overflown: bool,
}

impl Capture {
    pub(super) fn push(&mut self, data: &[u8]) {
        if self.bytes.len() + data.len() > MAX {
            self.overflown = true;
            self.bytes.clear();
        }
        if !self.overflown {
            self.bytes.extend_from_slice(data);
        }
    }

    /// As a tree; `Null` for nothing and for what is no document.
    pub(super) fn decoded(&self) -> Value {
        if self.bytes.is_empty() {
            return Value::Null;
        }
        let expanded;
        let bytes: &[u8] = if self.gzip {
            let Some(whole) = expand(&self.bytes) else { return Value::Null };
            expanded = whole;
            &expanded
        } else {
            &self.bytes
        };
        let media_type = self.content_type.split(';').next().unwrap_or_default().trim();
        match media_type {
            "application/vnd.kubernetes.protobuf" => of_protobuf(bytes).unwrap_or_default(),
            "application/cbor" | "application/apply-patch+cbor" => cbor::parse(bytes).unwrap_or_default(),
            "application/yaml" | "application/apply-patch+yaml" => yaml::parse(bytes)
                .ok()
                .and_then(|document| document.decode(&TypeRef::any(), Options::default()).ok())
                .map(|decoded| decoded.value)
                .unwrap_or_default(),
            _ => codec::json::value(bytes).unwrap_or_default(),
        }
    }
}

/// What was compressed, unless that is broken or more than is kept.
fn expand(compressed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let most = u64::try_from(MAX).unwrap_or(u64::MAX).saturating_add(1);
    flate2::read::GzDecoder::new(compressed).take(most).read_to_end(&mut out).ok()?;
    (out.len() <= MAX).then_some(out)
}

fn of_protobuf(bytes: &[u8]) -> Option<Value> {
    let envelope = protobuf::unknown(bytes).ok()?;
    let gvk = encoding::gvk_of(&envelope.meta.api_version, &envelope.meta.kind);
    let mut value = protobuf::decode(bytes, &encoding::type_of(&gvk)?).ok()?;
    value.set(&["kind"], envelope.meta.kind.as_str());
    value.set(&["apiVersion"], envelope.meta.api_version.as_str());
    Some(value)
}

/// The body of a request, of which the record keeps a copy.
pub(super) fn watched(record: Arc<Record>, body: RequestBody) -> RequestBody {
    request_body(Watched { record, body })
}

struct Watched {
    record: Arc<Record>,
    body: RequestBody,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.record.saw_request(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer; when it ends, or is not wanted any more, that is written down.
pub(super) fn sent(
    record: Arc<Record>,
    body: RequestBody,
    outcome: Outcome,
    keep: bool,
) -> impl HttpBody<Data = Bytes, Error = BoxError> + Send + 'static {
    Sent { record: Some((record, outcome)), body, keep }
}

struct Sent {
    /// `None`: it has been written down.
    record: Option<(Arc<Record>, Outcome)>,
    body: RequestBody,
    keep: bool,
}

impl Sent {
    fn complete(&mut self) {
        if let Some((record, outcome)) = self.record.take() {
            record.complete(outcome);
        }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if self.keep => {
                if let (Some(data), Some((_, outcome))) = (frame.data_ref(), &mut self.record) {
                    outcome.response.push(data);
                }
            }
            Poll::Ready(None | Some(Err(_))) => self.complete(),
            _ => {}
        }
        polled
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.complete();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gzip::Gzip;

    fn captured(document: &[u8]) -> Capture {
        let mut gzip = Gzip::new();
        gzip.write(document);
        let mut capture = Capture { content_type: "application/json".to_owned(), gzip: true, ..Capture::default() };
        capture.push(&gzip.finish());
        capture
    }

    #[test]
    fn no_more_is_expanded_than_is_kept() {
        assert_eq!(captured(br#"{"kind":"Status"}"#).decoded().kind(), "Status");
        let blank = vec![b' '; MAX];
        assert_eq!(captured(&[&blank[..], b"1"].concat()).decoded(), Value::Null);
        assert_eq!(captured(&[&blank[1..], b"1"].concat()).decoded(), Value::from(1));
    }
}
