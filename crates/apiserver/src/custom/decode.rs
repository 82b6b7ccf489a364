//! Decoding of custom resources: metadata by its type, everything else as it comes, then pruned by the schema.

use apimachinery::Value;
use apimachinery::codec::{self, Decoded, Options, json, yaml};
use apimachinery::field::{FieldErrors, Path};
use apimachinery::status::Status;
use bytes::Bytes;

use super::Custom;
use super::schema::{self, EMBEDDED, PRESERVE, flag};
use crate::handlers::negotiation::Encoding;
use crate::registry::FieldValidation;

/// Decodes the body of a create or update; returns the object and what the client should be warned of.
///
/// # Errors
/// In upstream's words.
pub(crate) fn decode(
    custom: &Custom,
    bytes: &Bytes,
    encoding: Encoding,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let kind = &custom.gvk.kind;
    let unreadable = |why: String| {
        let body = String::from_utf8_lossy(bytes);
        Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why} ({body})"))
    };
    let envelope = schema::envelope();
    let (meta, decoded) = match encoding {
        Encoding::Yaml => {
            let document = yaml::parse(bytes).map_err(|e| unreadable(e.to_string()))?;
            (document.type_meta(), document.decode(&envelope, AS_IT_COMES))
        }
        Encoding::Json => {
            let meta = json::type_meta(bytes)
                .map_err(|e| unreadable(format!("couldn't get version/kind; json parse error: {e}")))?;
            (meta, json::decode(bytes, &envelope, AS_IT_COMES))
        }
        _ => return Err(unsupported()),
    };
    if meta.kind.is_empty() {
        let body = String::from_utf8_lossy(bytes);
        return Err(unreadable(format!("Object 'Kind' is missing in '{body}'")));
    }
    let cannot = |why: &str| {
        let version = custom.gvk.version.as_str();
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    };
    let wanted = custom.gvk.group_version().to_string();
    if meta.api_version.is_empty() {
        let body = String::from_utf8_lossy(bytes);
        return Err(unreadable(format!("Object 'apiVersion' is missing in '{body}'")));
    }
    if meta.api_version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({wanted})",
            meta.api_version
        )));
    }
    let mut decoded = decoded.map_err(|e| cannot(&e.to_string()))?;
    type_metadata(&mut decoded).map_err(|e| cannot(&e.to_string()))?;
    if meta.kind != *kind {
        let mut errs = FieldErrors::new();
        errs.invalid_value(&Path::new("kind"), meta.kind.as_str(), format!("must be {kind}"));
        let mut shown = custom.gvk.clone();
        shown.kind = meta.kind.as_str().into();
        return Err(Status::invalid(&shown, decoded.value.name(), &errs));
    }
    prune_decoded(custom, &mut decoded);
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => decoded.warnings().cloned().collect(),
        FieldValidation::Strict => match decoded.strict_error() {
            Some(why) => return Err(cannot(&why)),
            None => Vec::new(),
        },
    };
    Ok((decoded.value, warnings))
}

/// With duplicates reported wherever they are, and every value kept for the schema to judge.
const AS_IT_COMES: Options = Options { unstructured: true, converter_words: false };

/// Takes the metadata, alone of everything, through its type.
fn type_metadata(decoded: &mut Decoded) -> Result<(), codec::DecodeError> {
    let metadata = decoded.value.remove(&["metadata"]).unwrap_or_else(Value::object);
    let alone = Value::from([("metadata", metadata)]);
    let typed = codec::from_value(alone, &schema::envelope(), Options::default())?;
    decoded.strict.extend(typed.strict);
    decoded.value.set(&["metadata"], typed.value["metadata"].clone());
    Ok(())
}

fn unsupported() -> Status {
    Status::unsupported_media_type(
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml",
    )
}

/// Takes a patched tree through the schema.
///
/// # Errors
/// What is wrong with its metadata.
pub(crate) fn typed(custom: &Custom, object: Value) -> Result<Decoded, codec::DecodeError> {
    let mut decoded = codec::from_value(object, &schema::envelope(), Options::default())?;
    prune_decoded(custom, &mut decoded);
    Ok(decoded)
}

fn prune_decoded(custom: &Custom, decoded: &mut Decoded) {
    let mut unknown = Vec::new();
    if !custom.schema().is_null() {
        prune(&mut decoded.value, custom.schema(), true, "", &mut unknown);
    }
    unknown.sort();
    decoded.strict.extend(unknown.into_iter().map(|path| format!("unknown field {path:?}")));
    decoded.strict.truncate(100);
}

/// Drops what the schema does not know.
pub(super) fn prune(value: &mut Value, schema: &Value, is_object: bool, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let properties = schema["properties"].entries();
            let preserve = flag(schema, PRESERVE);
            let values = &schema["additionalProperties"];
            let root = is_object || flag(schema, EMBEDDED);
            map.retain(|key, value| {
                let below = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                if root && matches!(key, "apiVersion" | "kind" | "metadata") {
                    return true;
                }
                let known = properties.get(key).or(if values.as_object().is_some() { Some(values) } else { None });
                match known {
                    Some(schema) => prune(value, schema, false, &below, unknown),
                    None if preserve || values.as_bool() == Some(true) => {}
                    None => {
                        unknown.push(below);
                        return false;
                    }
                }
                true
            });
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                prune(item, &schema["items"], false, &format!("{path}[{i}]"), unknown);
            }
        }
        _ => {}
    }
}
