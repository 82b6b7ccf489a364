//! Reads `data/schema.txt`.
//!
//! The table is part of the program: what is wrong in it is a fault of the program, and found by the first test.

use std::collections::HashMap;
use std::sync::OnceLock;

use compact_str::CompactString;

use super::{Field, ListKind, ListShape, MapShape, PatchStrategy, Schema, SchemaOr, Shape, Struct, Type, TypeRef};
use crate::meta::{GroupVersion, Gvk};
use crate::schema::Place;

type Slot = &'static OnceLock<Type>;

/// One `type` line with the field lines behind it.
struct Block {
    package: &'static str,
    header: &'static str,
    fields: Vec<&'static str>,
}

struct Loader {
    /// By OpenAPI name.
    named: HashMap<&'static str, Slot>,
    /// The types without a name of their own, by how they are written and from where.
    unnamed: HashMap<(&'static str, &'static str, &'static str, bool), Slot>,
}

pub(super) fn load(text: &'static str) -> Schema {
    let blocks = blocks(text);
    let slots: &'static [OnceLock<Type>] = Box::leak(blocks.iter().map(|_| OnceLock::new()).collect());
    let mut loader = Loader { named: HashMap::with_capacity(blocks.len()), unnamed: HashMap::new() };
    let mut kinds = HashMap::new();
    for (block, slot) in blocks.iter().zip(slots) {
        let (name, options) = block.header.split_once(' ').unwrap_or((block.header, ""));
        let full: &'static str = String::leak(format!("{}.{name}", block.package));
        loader.named.insert(full, slot);
        for kind in options.split(' ').filter_map(|o| o.strip_prefix("kind=")).flat_map(|list| list.split(',')) {
            let (gv, kind) = kind.rsplit_once('/').unwrap_or(("", kind));
            let gv = GroupVersion::parse(gv).unwrap_or_else(|| panic!("schema.txt: {}", block.header));
            kinds
                .insert(Gvk { group: gv.group, version: gv.version, kind: kind.into() }, TypeRef(Place::Builtin(slot)));
        }
    }
    for (block, slot) in blocks.iter().zip(slots) {
        let _ = slot.set(loader.type_of(block));
    }
    let names = loader.named.into_iter().map(|(name, slot)| (name, TypeRef(Place::Builtin(slot)))).collect();
    Schema { kinds, names }
}

fn blocks(text: &'static str) -> Vec<Block> {
    let mut package = "";
    let mut blocks: Vec<Block> = Vec::with_capacity(800);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("package ") {
            package = name;
        } else if let Some(header) = line.strip_prefix("type ") {
            blocks.push(Block { package, header, fields: Vec::new() });
        } else if let (Some(field), Some(block)) = (line.strip_prefix("  "), blocks.last_mut()) {
            block.fields.push(field);
        }
    }
    blocks
}

impl Loader {
    fn type_of(&mut self, block: &Block) -> Type {
        let mut words = block.header.split(' ');
        let name = words.next().unwrap_or_default();
        let mut fields: Vec<Field> = block.fields.iter().map(|line| self.field(block.package, line)).collect();
        let (mut atomic, mut unions) = (false, "");
        for option in words {
            match option.split_once('=') {
                None if option == "atomic" => atomic = true,
                Some(("unions", json)) => unions = json,
                Some(("kind", _)) => {
                    for implied in ["apiVersion", "kind"] {
                        let mut field = Field::new(implied, self.reference("", "string", "", false));
                        field.name = CompactString::const_new(implied);
                        field.pointer = false;
                        fields.push(field);
                    }
                }
                _ => panic!("schema.txt: {}", block.header),
            }
        }
        let mut shape = Struct::new(fields);
        shape.find_always(|f| !self.omits_empty(f));
        shape.atomic = atomic;
        shape.unions = unions;
        Type { name: format!("{}.{name}", block.package).into(), shape: Shape::Struct(shape) }
    }

    /// Named types are structs; only unnamed ones, which are filled in at once, may be left out when empty.
    fn omits_empty(&self, field: &Field) -> bool {
        match &field.ty.0 {
            Place::Builtin(slot) => slot.get().is_some_and(Type::omits_empty),
            Place::Made(ty) => ty.omits_empty(),
        }
    }

    fn field(&mut self, package: &'static str, line: &'static str) -> Field {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let ty = words.next().unwrap_or_default();
        let (name, always) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
        let (ty, pointer) = ty.strip_prefix('*').map_or((ty, false), |ty| (ty, true));
        let (mut list, mut wrapped) = ("", false);
        let mut patch = PatchStrategy::default();
        let mut key = CompactString::default();
        let (mut required, mut omit_zero, mut atomic, mut default) = (false, false, None, None);
        let mut keep_empty = false;
        let mut numbers = Vec::new();
        for option in words {
            match option.split_once('=') {
                None if option == "required" => required = true,
                None if option == "wrapped" => wrapped = true,
                None if option == "omitzero" => omit_zero = true,
                None if option == "keepempty" => keep_empty = true,
                None if option == "atomic" => atomic = Some(true),
                None if option == "granular" => atomic = Some(false),
                None if option.starts_with('#') => {
                    numbers = option[1..].split('.').filter_map(|n| n.parse().ok()).collect();
                }
                Some(("default", json)) => default = serde_json::from_str(json).ok(),
                Some(("list", kind)) => list = kind,
                Some(("patch", strategies)) => patch = PatchStrategy::parse(strategies),
                Some(("key", name)) => key = CompactString::const_new(name),
                _ => panic!("schema.txt: {line}"),
            }
        }
        patch.merge_key = key;
        Field {
            name: CompactString::const_new(name),
            ty: self.reference(package, ty, list, wrapped),
            pointer,
            always,
            keep_empty,
            omit_zero,
            required,
            nullable: false,
            atomic,
            default,
            patch,
            numbers,
        }
    }

