//! Encodes answers: shared bytes where that is possible, trees where it is not.

use apimachinery::Value;
use apimachinery::codec::yaml;
use apimachinery::status::Status;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};

use super::Call;
use super::negotiation::{Accept, Accepted, Encoding, Form, encoding_of_error};
use super::reply::{Coded, Listing, Reply};
use super::{listing, table};
use crate::body::Body;
use crate::encoding;
use crate::registry::{self, Stored};
use crate::resources::Resource;

/// Bodies longer than this are compressed for clients that take it.
const COMPRESS_FROM: usize = 128 << 10;

/// Encodes an answer in the negotiated way.
///
/// # Errors
/// 406 for a form that does not fit, 400 for wrong options of a Table.
pub(crate) async fn respond(call: &Call, accepted: Accepted, coded: Coded<'_>) -> Result<Response<Body>, Status> {
    let code = coded.code;
    if accepted.encoding == Encoding::Protobuf && matches!(accepted.form, Form::Table(_)) {
        return Err(Status::not_acceptable(
            "object *v1.Table does not implement the protobuf marshalling interface and cannot be encoded to a protobuf \
             message",
        ));
    }
    let body = match coded.reply {
        Reply::Value(value) => match accepted.form {
            Form::Metadata(version) => encode(&metadata_of(&value, version), accepted),
            Form::Object | Form::Table(_) | Form::MetadataList(_) => encode(&value, accepted),
        },
        Reply::Stored { resource, stored } => single(call, accepted, resource, &stored).await?,
        Reply::List(listing) => {
            let compress = accepts_gzip(call);
            return listing::stream(call, accepted, code, listing, compress).await;
        }
    };
    Ok(compressed_if_long(call, body, code, accepted.encoding.media_type()))
}

async fn single(call: &Call, accepted: Accepted, resource: &Resource, stored: &Stored) -> Result<Bytes, Status> {
    match accepted.form {
        // Where a webhook converts, an object may lie in the store in any version.
        Form::Object
            if accepted.encoding == Encoding::Json
                && !accepted.pretty
                && !resource.converts()
                && !resource.must_ask(stored.form) =>
        {
            let shape = &resource.stored().shape;
            let mut out = BytesMut::with_capacity(stored.body.len() + 48);
            stored.write(shape, &mut out);
            out.put_u8(b'\n');
            Ok(out.freeze())
        }
        Form::Object => Ok(encode(&registry::value_in_version(resource, stored).await?, accepted)),
        Form::Metadata(version) => {
            let value = registry::value_in_version(resource, stored).await?;
            Ok(encode(&metadata_of(&value, version), accepted))
        }
        Form::MetadataList(_) => Err(Status::not_acceptable(format!(
            "you requested PartialObjectMetadataList, but the requested object is not a list ({})",
            go_type(resource, "")
        ))),
        Form::Table(version) => {
            let options = table::Options::parse(&call.query)?;
            let value = registry::value_in_version(resource, stored).await?;
            let mut table = table::empty(resource.def, version);
            if let Some(version) = stored.revision {
                table.set(&["metadata", "resourceVersion"], version.to_string());
            }
            table.set(&["rows"], vec![table::row(resource.def, &value, options, version)]);
            Ok(encode(&table, accepted))
        }
    }
}

/// How upstream's errors name the type of an answer.
pub(super) fn go_type(resource: &Resource, suffix: &str) -> String {
    let def = resource.def;
    let package = def.gvr.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    format!("*{package}.{}{suffix}", def.kind)
}

/// What `PartialObjectMetadata` shows of an object.
pub(super) fn metadata_of(object: &Value, version: &str) -> Value {
    Value::from([
        ("kind", "PartialObjectMetadata".into()),
        ("apiVersion", format!("meta.k8s.io/{version}").into()),
        ("metadata", object["metadata"].clone()),
    ])
}

/// A tree in the negotiated encoding.
pub(super) fn encode(value: &Value, accepted: Accepted) -> Bytes {
    match accepted.encoding {
        Encoding::Json => {
            let mut out = Vec::with_capacity(512);
            if accepted.pretty {
                encoding::write_pretty(&mut out, value);
            } else {
                encoding::write_json(&mut out, value);
            }
            out.push(b'\n');
            out.into()
        }
        Encoding::Yaml => yaml::encode(value).into(),
        Encoding::Protobuf => encoding::to_protobuf(value).map(Bytes::from).unwrap_or_default(),
        Encoding::Cbor => encoding::to_cbor(value).into(),
    }
}

/// A tree as an answer.
pub(crate) fn plain_value(value: &Value, code: StatusCode, encoding: Encoding) -> Response<Body> {
    let body = encode(value, Accepted { encoding, form: Form::Object, pretty: false });
    with_type(Body::from(body), code, encoding.media_type())
}

/// An error as an answer.
pub(crate) fn error_response<'a>(status: &Status, accept: impl Into<Accept<'a>>) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = plain_value(&status.to_value(), code, encoding_of_error(accept));
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, retry.into());
    }
    response
}

pub(crate) fn with_type(body: Body, code: StatusCode, media_type: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub(super) fn accepts_gzip(call: &Call) -> bool {
    call.header(header::ACCEPT_ENCODING)
        .is_some_and(|v| v.split(',').any(|e| e.trim().split(';').next() == Some("gzip")))
}

pub(super) fn compressed_if_long(
    call: &Call,
    body: Bytes,
    code: StatusCode,
    media_type: &'static str,
) -> Response<Body> {
    if body.len() <= COMPRESS_FROM || !accepts_gzip(call) {
        return with_type(body.into(), code, media_type);
    }
    let mut gzip = crate::gzip::Gzip::new();
    gzip.write(&body);
    let mut response = with_type(gzip.finish().into(), code, media_type);
    mark_gzip(&mut response);
    response
}

pub(super) fn mark_gzip(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// `Warning` headers (RFC 7234), each once.
pub(super) fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    /// All warnings of an answer together, in bytes, as upstream limits them.
    const MAX: usize = 4096;
    let mut total = 0;
    for (i, warning) in warnings.iter().enumerate() {
        if warnings[..i].contains(warning) {
            continue;
        }
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        let clean: String = escaped.chars().filter(|c| !c.is_control()).collect();
        total += clean.len();
        if total > MAX {
            break;
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

impl Stored {
    /// The object as JSON, with `resourceVersion` if it has one.
    pub(crate) fn write(&self, shape: &crate::cache::Shape, out: &mut BytesMut) {
        out.put_slice(shape.head.as_bytes());
        if let Some(revision) = self.revision {
            crate::cache::write_revision(revision, out);
        }
        out.put_slice(&self.body[shape.head.len()..]);
    }
}

/// The body of a listing of these items, for whoever needs all of it at once.
pub(super) fn listing_value(listing: &Listing<'_>, items: Vec<Value>) -> Value {
    let resource = listing.resource;
    let items = items.into_iter().map(|mut value| {
        if !resource.stored().shape.typed_items {
            value.remove(&["kind"]);
            value.remove(&["apiVersion"]);
        }
        value
    });
    let def = resource.def;
    Value::from([
        ("kind", def.list_kind.as_str().into()),
        ("apiVersion", def.gvr.group_version().to_string().into()),
        ("metadata", listing::metadata(&listing.result)),
        ("items", items.collect::<Vec<_>>().into()),
    ])
}
