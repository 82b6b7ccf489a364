//! Request bodies: bounded, read whole, and decoded by their content type.

use std::fmt::Write;

use apimachinery::Value;
use apimachinery::meta::Gvk;
use apimachinery::status::Status;
use bytes::{Bytes, BytesMut};
use http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::Call;
use super::negotiation::Encoding;
use crate::body::RequestBody;
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
        _ => Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        )),
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
    _validation: FieldValidation,
) -> Result<Decoded, Status> {
    let parsed = match encoding {
        Encoding::Json => serde_json::from_slice(bytes).map_err(|e| json_error(&e)),
        Encoding::Yaml => crate::encoding::from_yaml(bytes),
        Encoding::Protobuf => Err("protobuf is not read yet".to_owned()),
    };
    let mut object: Value = parsed.map_err(|why| unrecognized(expected, &why, bytes))?;
    if !matches!(object, Value::Object(_)) {
        return Err(unrecognized(expected, "couldn't get version/kind; json: cannot unmarshal into an object", bytes));
    }
    check_kind(&object, expected)?;
    object.set(&["kind"], expected.kind.as_str());
    object.set(&["apiVersion"], expected.group_version().to_string());
    Ok(Decoded { object, warnings: Vec::new() })
}

fn check_kind(object: &Value, expected: &Gvk) -> Result<(), Status> {
    let (version, kind) = (object.api_version(), object.kind());
    let wanted = expected.group_version().to_string();
    if !version.is_empty() && version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted})"
        )));
    }
    if !kind.is_empty() && kind != expected.kind {
        return Err(Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: no kind {kind:?} is registered for version {wanted:?} in scheme",
            expected.version.as_str(),
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

/// What Go's decoder says.
fn json_error(error: &serde_json::Error) -> String {
    let why = if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
    format!("couldn't get version/kind; json parse error: {why}")
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
    let parsed = match encoding {
        Encoding::Json => serde_json::from_slice(bytes).map_err(|e| json_error(&e)),
        Encoding::Yaml => crate::encoding::from_yaml(bytes),
        Encoding::Protobuf => Err("protobuf is not read yet".to_owned()),
    };
    let mut options: Value = parsed.map_err(|why| unrecognized(&expected, &why, bytes))?;
    options.set(&["kind"], kind);
    options.set(&["apiVersion"], "meta.k8s.io/v1");
    Ok(options)
}
