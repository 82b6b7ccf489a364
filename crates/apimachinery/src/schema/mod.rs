//! What fields objects have, what types those are, and how they merge and travel: the table that drives everything generic.
//!
//! Built-in types come from `data/schema.txt`, loaded once ([`Schema::builtin`]). Custom resources make [`Type`]s of the
//! same kind at run time with [`TypeRef::new`]; nothing that works on a [`TypeRef`] can tell the difference.

mod builtin;

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use compact_str::CompactString;
use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::Value;
use crate::meta::Gvk;

/// All built-in types by name and by kind.
#[derive(Debug)]
pub struct Schema {
    kinds: HashMap<Gvk, TypeRef>,
    names: HashMap<&'static str, TypeRef>,
}

/// A type by reference: cheap to clone, whether it is built in or was made from a custom resource's schema.
#[derive(Clone)]
pub struct TypeRef(Place);

#[derive(Clone)]
enum Place {
    Builtin(&'static OnceLock<Type>),
    Made(Arc<Type>),
}

/// One type.
#[derive(Debug)]
pub struct Type {
    /// OpenAPI's name (`io.k8s.api.core.v1.PodSpec`), empty for types that have none of their own.
    pub name: CompactString,
    pub shape: Shape,
}

/// What JSON a type takes.
#[derive(Debug)]
pub enum Shape {
    Struct(Struct),
    Map(MapShape),
    List(ListShape),
    /// May be named in Go (`v1.PullPolicy`), which shows in messages; else the name is empty.
    String(&'static str),
    /// Base64 in JSON.
    Bytes,
    Int32,
    Int64,
    Bool,
    Float,
    Quantity,
    IntOrString,
    /// RFC 3339 in UTC, to the second.
    Time,
    /// RFC 3339 in UTC with six digits of fraction.
    MicroTime,
    /// Go's notation: `1h5m`.
    Duration,
    /// Anything; for server-side apply a single whole (`RawExtension`).
    Any,
    /// Anything; for server-side apply what it looks like: objects merge by their keys (custom resources that preserve
    /// unknown fields).
    Deduced,
    /// A JSON schema or something simpler in its place.
    SchemaOr(SchemaOr, TypeRef),
}

/// What may stand in place of a schema in `JSONSchemaProps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaOr {
    Bool,
    Array,
    StringArray,
}

/// An object with known fields.
#[derive(Debug, Default)]
pub struct Struct {
    fields: Vec<Field>,
    /// Indexes of the fields, to be found by the hash of their names.
    by_name: HashTable<u16>,
    /// Indexes of the fields that protobuf knows, in the order of their numbers.
    by_number: Vec<u16>,
    /// Indexes of the fields that are written even if they are absent.
    always: Vec<u16>,
    /// Owned and replaced as a whole by server-side apply.
    pub atomic: bool,
    /// Fields that are not listed are kept (custom resources only).
    pub preserve_unknown: bool,
    /// `x-kubernetes-unions`, as JSON text, where the type has it.
    pub unions: &'static str,
}

#[derive(Debug)]
pub struct MapShape {
    pub value: TypeRef,
    pub atomic: bool,
}

#[derive(Debug)]
pub struct ListShape {
    pub item: TypeRef,
    pub kind: ListKind,
    /// In protobuf, a message around the repeated field.
    pub wrapped: bool,
}

/// How a list merges under server-side apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// Items are told apart by these fields.
    Map(Vec<CompactString>),
}

/// A field of a [`Struct`].
#[derive(Debug)]
pub struct Field {
    pub name: CompactString,
    pub ty: TypeRef,
    /// Absent and zero are different things.
    pub pointer: bool,
    /// Written even if empty (no `omitempty`).
    pub always: bool,
    /// An empty list is not the same as none: defaulting leaves it alone.
    pub keep_empty: bool,
    /// Not written if zero, even though it is a struct.
    pub omit_zero: bool,
    pub required: bool,
    pub nullable: bool,
    /// Server-side apply takes it as a whole (`Some(true)`) or by its parts, whatever its type says.
    pub atomic: Option<bool>,
    /// What the API documents as the default. Defaulting as such is the business of the kind.
    pub default: Option<Value>,
    pub patch: PatchStrategy,
    /// Protobuf numbers: of the messages around it that JSON does not have, then its own. Empty: not in protobuf.
    pub numbers: Vec<u32>,
}

/// How a field merges under a strategic merge patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
    /// What tells items apart; empty for lists of scalars.
    pub merge_key: CompactString,
}

// === impl Schema ===

