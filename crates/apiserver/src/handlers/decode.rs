//! Request bodies: bounded, read whole, and decoded by their content type.

use std::fmt::Write;

use apimachinery::Value;
use apimachinery::codec::json::TypeMeta;
use apimachinery::codec::{self, DecodeError, Options, cbor, json, protobuf, yaml};
use apimachinery::meta::Gvk;
use apimachinery::schema::TypeRef;
use apimachinery::status::Status;
use bytes::{Bytes, BytesMut};
use http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::Call;
use super::negotiation::Encoding;
use crate::body::RequestBody;
use crate::encoding;
use crate::registry::FieldValidation;

/// Upstream's limit for a request's body, in bytes.
pub(crate) const MAX_BODY: usize = 3 << 20;

/// Reads a body to its end.
///
/// # Errors
/// 413 beyond the limit, 400 when the client breaks off.
pub(crate) async fn read_body(body: RequestBody) -> Result<Bytes, Status> {
    let mut body = Limited::new(body, MAX_BODY);
    let mut first: Option<Bytes> = None;
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.downcast_ref::<LengthLimitError>().is_some() {
                Status::too_large(format!("Request entity too large: limit is {MAX_BODY}"))
            } else {
                Status::bad_request(format!("the request's body could not be read: {error}"))
            }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        match first.take() {
            None if all.is_empty() => first = Some(data),
            None => all.extend_from_slice(&data),
            Some(bytes) => {
                all.extend_from_slice(&bytes);
                all.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| all.freeze()))
}

/// The encoding that the client says its body has.
///
/// # Errors
/// 415 for one that is not known.
pub(crate) fn body_encoding(call: &Call) -> Result<Encoding, Status> {
    let content_type = call.header(header::CONTENT_TYPE).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    match media_type {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        "application/cbor" if call.speaks_cbor() => Ok(Encoding::Cbor),
        _ => {
            let cbor = if call.speaks_cbor() { ", application/cbor" } else { "" };
            Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml, application/vnd.kubernetes.protobuf{cbor}"
            )))
        }
    }
}

/// A decoded body and what the client should be warned of.
pub(crate) struct Decoded {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// Decodes an object of a kind. What does not say its kind is taken for that kind.
///
/// # Errors
/// 400, in upstream's words.
pub(crate) fn decode(
    bytes: &Bytes,
    encoding: Encoding,
    expected: &Gvk,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let ty = encoding::type_of(expected).unwrap_or_else(TypeRef::any);
    let unreadable = |why: &str| unrecognized(expected, why, bytes);
    let (meta, decoded) = match encoding {
        Encoding::Json => {
            let decoded = json::decode(bytes, &ty, Options::default());
            let meta = match decoded.as_ref().ok().and_then(|decoded| says_that_it_is(&decoded.value, expected)) {
                Some(meta) => meta,
                None => json::type_meta(bytes)
                    .map_err(|e| unreadable(&format!("couldn't get version/kind; json parse error: {e}")))?,
            };
            (meta, decoded)
        }
        Encoding::Yaml => {
            let document = yaml::parse(bytes).map_err(|e| unreadable(&e.to_string()))?;
            (document.type_meta(), document.decode(&ty, Options::default()))
        }
        Encoding::Cbor => {
            let tree = cbor::parse(bytes).map_err(|e| unreadable(&e.to_string()))?;
            (cbor::type_meta(&tree), codec::from_value(tree, &ty, Options::default()))
        }
        Encoding::Protobuf => {
            let envelope = protobuf::unknown(bytes).map_err(|e| unreadable(&e.to_string()))?;
            let decoded = protobuf::decode(bytes, &ty);
            (
                envelope.meta,
                decoded.map(|value| codec::Decoded { value, strict: Vec::new(), yaml_duplicates: Vec::new() }),
            )
        }
    };
    check_kind(&meta, expected)?;
    let cannot = |why: &str| {
        let (kind, version) = (&expected.kind, expected.version.as_str());
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    };
    let decoded = decoded.map_err(|e| match e {
        DecodeError::Syntax(why) => unreadable(&why),
        DecodeError::Mismatch(why) => cannot(&why),
    })?;
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => decoded.warnings().cloned().collect(),
        FieldValidation::Strict => match decoded.strict_error() {
            Some(why) => return Err(cannot(&why)),
            None => Vec::new(),
        },
    };
    let mut object = decoded.value;
    object.set(&["kind"], expected.kind.as_str());
    object.set(&["apiVersion"], expected.group_version().to_string());
    Ok(Decoded { object, warnings })
}

/// What a decoded object says of its kind, if it is the expected one: then it need not be read once more for that.
fn says_that_it_is(object: &Value, expected: &Gvk) -> Option<TypeMeta> {
    let (api_version, kind) = (object.api_version(), object.kind());
    let is = kind == expected.kind && api_version == expected.group_version().to_string();
    is.then(|| TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() })
}

fn check_kind(meta: &TypeMeta, expected: &Gvk) -> Result<(), Status> {
    let wanted = expected.group_version().to_string();
    if !meta.api_version.is_empty() && meta.api_version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({wanted})",
            meta.api_version
        )));
    }
    if !meta.kind.is_empty() && meta.kind != expected.kind {
        let (kind, version) = (&meta.kind, expected.version.as_str());
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: no kind {kind:?} is registered for version {wanted:?} in scheme",
            expected.kind
        )));
    }
    Ok(())
}

fn unrecognized(expected: &Gvk, why: &str, bytes: &[u8]) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({})",
        expected.kind,
        summary(bytes)
    ))
}

/// The beginning of a body, as messages show it: text if it looks like JSON, else in hexadecimal.
fn summary(bytes: &[u8]) -> String {
    const SHOWN: usize = 30;
    if bytes.is_empty() {
        return "<empty>".to_owned();
    }
    let (part, rest) = bytes.split_at(bytes.len().min(SHOWN));
    let mut text = if bytes[0] == b'{' {
        String::from_utf8_lossy(part).into_owned()
    } else {
        part.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    if !rest.is_empty() {
        text.push_str(" ...");
    }
    text
}

/// Decodes options that come as a body; they may name any version of `meta`.
///
/// # Errors
/// 400, in upstream's words.
pub(crate) fn decode_options(bytes: &Bytes, encoding: Encoding, kind: &str) -> Result<Value, Status> {
    let expected = Gvk::new("meta.k8s.io", "v1", kind);
    let ty = encoding::type_of(&expected).unwrap_or_else(TypeRef::any);
    let decoded = match encoding {
        Encoding::Json => json::decode(bytes, &ty, Options::default()).map(|d| d.value),
        Encoding::Yaml => yaml::decode(bytes, &ty, Options::default()).map(|d| d.value),
        Encoding::Protobuf => protobuf::decode(bytes, &ty),
        Encoding::Cbor => cbor::decode(bytes, &ty, Options::default()).map(|d| d.value),
    };
    let mut options = decoded.map_err(|e| unrecognized(&expected, &e.to_string(), bytes))?;
    options.set(&["kind"], kind);
    options.set(&["apiVersion"], "meta.k8s.io/v1");
    Ok(options)
}
