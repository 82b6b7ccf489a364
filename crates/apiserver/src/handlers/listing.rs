//! Lists, written while they are sent: memory is bounded by a buffer, not by the list.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use apimachinery::Value;
use apimachinery::codec::protobuf;
use apimachinery::meta::Gvk;
use apimachinery::status::Status;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame};

use super::negotiation::{Accepted, Encoding, Form};
use super::reply::Listing;
use super::{Call, respond, table};
use crate::body::{Body, BoxError};
use crate::cache::Object;
use crate::encoding;
use crate::gzip::Gzip;
use crate::registry::{self, ListResult, Stored};

/// How many objects are encoded anew before others have their turn.
const TURN: usize = 64;
/// How much is written before it is sent.
const BUFFER: usize = 128 << 10;
const COMPRESS_FROM: usize = 128 << 10;

/// Appends one item.
type WriteItem = Box<dyn FnMut(&Object, &mut BytesMut) + Send>;

/// Encodes a list in the negotiated way.
///
/// # Errors
/// 406 for a form that does not fit, 400 for wrong options of a Table.
pub(super) async fn stream(
    call: &Call,
    accepted: Accepted,
    code: StatusCode,
    listing: Listing<'_>,
    gzip: bool,
) -> Result<Response<Body>, Status> {
    let resource = listing.resource.clone();
    let def = resource.def;
    let mut listing = listing;
    // Lists of custom resources say that nothing follows; those of built-in kinds leave it out.
    if resource.custom.is_some() && matches!(accepted.form, Form::Object) && listing.result.continue_token.is_none() {
        listing.result.continue_token = Some(String::new());
    }
    if let Form::Metadata(_) = accepted.form {
        return Err(Status::not_acceptable(format!(
            "you requested PartialObjectMetadata, but the requested object is a list ({})",
            respond::go_type(&resource, "List")
        )));
    }
    let must_ask = listing.result.objects.iter().any(|object| resource.must_ask(object.form));
    if accepted.encoding == Encoding::Protobuf
        && matches!(accepted.form, Form::Object)
        && !resource.converts()
        && let Some(body) = messages(&listing, gzip).await
    {
        return Ok(body.respond(code, accepted));
    }
    if accepted.encoding != Encoding::Json || accepted.pretty || must_ask {
        let stored: Vec<Stored> = listing.result.objects.iter().map(|object| Stored::of(object)).collect();
        let items = registry::values_in_version(&resource, &stored).await?;
        let value = whole(call, accepted, &listing, items)?;
        let body = respond::encode(&value, accepted);
        return Ok(respond::compressed_if_long(call, body, code, accepted.encoding.media_type()));
    }
    let mut head = BytesMut::new();
    let write: WriteItem = match accepted.form {
        Form::Object | Form::Metadata(_) => {
            let (kind, version) = (&def.list_kind, def.gvr.group_version().to_string());
            open(&mut head, kind, &version, &listing.result, "items");
            if resource.converts() {
                Box::new(move |object, out| {
                    let mut value = registry::value_of(&resource, &Stored::of(object));
                    value.remove(&["kind"]);
                    value.remove(&["apiVersion"]);
                    put_json(out, &value);
                })
            } else {
                let cache = Arc::clone(resource.stored());
                Box::new(move |object, out| object.write_item(&cache.shape, out))
            }
        }
        Form::MetadataList(version) => {
            let api_version = format!("meta.k8s.io/{version}");
            open(&mut head, "PartialObjectMetadataList", &api_version, &listing.result, "items");
            let cache = Arc::clone(resource.stored());
            Box::new(move |object, out| object.write_metadata(&cache.shape, object.revision, version, out))
        }
        Form::Table(version) => {
            let options = table::Options::parse(&call.query)?;
            let mut table = table::empty(def, version);
            table.set(&["metadata"], metadata(&listing.result));
            put_json(&mut head, &table);
            head.truncate(head.len() - 1);
            head.put_slice(br#","rows":["#);
            Box::new(move |object, out| {
                let value = registry::value_of(&resource, &Stored::of(object));
                put_json(out, &table::row(resource.def, &value, options, version));
            })
        }
    };
    let body = ListBody::new(head.freeze(), listing.result.objects, write, Ends::JSON, gzip);
    Ok(body.respond(code, accepted))
}

/// A list in protobuf, of messages that are made once for each version of an object. `None`: the kind has none.
async fn messages(listing: &Listing<'_>, gzip: bool) -> Option<ListBody> {
    let resource = &listing.resource;
    let def = resource.def;
    let version = def.gvr.group_version();
    let ty = encoding::type_of(&def.gvk())?;
    let list = encoding::type_of(&Gvk::new(&def.gvr.group, &def.gvr.version, &def.list_kind))?;
    if resource.custom.is_some() {
        return None;
    }
    let mut messages = Vec::with_capacity(listing.result.objects.len());
    for (i, object) in listing.result.objects.iter().enumerate() {
        let mut anew = false;
        messages.push(object.message(|object| {
            anew = true;
            protobuf::encode_message(&registry::value_of(resource, &Stored::of(object)), &ty)
        }));
        if anew && i % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    let lengths = messages.iter().map(Bytes::len);
    let metadata = metadata(&listing.result);
    let (before, behind) = protobuf::list_frame(&version.to_string(), &def.list_kind, &metadata, &list, lengths);
    let mut messages = messages.into_iter();
    let write: WriteItem = Box::new(move |_, out| {
        if let Some(message) = messages.next() {
            protobuf::put_item(out, &message);
        }
    });
    let ends = Ends { between: b"", behind: behind.into() };
    Some(ListBody::new(before.into(), listing.result.objects.clone(), write, ends, gzip))
}

/// The whole answer as a tree, for encodings that are not written item by item.
fn whole(call: &Call, accepted: Accepted, listing: &Listing<'_>, items: Vec<Value>) -> Result<Value, Status> {
    let mut value = respond::listing_value(listing, items);
    let def = listing.resource.def;
    match accepted.form {
        Form::Object | Form::Metadata(_) => {}
        Form::MetadataList(version) => {
            let items: Vec<Value> = value["items"].items().iter().map(|i| respond::metadata_of(i, version)).collect();
            value.set(&["kind"], "PartialObjectMetadataList");
            value.set(&["apiVersion"], format!("meta.k8s.io/{version}"));
            value.set(&["items"], items);
        }
        Form::Table(version) => {
            let options = table::Options::parse(&call.query)?;
            let mut table = table::empty(def, version);
            table.set(&["metadata"], value["metadata"].clone());
            let gv = def.gvr.group_version().to_string();
            let rows = value["items"].items().iter().map(|item| {
                let mut item = item.clone();
                item.set(&["kind"], def.kind.as_str());
                item.set(&["apiVersion"], gv.as_str());
                table::row(def, &item, options, version)
            });
            table.set(&["rows"], rows.collect::<Vec<_>>());
            value = table;
        }
    }
    Ok(value)
}

fn open(out: &mut BytesMut, kind: &str, version: &str, result: &ListResult, items: &str) {
    out.put_slice(format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":"#).as_bytes());
    put_json(out, &metadata(result));
    out.put_slice(format!(r#","{items}":["#).as_bytes());
}

/// `ListMeta`.
pub(super) fn metadata(result: &ListResult) -> Value {
    let mut meta = Value::from([("resourceVersion", result.revision.to_string().into())]);
    if let Some(token) = &result.continue_token {
        meta.set(&["continue"], token.as_str());
    }
    if let Some(remaining) = result.remaining {
        meta.set(&["remainingItemCount"], i64::try_from(remaining).unwrap_or(i64::MAX));
    }
    meta
}

fn put_json(out: &mut BytesMut, value: &Value) {
    let mut json = Vec::with_capacity(512);
    encoding::write_json(&mut json, value);
    out.put_slice(&json);
}

/// What stands between the items of a list, and behind the last one.
struct Ends {
    between: &'static [u8],
    behind: Bytes,
}

impl Ends {
    const JSON: Ends = Ends { between: b",", behind: Bytes::from_static(b"]}\n") };
}

/// Writes the items buffer by buffer.
struct ListBody {
    head: Option<Bytes>,
    objects: std::vec::IntoIter<Arc<Object>>,
    write: WriteItem,
    ends: Ends,
    first: bool,
    gzip: Option<Gzip>,
    done: bool,
}

impl ListBody {
    /// Compressed if that is worth it and `gzip` allows it.
    fn new(head: Bytes, objects: Vec<Arc<Object>>, write: WriteItem, ends: Ends, gzip: bool) -> Self {
        let bytes: usize = objects.iter().map(|o| o.body.len()).sum();
        let gzip = (gzip && bytes > COMPRESS_FROM).then(Gzip::new);
        ListBody { head: Some(head), objects: objects.into_iter(), write, ends, first: true, gzip, done: false }
    }

    fn respond(self, code: StatusCode, accepted: Accepted) -> Response<Body> {
        let gzip = self.gzip.is_some();
        let mut response = respond::with_type(self.into_body(), code, accepted.encoding.media_type());
        if gzip {
            respond::mark_gzip(&mut response);
        }
        response
    }

    /// Short lists are one buffer, and say how long they are.
    fn into_body(mut self) -> Body {
        let first = self.fill();
        if self.done { Body::from(first) } else { Body::stream(Rest { first: Some(first), rest: self }) }
    }

    fn fill(&mut self) -> Bytes {
        let mut out = BytesMut::with_capacity(BUFFER / 16);
        if let Some(head) = self.head.take() {
            out.put_slice(&head);
        }
        while out.len() < BUFFER {
            let Some(object) = self.objects.next() else {
                out.put_slice(&self.ends.behind);
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.put_slice(self.ends.between);
            }
            let room = object.body.len() + 64;
            if out.capacity() - out.len() < room {
                out.reserve(BUFFER + room - out.len().min(BUFFER));
            }
            (self.write)(&object, &mut out);
        }
        match &mut self.gzip {
            None => out.freeze(),
            Some(gzip) => {
                gzip.write(&out);
                let written = gzip.take();
                if self.done {
                    self.gzip.take().map_or(written.clone(), |gzip| join(&written, &gzip.finish()))
                } else {
                    written
                }
            }
        }
    }
}

fn join(a: &[u8], b: &[u8]) -> Bytes {
    [a, b].concat().into()
}

struct Rest {
    first: Option<Bytes>,
    rest: ListBody,
}

impl HttpBody for Rest {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.take()
            && !first.is_empty()
        {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        while !self.rest.done {
            // A compressor may keep everything for itself for a while.
            let bytes = self.rest.fill();
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        }
        Poll::Ready(None)
    }
}
