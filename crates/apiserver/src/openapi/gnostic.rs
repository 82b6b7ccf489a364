//! The OpenAPI documents as protobuf: the messages of `gnostic`, which Go clients ask for.
//!
//! The messages are tables; one writer takes a JSON document through them.

use apimachinery::codec::protobuf::{nested, put_bytes, put_double, put_int};
use serde_json::Value;

use super::Dialect;

/// A message: which JSON keys are which fields.
struct Message {
    fields: &'static [Field],
    /// The field that every other key goes into, as pairs of a name and a value of that kind.
    entries: Option<(u32, Kind)>,
    /// The field for keys that begin with `x-`, if those are apart from the others.
    extensions: u32,
}

type Field = (&'static str, u32, Kind);

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bool,
    Double,
    Int,
    /// Each on its own.
    Texts,
    /// A string or several, as a message of strings.
    TextList,
    /// What has no schema, as YAML (which JSON is).
    Any,
    Anys,
    /// A scalar of one of three types.
    Scalar,
    Message(&'static Message),
    Messages(&'static Message),
    /// A message in a choice: `.1` is the alternative.
    Choice(&'static Message, u32),
    /// The first alternative, or the second if there is a `$ref`.
    OrReference(&'static Message),
    OrReferences(&'static Message),
    /// A schema or a boolean.
    OrBool(&'static Kind),
    /// A list of one.
    Only(&'static Kind),
    /// Parameters of version 2, whose message depends on where they stand.
    ParametersV2,
}

/// The document in protobuf.
pub(super) fn encode(document: &Value, dialect: Dialect) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 << 10);
    let message = match dialect {
        Dialect::V2 => &v2::DOCUMENT,
        Dialect::V3 => &v3::DOCUMENT,
    };
    put_message(&mut out, document, message);
    out
}

const fn plain(fields: &'static [Field], extensions: u32) -> Message {
    Message { fields, entries: None, extensions }
}

/// A map: pairs of names and values.
const fn map(kind: Kind) -> Message {
    Message { fields: &[], entries: Some((1, kind)), extensions: 0 }
}

fn put_message(out: &mut Vec<u8>, value: &Value, message: &Message) {
    let Some(object) = value.as_object() else { return };
    for (key, value) in object {
        if let Some((_, number, kind)) = message.fields.iter().find(|(name, ..)| name == key) {
            put(out, *number, value, *kind);
        } else if message.extensions != 0 && key.starts_with("x-") {
            put_entry(out, message.extensions, key, value, Kind::Any);
        } else if let Some((number, kind)) = message.entries {
            put_entry(out, number, key, value, kind);
        }
    }
}

fn put_entry(out: &mut Vec<u8>, number: u32, name: &str, value: &Value, kind: Kind) {
    nested(out, number, |out| {
        put_bytes(out, 1, name.as_bytes());
        put(out, 2, value, kind);
    });
}

fn put(out: &mut Vec<u8>, number: u32, value: &Value, kind: Kind) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = || value.as_array().map(Vec::as_slice).unwrap_or_default();
    match kind {
        Kind::Text => put_bytes(out, number, text(value).as_bytes()),
        Kind::Bool => put_int(out, number, i64::from(value.as_bool().unwrap_or_default())),
        Kind::Double => put_double(out, number, value.as_f64().unwrap_or_default()),
        Kind::Int => put_int(out, number, value.as_i64().unwrap_or_default()),
        Kind::Texts => items().iter().for_each(|item| put_bytes(out, number, text(item).as_bytes())),
        Kind::TextList => nested(out, number, |out| match value {
            Value::Array(items) => items.iter().for_each(|item| put_bytes(out, 1, text(item).as_bytes())),
            one => put_bytes(out, 1, text(one).as_bytes()),
        }),
        Kind::Any => nested(out, number, |out| put_bytes(out, 2, format!("{value}\n").as_bytes())),
        Kind::Anys => items().iter().for_each(|item| put(out, number, item, Kind::Any)),
        Kind::Scalar => match value {
            Value::Number(n) => nested(out, number, |out| put_double(out, 1, n.as_f64().unwrap_or_default())),
            Value::Bool(b) => nested(out, number, |out| put_int(out, 2, i64::from(*b))),
            Value::String(s) => nested(out, number, |out| put_bytes(out, 3, s.as_bytes())),
            // The message has no place for anything else.
            Value::Null | Value::Array(_) | Value::Object(_) => {}
        },
        Kind::Message(message) => nested(out, number, |out| put_message(out, value, message)),
        Kind::Messages(message) => items().iter().for_each(|item| put(out, number, item, Kind::Message(message))),
        Kind::Choice(message, choice) => {
            nested(out, number, |out| nested(out, choice, |out| put_message(out, value, message)));
        }
        Kind::OrReference(message) => match value.get("$ref") {
            Some(_) => put(out, number, value, Kind::Choice(&REFERENCE, 2)),
            None => put(out, number, value, Kind::Choice(message, 1)),
        },
        Kind::OrReferences(message) => {
            items().iter().for_each(|item| put(out, number, item, Kind::OrReference(message)));
        }
        Kind::OrBool(schema) => nested(out, number, |out| match value {
            Value::Bool(b) => put_int(out, 2, i64::from(*b)),
            other => put(out, 1, other, *schema),
        }),
        Kind::Only(kind) => nested(out, number, |out| put(out, 1, value, *kind)),
        Kind::ParametersV2 => items()
            .iter()
            .for_each(|item| nested(out, number, |out| nested(out, 1, |out| v2::put_parameter(out, item)))),
    }
}

const REFERENCE: Message = plain(&[("$ref", 1, Kind::Text), ("description", 3, Kind::Text)], 0);

mod v3 {
    use super::{Field, Kind, Message, map, plain};

    pub(super) static DOCUMENT: Message = plain(
        &[
            ("openapi", 1, Kind::Text),
            ("info", 2, Kind::Message(&INFO)),
            ("paths", 4, Kind::Message(&PATHS)),
            ("components", 5, Kind::Message(&COMPONENTS)),
            ("security", 6, Kind::Messages(&SECURITY)),
        ],
        9,
    );
    static INFO: Message =
        plain(&[("title", 1, Kind::Text), ("description", 2, Kind::Text), ("version", 6, Kind::Text)], 7);
    static PATHS: Message = Message { fields: &[], entries: Some((1, Kind::Message(&PATH_ITEM))), extensions: 2 };
    static PATH_ITEM: Message = plain(
        &[
            ("get", 4, Kind::Message(&OPERATION)),
            ("put", 5, Kind::Message(&OPERATION)),
            ("post", 6, Kind::Message(&OPERATION)),
            ("delete", 7, Kind::Message(&OPERATION)),
            ("options", 8, Kind::Message(&OPERATION)),
            ("head", 9, Kind::Message(&OPERATION)),
            ("patch", 10, Kind::Message(&OPERATION)),
            ("trace", 11, Kind::Message(&OPERATION)),
            ("parameters", 13, Kind::OrReferences(&PARAMETER)),
        ],
        14,
    );
    static OPERATION: Message = plain(
        &[
            ("tags", 1, Kind::Texts),
            ("summary", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("operationId", 5, Kind::Text),
            ("parameters", 6, Kind::OrReferences(&PARAMETER)),
            ("requestBody", 7, Kind::OrReference(&REQUEST_BODY)),
            ("responses", 8, Kind::Message(&RESPONSES)),
            ("deprecated", 10, Kind::Bool),
        ],
        13,
    );
    static PARAMETER: Message = plain(
        &[
            ("name", 1, Kind::Text),
            ("in", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("required", 4, Kind::Bool),
            ("schema", 10, Kind::OrReference(&SCHEMA)),
        ],
        14,
    );
    static REQUEST_BODY: Message = plain(
        &[("description", 1, Kind::Text), ("content", 2, Kind::Message(&CONTENT)), ("required", 3, Kind::Bool)],
        4,
    );
    static CONTENT: Message = map(Kind::Message(&MEDIA_TYPE));
    static MEDIA_TYPE: Message = plain(&[("schema", 1, Kind::OrReference(&SCHEMA))], 5);
    static RESPONSES: Message = Message {
        fields: &[("default", 1, Kind::OrReference(&RESPONSE))],
        entries: Some((2, Kind::OrReference(&RESPONSE))),
        extensions: 3,
    };
    static RESPONSE: Message = plain(&[("description", 1, Kind::Text), ("content", 3, Kind::Message(&CONTENT))], 5);
    static COMPONENTS: Message =
        plain(&[("schemas", 1, Kind::Message(&SCHEMAS)), ("securitySchemes", 7, Kind::Message(&SECURITY_SCHEMES))], 10);
    static SCHEMAS: Message = map(Kind::OrReference(&SCHEMA));
    static SECURITY_SCHEMES: Message = map(Kind::OrReference(&SECURITY_SCHEME));
    static SECURITY_SCHEME: Message = plain(
        &[
            ("type", 1, Kind::Text),
            ("description", 2, Kind::Text),
            ("name", 3, Kind::Text),
            ("in", 4, Kind::Text),
            ("scheme", 5, Kind::Text),
            ("bearerFormat", 6, Kind::Text),
        ],
        9,
    );
    static SECURITY: Message = map(Kind::TextList);
    static SCHEMA_KIND: Kind = Kind::OrReference(&SCHEMA);
    static SCHEMA_FIELDS: [Field; 32] = [
        ("nullable", 1, Kind::Bool),
        ("readOnly", 3, Kind::Bool),
        ("writeOnly", 4, Kind::Bool),
        ("example", 7, Kind::Any),
        ("deprecated", 8, Kind::Bool),
        ("title", 9, Kind::Text),
        ("multipleOf", 10, Kind::Double),
        ("maximum", 11, Kind::Double),
        ("exclusiveMaximum", 12, Kind::Bool),
        ("minimum", 13, Kind::Double),
        ("exclusiveMinimum", 14, Kind::Bool),
        ("maxLength", 15, Kind::Int),
        ("minLength", 16, Kind::Int),
        ("pattern", 17, Kind::Text),
        ("maxItems", 18, Kind::Int),
        ("minItems", 19, Kind::Int),
        ("uniqueItems", 20, Kind::Bool),
        ("maxProperties", 21, Kind::Int),
        ("minProperties", 22, Kind::Int),
        ("required", 23, Kind::Texts),
        ("enum", 24, Kind::Anys),
        ("type", 25, Kind::Text),
        ("allOf", 26, Kind::OrReferences(&SCHEMA)),
        ("oneOf", 27, Kind::OrReferences(&SCHEMA)),
        ("anyOf", 28, Kind::OrReferences(&SCHEMA)),
        ("not", 29, Kind::Message(&SCHEMA)),
        ("items", 30, Kind::Only(&SCHEMA_KIND)),
        ("properties", 31, Kind::Message(&SCHEMAS)),
        ("additionalProperties", 32, Kind::OrBool(&SCHEMA_KIND)),
        ("default", 33, Kind::Scalar),
        ("description", 34, Kind::Text),
        ("format", 35, Kind::Text),
    ];
    static SCHEMA: Message = plain(&SCHEMA_FIELDS, 36);
}

mod v2 {
    use super::{Field, Kind, Message, map, nested, plain, put_message};
    use serde_json::Value;

    pub(super) static DOCUMENT: Message = plain(
        &[
            ("swagger", 1, Kind::Text),
            ("info", 2, Kind::Message(&INFO)),
            ("paths", 8, Kind::Message(&PATHS)),
            ("definitions", 9, Kind::Message(&SCHEMAS)),
            ("security", 12, Kind::Messages(&SECURITY)),
            ("securityDefinitions", 13, Kind::Message(&SECURITY_DEFINITIONS)),
        ],
        16,
    );
    static INFO: Message =
        plain(&[("title", 1, Kind::Text), ("version", 2, Kind::Text), ("description", 3, Kind::Text)], 7);
    static PATHS: Message = Message { fields: &[], entries: Some((2, Kind::Message(&PATH_ITEM))), extensions: 1 };
    static PATH_ITEM: Message = plain(
        &[
            ("get", 2, Kind::Message(&OPERATION)),
            ("put", 3, Kind::Message(&OPERATION)),
            ("post", 4, Kind::Message(&OPERATION)),
            ("delete", 5, Kind::Message(&OPERATION)),
            ("options", 6, Kind::Message(&OPERATION)),
            ("head", 7, Kind::Message(&OPERATION)),
            ("patch", 8, Kind::Message(&OPERATION)),
            ("parameters", 9, Kind::ParametersV2),
        ],
        10,
    );
    static OPERATION: Message = plain(
        &[
            ("tags", 1, Kind::Texts),
            ("summary", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("operationId", 5, Kind::Text),
            ("produces", 6, Kind::Texts),
            ("consumes", 7, Kind::Texts),
            ("parameters", 8, Kind::ParametersV2),
            ("responses", 9, Kind::Message(&RESPONSES)),
            ("schemes", 10, Kind::Texts),
            ("deprecated", 11, Kind::Bool),
        ],
        13,
    );
    static RESPONSES: Message =
        Message { fields: &[], entries: Some((1, Kind::OrReference(&RESPONSE))), extensions: 2 };
    static RESPONSE: Message = plain(&[("description", 1, Kind::Text), ("schema", 2, Kind::Choice(&SCHEMA, 1))], 5);
    static SECURITY: Message = map(Kind::TextList);
    static SECURITY_DEFINITIONS: Message = map(Kind::Choice(&API_KEY, 2));
    static API_KEY: Message = plain(
        &[("type", 1, Kind::Text), ("name", 2, Kind::Text), ("in", 3, Kind::Text), ("description", 4, Kind::Text)],
        5,
    );
    static SCHEMAS: Message = map(Kind::Message(&SCHEMA));
    static SCHEMA: Message = plain(&SCHEMA_FIELDS, 31);
    static SCHEMA_KIND: Kind = Kind::Message(&SCHEMA);
    static SCHEMA_FIELDS: [Field; 27] = [
        ("$ref", 1, Kind::Text),
        ("format", 2, Kind::Text),
        ("title", 3, Kind::Text),
        ("description", 4, Kind::Text),
        ("default", 5, Kind::Any),
        ("multipleOf", 6, Kind::Double),
        ("maximum", 7, Kind::Double),
        ("exclusiveMaximum", 8, Kind::Bool),
        ("minimum", 9, Kind::Double),
        ("exclusiveMinimum", 10, Kind::Bool),
        ("maxLength", 11, Kind::Int),
        ("minLength", 12, Kind::Int),
        ("pattern", 13, Kind::Text),
        ("maxItems", 14, Kind::Int),
        ("minItems", 15, Kind::Int),
        ("uniqueItems", 16, Kind::Bool),
        ("maxProperties", 17, Kind::Int),
        ("minProperties", 18, Kind::Int),
        ("required", 19, Kind::Texts),
        ("enum", 20, Kind::Anys),
        ("additionalProperties", 21, Kind::OrBool(&SCHEMA_KIND)),
        ("type", 22, Kind::TextList),
        ("items", 23, Kind::Only(&SCHEMA_KIND)),
        ("allOf", 24, Kind::Messages(&SCHEMA)),
        ("properties", 25, Kind::Message(&SCHEMAS)),
        ("readOnly", 27, Kind::Bool),
        ("example", 30, Kind::Any),
    ];
    static BODY: Message = plain(
        &[
            ("description", 1, Kind::Text),
            ("name", 2, Kind::Text),
            ("in", 3, Kind::Text),
            ("required", 4, Kind::Bool),
            ("schema", 5, Kind::Message(&SCHEMA)),
        ],
        6,
    );
    static QUERY: Message = plain(
        &[
            ("required", 1, Kind::Bool),
            ("in", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("name", 4, Kind::Text),
            ("type", 6, Kind::Text),
            ("format", 7, Kind::Text),
            ("uniqueItems", 20, Kind::Bool),
        ],
        23,
    );
    /// Of a path or a header: the numbers are those of a query parameter less one.
    static PATH: Message = plain(
        &[
            ("required", 1, Kind::Bool),
            ("in", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("name", 4, Kind::Text),
            ("type", 5, Kind::Text),
            ("format", 6, Kind::Text),
            ("uniqueItems", 19, Kind::Bool),
        ],
        22,
    );

    /// `Parameter`: of the body, or of one of the other places.
    pub(super) fn put_parameter(out: &mut Vec<u8>, value: &Value) {
        match value["in"].as_str() {
            Some("body") => nested(out, 1, |out| put_message(out, value, &BODY)),
            Some("path") => nested(out, 2, |out| nested(out, 4, |out| put_message(out, value, &PATH))),
            Some("header") => nested(out, 2, |out| nested(out, 1, |out| put_message(out, value, &PATH))),
            _ => nested(out, 2, |out| nested(out, 3, |out| put_message(out, value, &QUERY))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(dialect: Dialect, document: &Value, want: &[u8]) {
        assert_eq!(encode(document, dialect).escape_ascii().to_string(), want.escape_ascii().to_string());
    }

    #[test]
    fn documents_are_messages_of_gnostic() {
        check(
            Dialect::V3,
            &json!({"openapi":"3.0.0","components":{"schemas":{"A":{"type":"object","x-a":1},"B":{"$ref":"#"}}}}),
            b"*.\n,\n\x1e\n\x01A\x12\x19\n\x17\xca\x01\x06object\xa2\x02\x0b\n\x03x-a\x12\x04\x12\x021\n\n\n\n\x01B\x12\x05\x12\x03\n\x01#\n\x053.0.0",
        );
    }
}
