//! Types of the schema table as OpenAPI schemas.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use apimachinery::meta::Gvk;
use apimachinery::schema::{Field, ListKind, Schema, SchemaOr, Shape, TypeRef};
use serde_json::{Map, Value, json};

use super::Dialect;
use super::custom::{self, CustomKind};
use super::descriptions::{self, Described};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Collects the types that a document names, with all that they name in turn.
pub(super) struct Definitions {
    dialect: Dialect,
    kinds: &'static Kinds,
    /// Kinds that only definitions know, and lists of them.
    custom: HashMap<Gvk, Arc<CustomKind>>,
    wanted: BTreeMap<String, Value>,
}

/// The kinds of each named type: group, version and kind.
type Kinds = HashMap<&'static str, BTreeSet<(String, String, String)>>;

fn kinds() -> &'static Kinds {
    static KINDS: OnceLock<Kinds> = OnceLock::new();
    KINDS.get_or_init(|| {
        let mut kinds = Kinds::new();
        for (gvk, ty) in Schema::builtin().kinds() {
            let Some(name) = static_name(ty) else { continue };
            let of_kind = (gvk.group.to_string(), gvk.version.to_string(), gvk.kind.to_string());
            kinds.entry(name).or_default().insert(of_kind);
        }
        kinds
    })
}

impl Definitions {
    pub(super) fn new(dialect: Dialect) -> Self {
        Definitions { dialect, kinds: kinds(), custom: HashMap::new(), wanted: BTreeMap::new() }
    }

    /// Makes a kind known that a definition defines.
    pub(super) fn add_custom(&mut self, kind: CustomKind) {
        let kind = Arc::new(kind);
        self.custom.insert(kind.gvk.clone(), Arc::clone(&kind));
        self.custom.insert(kind.list.clone(), kind);
    }

    /// A reference to a kind's type, which is defined too.
    pub(super) fn of_kind(&mut self, gvk: &Gvk) -> Value {
        if let Some(kind) = self.custom.get(gvk).map(Arc::clone) {
            return self.of_custom(&kind, gvk);
        }
        match crate::encoding::type_of(gvk) {
            Some(ty) => self.reference(&ty),
            None => json!({ "type": "object" }),
        }
    }

    fn of_custom(&mut self, kind: &CustomKind, gvk: &Gvk) -> Value {
        let name = custom::name_of(gvk);
        if !self.wanted.contains_key(&name) {
            let definition = kind.definition(gvk, self.dialect);
            self.wanted.insert(name.clone(), definition);
            // What it refers to.
            self.of_meta(if *gvk == kind.list { "ListMeta" } else { "ObjectMeta" });
            if *gvk == kind.list {
                self.of_custom(kind, &kind.gvk);
            }
        }
        self.dialect.reference(&name)
    }

    /// A reference to one of the machinery's own types.
    pub(super) fn of_meta(&mut self, name: &str) -> Value {
        let full = format!("{META}.{name}");
        match Schema::builtin().named(&full) {
            Some(ty) => self.reference(&ty.clone()),
            None => {
                // Only the body of a patch has no entry in the table.
                self.wanted.entry(full.clone()).or_insert_with(|| json!({ "type": "object" }));
                self.dialect.reference(&full)
            }
        }
    }

    /// All that were referred to, by name.
    pub(super) fn finish(self) -> Map<String, Value> {
        self.wanted.into_iter().collect()
    }

    fn reference(&mut self, ty: &TypeRef) -> Value {
        self.reference_as(&ty.name, ty)
    }

    fn reference_as(&mut self, name: &str, ty: &TypeRef) -> Value {
        if !self.wanted.contains_key(name) {
            // The name first: types may refer to themselves.
            self.wanted.insert(name.to_owned(), Value::Null);
            let definition = self.definition(name, ty);
            self.wanted.insert(name.to_owned(), definition);
        }
        self.dialect.reference(name)
    }

