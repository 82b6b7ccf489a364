//! From a definition's schema to the run-time type that server-side apply and the codecs go by.

use apimachinery::Value;
use apimachinery::meta::Gvk;
use apimachinery::schema::{Field, ListKind, ListShape, MapShape, Schema, Shape, Struct, TypeRef};

pub(crate) const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
pub(super) const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
pub(crate) const EMBEDDED: &str = "x-kubernetes-embedded-resource";
pub(super) const LIST_TYPE: &str = "x-kubernetes-list-type";
pub(super) const LIST_KEYS: &str = "x-kubernetes-list-map-keys";
pub(super) const RULES: &str = "x-kubernetes-validations";

#[must_use]
pub(super) fn flag(schema: &Value, name: &str) -> bool {
    schema[name].as_bool() == Some(true)
}

/// The type of a kind with that schema.
#[must_use]
pub(super) fn type_of(gvk: &Gvk, schema: &Value) -> TypeRef {
    let mut shape = structure(schema);
    shape.preserve_unknown |= schema.is_null();
    let name = format!("{}.{}.{}", gvk.group.split('.').rev().collect::<Vec<_>>().join("."), gvk.version, gvk.kind);
    TypeRef::new(&name, Shape::Struct(with_envelope(shape)))
}

/// Every object has kind, version and metadata, whatever its schema says of them.
fn with_envelope(shape: Struct) -> Struct {
    let is_envelope = |name: &str| matches!(name, "apiVersion" | "kind" | "metadata");
    let (atomic, preserve_unknown) = (shape.atomic, shape.preserve_unknown);
    let mut fields: Vec<Field> = shape
        .fields()
        .iter()
        .filter(|f| !is_envelope(&f.name))
        .map(|f| {
            let mut field = Field::new(&f.name, f.ty.clone());
            field.default.clone_from(&f.default);
            field
        })
        .collect();
    fields.push(Field::new("apiVersion", TypeRef::new("", Shape::String(""))));
    fields.push(Field::new("kind", TypeRef::new("", Shape::String(""))));
    fields.push(Field::new("metadata", Schema::builtin().object_meta().clone()));
    let mut shape = Struct::new(fields);
    shape.atomic = atomic;
    shape.preserve_unknown = preserve_unknown;
    shape
}

/// The type of objects of which only kind, version and metadata are known.
#[must_use]
pub(super) fn envelope() -> TypeRef {
    static ENVELOPE: std::sync::OnceLock<TypeRef> = std::sync::OnceLock::new();
    let make = || {
        let mut shape = with_envelope(Struct::default());
        shape.preserve_unknown = true;
        TypeRef::new("", Shape::Struct(shape))
    };
    ENVELOPE.get_or_init(make).clone()
}

fn structure(schema: &Value) -> Struct {
    let fields = schema["properties"].entries().iter().map(|(name, property)| {
        let mut field = Field::new(name, reference(property));
        field.nullable = flag(property, "nullable");
        field.default = property.get("default").cloned();
        field
    });
    let mut shape = Struct::new(fields.collect());
    shape.atomic = schema["x-kubernetes-map-type"].as_str() == Some("atomic");
    shape.preserve_unknown = flag(schema, PRESERVE);
    shape
}

fn reference(schema: &Value) -> TypeRef {
    let made = |shape| TypeRef::new("", shape);
    if flag(schema, INT_OR_STRING) {
        return made(Shape::IntOrString);
    }
    match schema.str_at(&["type"]) {
        "object" => {
            let atomic = schema["x-kubernetes-map-type"].as_str() == Some("atomic");
            let properties = schema["properties"].entries();
            match &schema["additionalProperties"] {
                values @ Value::Object(_) => made(Shape::Map(MapShape { value: reference(values), atomic })),
                Value::Bool(true) => made(Shape::Map(MapShape { value: TypeRef::deduced(), atomic })),
                _ if properties.is_empty() && flag(schema, PRESERVE) && !flag(schema, EMBEDDED) => {
                    made(Shape::Map(MapShape { value: TypeRef::deduced(), atomic }))
                }
                _ if flag(schema, EMBEDDED) => made(Shape::Struct(with_envelope(structure(schema)))),
                _ => made(Shape::Struct(structure(schema))),
            }
        }
        "array" => {
            let keys = || schema[LIST_KEYS].items().iter().filter_map(Value::as_str).map(Into::into).collect();
            let kind = match schema.str_at(&[LIST_TYPE]) {
                "map" => ListKind::Map(keys()),
                "set" => ListKind::Set,
                _ => ListKind::Atomic,
            };
            made(Shape::List(ListShape { item: reference(&schema["items"]), kind, wrapped: false }))
        }
        "string" => made(Shape::String("")),
        "integer" => made(Shape::Int64),
        "number" => made(Shape::Float),
        "boolean" => made(Shape::Bool),
        _ => TypeRef::deduced(),
    }
}