    fn reference(&mut self, package: &'static str, ty: &'static str, list: &'static str, wrapped: bool) -> TypeRef {
        if let Some(slot) = self.find_named(package, ty) {
            return TypeRef(Place::Builtin(slot));
        }
        let key = (package, ty, list, wrapped);
        if let Some(slot) = self.unnamed.get(&key) {
            return TypeRef(Place::Builtin(slot));
        }
        let shape = self.unnamed_shape(package, ty, list, wrapped);
        let slot: Slot = Box::leak(Box::new(OnceLock::from(Type { name: CompactString::default(), shape })));
        self.unnamed.insert(key, slot);
        TypeRef(Place::Builtin(slot))
    }

    fn find_named(&self, package: &str, ty: &str) -> Option<Slot> {
        if ty.contains(['[', '=']) {
            return None;
        }
        if !ty.contains('.') {
            return self.named.get(format!("{package}.{ty}").as_str()).copied();
        }
        ["io.k8s.api.", "io.k8s.apimachinery.pkg.apis.", "io.k8s."]
            .into_iter()
            .find_map(|prefix| self.named.get(format!("{prefix}{ty}").as_str()).copied())
    }

    fn unnamed_shape(&mut self, package: &'static str, ty: &'static str, list: &'static str, wrapped: bool) -> Shape {
        if let Some(item) = ty.strip_prefix("[]") {
            let kind = match list.split_once(':') {
                Some(("map", keys)) => ListKind::Map(keys.split(',').map(CompactString::const_new).collect()),
                None if list == "set" => ListKind::Set,
                _ => ListKind::Atomic,
            };
            return Shape::List(ListShape { item: self.reference(package, item, "", false), kind, wrapped });
        }
        if let Some(value) = ty.strip_prefix("map[string]") {
            return Shape::Map(MapShape { value: self.reference(package, value, "", wrapped), atomic: false });
        }
        if let Some(named) = ty.strip_prefix("string=") {
            let package = package.rsplit('.').next().unwrap_or_default();
            let name = named.rsplit('.').next().unwrap_or_default();
            return Shape::String(String::leak(format!("{package}.{name}")));
        }
        let props = || TypeRef(Place::Builtin(self.named[format!("{package}.JSONSchemaProps").as_str()]));
        match ty {
            "string" => Shape::String(""),
            "bytes" => Shape::Bytes,
            "int32" => Shape::Int32,
            "int64" => Shape::Int64,
            "bool" => Shape::Bool,
            "float64" => Shape::Float,
            "Quantity" => Shape::Quantity,
            "IntOrString" => Shape::IntOrString,
            "Time" => Shape::Time,
            "MicroTime" => Shape::MicroTime,
            "RawExtension" | "JSON" | "FieldsV1" => Shape::Any,
            "JSONSchemaPropsOrBool" => Shape::SchemaOr(SchemaOr::Bool, props()),
            "JSONSchemaPropsOrArray" => Shape::SchemaOr(SchemaOr::Array, props()),
            "JSONSchemaPropsOrStringArray" => Shape::SchemaOr(SchemaOr::StringArray, props()),
            _ => panic!("schema.txt: unknown type {ty} in {package}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_there_with_its_fields() {
        let schema = Schema::builtin();
        assert!(schema.types().count() > 750);
        let pod = schema.kind(&Gvk::new("", "v1", "Pod")).unwrap();
        assert_eq!(pod.name, "io.k8s.api.core.v1.Pod");
        let containers = &pod.field("spec").unwrap().ty.field("containers").unwrap();
        let Shape::List(list) = &containers.ty.shape else { panic!("a list") };
        assert_eq!(list.kind, ListKind::Map(vec!["name".into()]));
        assert_eq!(containers.patch.merge_key, "name");
        let port = list.item.field("ports").unwrap();
        assert_eq!(port.ty.go_name(), "[]v1.ContainerPort");
        assert_eq!(port.numbers, [6]);
    }

    #[test]
    fn what_is_embedded_in_protobuf_only_has_a_path_of_numbers() {
        let volume = Schema::builtin().named("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(volume.field("configMap").unwrap().numbers, [2, 19]);
    }

    #[test]
    fn values_that_are_structs_are_written_though_absent() {
        let zero = |name: &str| Schema::builtin().named(name).unwrap().zero();
        let text = |name: &str| serde_json::to_string(&zero(name)).unwrap();
        assert_eq!(text("io.k8s.api.core.v1.Container"), r#"{"name":"","resources":{}}"#);
        assert_eq!(text("io.k8s.api.core.v1.PodTemplateSpec"), r#"{"metadata":{},"spec":{"containers":null}}"#);
    }

    #[test]
    fn types_that_contain_themselves_resolve() {
        let props = Schema::builtin()
            .named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .unwrap();
        assert!(props.field("not").unwrap().ty.is(props));
    }
}