impl Schema {
    /// The table of the built-in types.
    #[must_use]
    pub fn builtin() -> &'static Schema {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(|| builtin::load(include_str!("../../data/schema.txt")))
    }

    /// The type of a built-in kind.
    #[must_use]
    pub fn kind(&self, gvk: &Gvk) -> Option<&TypeRef> {
        self.kinds.get(gvk)
    }

    /// The type of that OpenAPI name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&TypeRef> {
        self.names.get(name)
    }

    /// Every named type, in no order.
    pub fn types(&self) -> impl Iterator<Item = &TypeRef> {
        self.names.values()
    }

    /// Every kind with its type, in no order.
    pub fn kinds(&self) -> impl Iterator<Item = (&Gvk, &TypeRef)> {
        self.kinds.iter()
    }

    /// `ObjectMeta`.
    #[must_use]
    pub fn object_meta(&self) -> &TypeRef {
        &self.names["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]
    }

    /// `DeleteOptions`, which belongs to every group and version.
    #[must_use]
    pub fn delete_options(&self) -> &TypeRef {
        &self.names["io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"]
    }

    /// `Status`.
    #[must_use]
    pub fn status(&self) -> &TypeRef {
        &self.names["io.k8s.apimachinery.pkg.apis.meta.v1.Status"]
    }
}

// === impl TypeRef ===

impl TypeRef {
    /// A type made at run time.
    #[must_use]
    pub fn new(name: &str, shape: Shape) -> Self {
        TypeRef(Place::Made(Arc::new(Type { name: name.into(), shape })))
    }

    /// It was made at run time: of a custom resource's schema.
    #[must_use]
    pub fn is_made(&self) -> bool {
        matches!(self.0, Place::Made(_))
    }

    /// The type that takes anything.
    #[must_use]
    pub fn any() -> Self {
        static ANY: OnceLock<Type> = OnceLock::new();
        ANY.get_or_init(|| Type { name: CompactString::default(), shape: Shape::Any });
        TypeRef(Place::Builtin(&ANY))
    }

    /// The type that takes anything and merges objects by their keys.
    #[must_use]
    pub fn deduced() -> Self {
        static DEDUCED: OnceLock<Type> = OnceLock::new();
        DEDUCED.get_or_init(|| Type { name: CompactString::default(), shape: Shape::Deduced });
        TypeRef(Place::Builtin(&DEDUCED))
    }

    /// The type of a field, if this is a struct that has it.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.as_struct()?.field(name)
    }

    #[must_use]
    pub fn as_struct(&self) -> Option<&Struct> {
        match &self.shape {
            Shape::Struct(s) => Some(s),
            _ => None,
        }
    }

    /// The same type, not a copy that is equal?
    #[must_use]
    pub fn is(&self, other: &TypeRef) -> bool {
        std::ptr::eq::<Type>(&**self, &**other)
    }
}

impl Deref for TypeRef {
    type Target = Type;

    fn deref(&self) -> &Type {
        match &self.0 {
            Place::Builtin(slot) => slot.get().expect("a built-in type is filled in before its reference is given out"),
            Place::Made(ty) => ty,
        }
    }
}

/// Names only: types may refer to themselves.
impl fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), &self.shape) {
            ("", Shape::Struct(s)) => f.debug_list().entries(&s.fields).finish(),
            ("", shape) => fmt::Debug::fmt(shape, f),
            (name, _) => f.write_str(name),
        }
    }
}

// === impl Type ===

impl Type {
    /// As Go's messages name it: `v1.PodSpec`, `[]v1.Container`, `map[string]string`, `int32`.
    #[must_use]
    pub fn go_name(&self) -> String {
        match &self.shape {
            Shape::Struct(_) | Shape::SchemaOr(..) => match self.name.rsplitn(3, '.').collect::<Vec<_>>()[..] {
                [kind, package, ..] => format!("{package}.{kind}"),
                _ => "map[string]interface {}".to_owned(),
            },
            Shape::Map(m) if m.value.is_resource_quantity() => "v1.ResourceList".to_owned(),
            Shape::Map(m) => format!("map[string]{}", m.value.go_name()),
            Shape::List(l) => format!("[]{}", l.item.go_name()),
            Shape::String("") => "string".to_owned(),
            Shape::String(named) => (*named).to_owned(),
            Shape::Bytes => "[]uint8".to_owned(),
            Shape::Int32 => "int32".to_owned(),
            Shape::Int64 => "int64".to_owned(),
            Shape::Bool => "bool".to_owned(),
            Shape::Float => "float64".to_owned(),
            Shape::Quantity => "resource.Quantity".to_owned(),
            Shape::IntOrString => "intstr.IntOrString".to_owned(),
            Shape::Time => "v1.Time".to_owned(),
            Shape::MicroTime => "v1.MicroTime".to_owned(),
            Shape::Duration => "v1.Duration".to_owned(),
            Shape::Any | Shape::Deduced => "interface {}".to_owned(),
        }
    }