    fn definition(&mut self, name: &str, ty: &TypeRef) -> Value {
        let mut schema = self.shape(ty);
        let described = descriptions::of(name);
        describe(&mut schema, described.own());
        let gvks = self.kinds.get(ty.name.as_str()).into_iter().flatten();
        let gvks: Vec<Value> =
            gvks.map(|(group, version, kind)| json!({ "group": group, "kind": kind, "version": version })).collect();
        if !gvks.is_empty() {
            if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
                for field in ["apiVersion", "kind"] {
                    let property = properties.entry(field).or_insert_with(|| json!({ "type": "string" }));
                    if let Some(property) = property.as_object_mut() {
                        describe(property, descriptions::of_type_meta(field));
                    }
                }
            }
            schema.insert("x-kubernetes-group-version-kind".to_owned(), gvks.into());
        }
        schema.into()
    }

    /// The schema of a type where it is used: by name, if it has one.
    fn used(&mut self, ty: &TypeRef) -> Map<String, Value> {
        let name = if ty.name.is_empty() { well_known(&ty.shape).unwrap_or_default() } else { &ty.name };
        if name.is_empty() {
            return self.shape(ty);
        }
        match self.reference_as(name, ty) {
            Value::Object(reference) => reference,
            _ => Map::new(),
        }
    }

    fn shape(&mut self, ty: &TypeRef) -> Map<String, Value> {
        let v3 = self.dialect == Dialect::V3;
        let schema = match &ty.shape {
            Shape::Struct(shape) => {
                let mut properties = Map::new();
                let described = descriptions::of(&ty.name);
                for field in shape.fields() {
                    properties.insert(field.name.to_string(), self.property(field, described));
                }
                let mut required: Vec<&str> =
                    shape.fields().iter().filter(|f| f.required).map(|f| f.name.as_str()).collect();
                required.sort_unstable();
                let mut schema = json!({ "type": "object" });
                if !properties.is_empty() {
                    schema["properties"] = properties.into();
                }
                if !required.is_empty() {
                    schema["required"] = required.into();
                }
                if shape.atomic {
                    schema["x-kubernetes-map-type"] = "atomic".into();
                }
                if let Ok(unions) = serde_json::from_str::<Value>(shape.unions) {
                    schema["x-kubernetes-unions"] = unions;
                }
                schema
            }
            Shape::Map(map) => {
                let mut schema = json!({ "type": "object", "additionalProperties": self.used(&map.value) });
                if map.atomic {
                    schema["x-kubernetes-map-type"] = "atomic".into();
                }
                schema
            }
            Shape::List(list) => json!({ "type": "array", "items": self.used(&list.item) }),
            Shape::String(_) | Shape::Duration => json!({ "type": "string" }),
            Shape::Bytes => json!({ "type": "string", "format": "byte" }),
            Shape::Int32 => json!({ "type": "integer", "format": "int32" }),
            Shape::Int64 => json!({ "type": "integer", "format": "int64" }),
            Shape::Bool => json!({ "type": "boolean" }),
            Shape::Float => json!({ "type": "number", "format": "double" }),
            Shape::Quantity if v3 => json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }),
            Shape::Quantity => json!({ "type": "string" }),
            Shape::IntOrString if v3 => {
                json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
            }
            Shape::IntOrString => json!({ "type": "string", "format": "int-or-string" }),
            Shape::Time | Shape::MicroTime => json!({ "type": "string", "format": "date-time" }),
            Shape::SchemaOr(SchemaOr::Bool | SchemaOr::Array | SchemaOr::StringArray, _) => json!({}),
            Shape::Any if ty.name.ends_with(".JSON") => json!({}),
            Shape::Any | Shape::Deduced => json!({ "type": "object" }),
        };
        match schema {
            Value::Object(schema) => schema,
            _ => Map::new(),
        }
    }

    fn property(&mut self, field: &Field, described: Described) -> Value {
        // The one field whose type says nothing and still has a name of its own.
        let mut schema = if field.name == "fieldsV1" && matches!(field.ty.shape, Shape::Any) {
            let fields = self.reference_as(&format!("{META}.FieldsV1"), &field.ty);
            fields.as_object().cloned().unwrap_or_default()
        } else {
            self.used(&field.ty)
        };
        if let Some(Value::String(_)) = schema.get("$ref")
            && self.dialect == Dialect::V3
        {
            // A reference that has company stands in a list of its own.
            schema = Map::from_iter([("allOf".to_owned(), json!([schema]))]);
        }
        describe(&mut schema, described.field(&field.name));
        if self.dialect == Dialect::V3 {
            let default = field.default.as_ref().and_then(|default| serde_json::to_value(default).ok());
            let empty = || {
                let whole = field.ty.as_struct().is_some() && !field.pointer;
                whole.then(|| json!({}))
            };
            if let Some(default) = default.or_else(empty) {
                schema.insert("default".to_owned(), default);
            }
            if field.nullable {
                schema.insert("nullable".to_owned(), true.into());
            }
        }
        if let Shape::List(list) = &field.ty.shape {
            match &list.kind {
                ListKind::Map(keys) => {
                    let keys: Vec<&str> = keys.iter().map(compact_str::CompactString::as_str).collect();
                    schema.insert("x-kubernetes-list-map-keys".to_owned(), keys.into());
                    schema.insert("x-kubernetes-list-type".to_owned(), "map".into());
                }
                ListKind::Set => drop(schema.insert("x-kubernetes-list-type".to_owned(), "set".into())),
                // The items of a List are no field that anybody merges.
                ListKind::Atomic if field.name == "items" => {}
                ListKind::Atomic => drop(schema.insert("x-kubernetes-list-type".to_owned(), "atomic".into())),
            }
        }
        let patch = &field.patch;
        let strategies: Vec<&str> =
            [(patch.merge, "merge"), (patch.replace, "replace"), (patch.retain_keys, "retainKeys")]
                .iter()
                .filter_map(|(set, name)| set.then_some(*name))
                .collect();
        if !strategies.is_empty() {
            schema.insert("x-kubernetes-patch-strategy".to_owned(), strategies.join(",").into());
        }
        if !patch.merge_key.is_empty() {
            schema.insert("x-kubernetes-patch-merge-key".to_owned(), patch.merge_key.as_str().into());
        }
        schema.into()
    }
}

fn describe(schema: &mut Map<String, Value>, description: Option<String>) {
    if let Some(description) = description {
        schema.insert("description".to_owned(), description.into());
    }
}

/// Types that are a shape of their own in the table and have a name in OpenAPI.
fn well_known(shape: &Shape) -> Option<&'static str> {
    Some(match shape {
        Shape::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity",
        Shape::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        Shape::Time => "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
        Shape::MicroTime => "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        Shape::Duration => "io.k8s.apimachinery.pkg.apis.meta.v1.Duration",
        Shape::Any => "io.k8s.apimachinery.pkg.runtime.RawExtension",
        _ => return None,
    })
}

/// Names of the built-in table live as long as the program.
fn static_name(ty: &TypeRef) -> Option<&'static str> {
    Schema::builtin().named(&ty.name).map(|ty| ty.name.as_str())
}