    /// The name of the struct alone, as Go's messages put it before a field: `PodSpec`.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    fn is_resource_quantity(&self) -> bool {
        matches!(self.shape, Shape::Quantity)
    }

    /// What is written where a value of this type is not a pointer and was never set.
    #[must_use]
    pub fn zero(&self) -> Value {
        match &self.shape {
            Shape::Struct(s) => Value::Object(s.always().map(|f| (f.name.clone(), f.zero())).collect()),
            Shape::String(_) => "".into(),
            Shape::Int32 | Shape::Int64 | Shape::IntOrString => 0.into(),
            Shape::Float => 0.0.into(),
            Shape::Bool => false.into(),
            Shape::Quantity => "0".into(),
            Shape::Duration => "0s".into(),
            Shape::Map(_)
            | Shape::List(_)
            | Shape::Bytes
            | Shape::Time
            | Shape::MicroTime
            | Shape::Any
            | Shape::Deduced
            | Shape::SchemaOr(..) => Value::Null,
        }
    }

    /// Go's `omitempty` leaves it out when it is empty; structs are never empty to Go.
    fn omits_empty(&self) -> bool {
        matches!(
            self.shape,
            Shape::Map(_)
                | Shape::List(_)
                | Shape::String(_)
                | Shape::Bytes
                | Shape::Int32
                | Shape::Int64
                | Shape::Bool
                | Shape::Float
        )
    }
}

// === impl Struct ===

fn hash(name: &str) -> u64 {
    FxBuildHasher.hash_one(name)
}

impl Struct {
    /// From fields in any order.
    #[must_use]
    pub fn new(mut fields: Vec<Field>) -> Self {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let index = |i: usize| u16::try_from(i).unwrap_or(u16::MAX);
        let mut by_number: Vec<u16> = (0..fields.len()).filter(|i| !fields[*i].numbers.is_empty()).map(index).collect();
        by_number.sort_by(|a, b| fields[usize::from(*a)].numbers.cmp(&fields[usize::from(*b)].numbers));
        let mut by_name = HashTable::with_capacity(fields.len());
        for (i, field) in fields.iter().enumerate() {
            by_name.insert_unique(hash(&field.name), index(i), |i| hash(&fields[usize::from(*i)].name));
        }
        Struct { fields, by_name, by_number, ..Struct::default() }
    }

    /// Once all types are there: which fields are written though absent.
    fn find_always(&mut self, struct_like: impl Fn(&Field) -> bool) {
        self.always = (0u16..)
            .zip(&self.fields)
            .filter(|(_, f)| f.always || (!f.pointer && !f.omit_zero && struct_like(f)))
            .map(|(i, _)| i)
            .collect();
    }

    /// The fields by name.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.index_of(name).map(|i| &self.fields[i])
    }

    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.find(hash(name), |i| self.fields[usize::from(*i)].name == name).map(|i| usize::from(*i))
    }

    /// Indexes of the fields that protobuf knows, in the order of their numbers.
    pub(crate) fn by_number(&self) -> &[u16] {
        &self.by_number
    }

    pub(crate) fn at(&self, index: u16) -> &Field {
        &self.fields[usize::from(index)]
    }

    /// The fields that are written even if they are absent.
    pub(crate) fn always(&self) -> impl Iterator<Item = &Field> {
        self.always.iter().map(|i| &self.fields[usize::from(*i)])
    }
}

// === impl Field ===

impl Field {
    /// A field that is left out when it is absent and has no rules.
    #[must_use]
    pub fn new(name: &str, ty: TypeRef) -> Self {
        Field {
            name: name.into(),
            ty,
            pointer: true,
            always: false,
            keep_empty: false,
            omit_zero: false,
            required: false,
            nullable: false,
            atomic: None,
            default: None,
            patch: PatchStrategy::default(),
            numbers: Vec::new(),
        }
    }

    /// What is written when the field is absent though it is always written.
    #[must_use]
    pub fn zero(&self) -> Value {
        if self.pointer { Value::Null } else { self.ty.zero() }
    }

    /// Is a present value left out, because Go would (`omitempty`)?
    pub(crate) fn leaves_out(&self, value: &Value) -> bool {
        !self.always
            && match value {
                Value::Null => self.pointer || self.omit_zero || self.ty.omits_empty(),
                Value::Array(items) => items.is_empty() && !self.keep_empty && matches!(self.ty.shape, Shape::List(_)),
                Value::Object(map) => map.is_empty() && matches!(self.ty.shape, Shape::Map(_)),
                // A pointer to an empty scalar is written.
                _ => !self.pointer && self.ty.omits_empty() && value.is_empty_value(),
            }
    }
}

impl PatchStrategy {
    fn parse(strategies: &str) -> Self {
        let has = |name| strategies.split(',').any(|s| s == name);
        PatchStrategy {
            merge: has("merge"),
            replace: has("replace"),
            retain_keys: has("retainKeys"),
            merge_key: CompactString::default(),
        }
    }
}
