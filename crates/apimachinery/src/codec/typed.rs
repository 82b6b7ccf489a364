//! The schema-driven decoder: one visitor for every self-describing format.
//!
//! Like Go's decoder it goes on behind a value of the wrong type, so that the rest of the document is still checked for
//! syntax, and reports the first one. Errors of types that decode themselves (times, quantities) win over those.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use compact_str::CompactString;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{DecodeError, Decoded, Options};
use crate::schema::{Field, SchemaOr, Shape, Struct, Type, TypeRef};
use crate::{Map, Value, quantity, time};

/// Upstream stops listing at this many findings.
const MAX_STRICT: usize = 100;
/// And we at this many bytes: paths may be as long as the body.
const MAX_STRICT_BYTES: usize = 64 * 1024;

/// Go accepts bits behind the end of the data; so do we.
pub(super) const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Decodes from any self-describing format. The error is the format's own; the findings are in the context.
pub(super) fn decode<'de, D: Deserializer<'de>>(
    deserializer: D,
    ty: &TypeRef,
    options: Options,
) -> Result<Result<Decoded, DecodeError>, D::Error> {
    let mut cx = Context::new(options);
    let value = Seed { ty, cx: &mut cx }.deserialize(deserializer)?;
    Ok(match cx.fatal.or(cx.mismatch) {
        Some(message) => Err(DecodeError::Mismatch(message)),
        None => Ok(Decoded { value, strict: cx.strict, yaml_duplicates: Vec::new() }),
    })
}

/// Takes a tree that was made without a schema (by a patch, say) through the same checks.
///
/// # Errors
/// [`DecodeError::Mismatch`] where a value is not what its field takes.
pub fn from_value(value: Value, ty: &TypeRef, options: Options) -> Result<Decoded, DecodeError> {
    match decode(super::normalize::Tree(value), ty, options) {
        Ok(done) => done,
        Err(e) => Err(DecodeError::Mismatch(e.to_string())),
    }
}

struct Context<'t> {
    options: Options,
    path: Vec<Segment<'t>>,
    /// The struct whose field is being decoded.
    owner: Option<&'t Type>,
    strict: Vec<String>,
    strict_bytes: usize,
    /// The first value of a wrong type.
    mismatch: Option<String>,
    /// The first error of a type that decodes itself.
    fatal: Option<String>,
}

enum Segment<'t> {
    Field(&'t str),
    Key(CompactString),
    Index(usize),
}

struct Seed<'c, 't> {
    ty: &'t TypeRef,
    cx: &'c mut Context<'t>,
}

// === impl Context ===

impl<'t> Context<'t> {
    fn new(options: Options) -> Self {
        Context {
            options,
            path: Vec::with_capacity(16),
            owner: None,
            strict: Vec::new(),
            strict_bytes: 0,
            mismatch: None,
            fatal: None,
        }
    }

    fn path_to(&self, last: &str) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Index(i) => text.push_str(&format!("[{i}]")),
                Segment::Field(name) => push_name(&mut text, name),
                Segment::Key(name) => push_name(&mut text, name),
            }
        }
        push_name(&mut text, last);
        text
    }

    fn finding(&mut self, what: &str, name: &str) {
        if self.strict.len() >= MAX_STRICT || self.strict_bytes >= MAX_STRICT_BYTES {
            return;
        }
        let text = format!("{what} field \"{}\"", self.path_to(name));
        if !self.strict.contains(&text) {
            self.strict_bytes += text.len();
            self.strict.push(text);
        }
    }

    /// A value that does not fit; `found` is Go's word for it.
    fn mismatch(&mut self, found: &str, ty: &Type) -> Value {
        if self.mismatch.is_none() {
            let of = ty.go_name();
            self.mismatch = Some(match self.owner {
                _ if self.options.converter_words => converter_words(found, ty),
                Some(owner) => {
                    let fields = self.path.iter().filter_map(|s| match s {
                        Segment::Field(name) => Some(*name),
                        Segment::Key(_) | Segment::Index(_) => None,
                    });
                    let fields: Vec<&str> = fields.collect();
                    let (owner, fields) = (owner.short_name(), fields.join("."));
                    format!("json: cannot unmarshal {found} into Go struct field {owner}.{fields} of type {of}")
                }
                None => format!("json: cannot unmarshal {found} into Go value of type {of}"),
            });
        }
        Value::Null
    }

    fn fatal(&mut self, message: impl Into<String>) -> Value {
        if self.fatal.is_none() {
            self.fatal = Some(message.into());
        }
        Value::Null
    }

    /// A type that decodes itself met something that it has no idea of.
    fn fatal_mismatch(&mut self, found: &str, of: &str) -> Value {
        self.fatal(format!("json: cannot unmarshal {found} into Go value of type {of}"))
    }
}

/// What upstream's converter says of a value of the wrong type.
fn converter_words(found: &str, ty: &Type) -> String {
    let number = if found.contains('.') { "float64" } else { "int64" };
    let kind = match found.split(' ').next() {
        Some("object") => "map",
        Some("array") => "slice",
        Some("number") => number,
        _ => found,
    };
    match &ty.shape {
        Shape::Struct(_) => format!("cannot restore struct from: {kind}"),
        Shape::Map(_) => format!("cannot restore map from {kind}"),
        Shape::List(_) | Shape::Bytes => format!("cannot restore slice from {kind}"),
        // Go could convert these, but JSON does not.
        Shape::String(_) if kind == "int64" => format!("cannot convert {kind} to {}", ty.go_name()),
        Shape::Int32 | Shape::Int64 if kind == "float64" => format!("cannot convert {kind} to {}", ty.go_name()),
        _ => format!("unrecognized type: {}", ty.go_name()),
    }
}

fn push_name(text: &mut String, name: &str) {
    if !text.is_empty() {
        text.push('.');
    }
    text.push_str(name);
}

// === scalars ===

impl<'t> Seed<'_, 't> {
    fn string(self, s: &str) -> Value {
        let keep = |s: &str| Value::String(CompactString::from(s));
        match &self.ty.shape {
            Shape::String(_) | Shape::Any | Shape::Deduced => keep(s),
            _ if self.cx.options.unstructured => keep(s),
            Shape::Bytes => self.bytes(s),
            Shape::Quantity => match quantity::canonical(s) {
                Ok(text) => Value::String(text),
                Err(e) => self.cx.fatal(e.to_string()),
            },
            Shape::IntOrString => keep(s),
            Shape::Time => match time::normalize(s) {
                Ok(text) => Value::String(text),
                Err(e) => self.cx.fatal(e.to_string()),
            },
            Shape::MicroTime => match time::normalize_micro(s) {
                Ok(text) => Value::String(text),
                Err(e) => self.cx.fatal(e.to_string()),
            },
            Shape::Duration => keep(s),
            Shape::SchemaOr(kind, _) => match kind {
                SchemaOr::StringArray | SchemaOr::Array | SchemaOr::Bool => {
                    self.cx.fatal(format!("boolean or JSON schema expected, found string {s:?}"))
                }
            },
            Shape::Struct(_)
            | Shape::Map(_)
            | Shape::List(_)
            | Shape::Int32
            | Shape::Int64
            | Shape::Bool
            | Shape::Float => self.cx.mismatch("string", self.ty),
        }
    }

    fn bytes(self, s: &str) -> Value {
        let clean: String;
        let text = if s.contains(['\r', '\n']) {
            clean = s.replace(['\r', '\n'], "");
            &clean
        } else {
            s
        };
        match BASE64.decode(text) {
            Ok(_) => Value::String(text.into()),
            Err(e) => {
                use base64::DecodeError as E;
                let at = match e {
                    E::InvalidByte(at, _) | E::InvalidLastSymbol { offset: at, .. } => at,
                    E::InvalidLength(_) | E::InvalidPadding => text.len() - text.len() % 4,
                };
                // Go reports this one without the field and goes on, like a mismatch.
                let message = format!("illegal base64 data at input byte {at}");
                self.cx.mismatch.get_or_insert(message);
                Value::Null
            }
        }
    }

    fn int(self, n: i64) -> Value {
        match &self.ty.shape {
            Shape::Int64 | Shape::Float | Shape::Any | Shape::Deduced => Value::Int(n),
            _ if self.cx.options.unstructured => Value::Int(n),
            Shape::Int32 if i32::try_from(n).is_ok() => Value::Int(n),
            Shape::IntOrString if i32::try_from(n).is_ok() => Value::Int(n),
            Shape::Int32 => self.cx.mismatch(&format!("number {n}"), self.ty),
            _ => self.number(&n.to_string()),
        }
    }

    fn float(self, n: f64) -> Value {
        match &self.ty.shape {
            Shape::Any | Shape::Deduced => Value::Float(n),
            _ if self.cx.options.unstructured => Value::Float(n),
            // Go writes a float without a fraction as an integer.
            #[expect(clippy::cast_possible_truncation, reason = "has no fraction and is small")]
            Shape::Float if n.fract() == 0.0 && n.abs() < 1e15 => Value::Int(n as i64),
            Shape::Float => Value::Float(n),
            Shape::Int32 | Shape::Int64 => self.cx.mismatch(&format!("number {n:?}"), self.ty),
            _ => self.number(&format!("{n:?}")),
        }
    }

    /// A number where no number belongs, except that quantities take it.
    fn number(self, text: &str) -> Value {
        match &self.ty.shape {
            Shape::Quantity => match quantity::canonical(text) {
                Ok(text) => Value::String(text),
                Err(e) => self.cx.fatal(e.to_string()),
            },
            Shape::IntOrString => self.cx.fatal_mismatch(&format!("number {text}"), "int32"),
            Shape::Time | Shape::MicroTime | Shape::Duration => self.cx.fatal_mismatch("number", "string"),
            Shape::SchemaOr(..) => self.cx.fatal("boolean or JSON schema expected"),
            _ => self.cx.mismatch("number", self.ty),
        }
    }

    fn bool(self, b: bool) -> Value {
        match &self.ty.shape {
            Shape::Bool | Shape::Any | Shape::Deduced | Shape::SchemaOr(SchemaOr::Bool, _) => Value::Bool(b),
            _ if self.cx.options.unstructured => Value::Bool(b),
            _ => self.other("bool"),
        }
    }

    /// A value that fits nowhere but in its own shape.
    fn other(self, found: &str) -> Value {
        match &self.ty.shape {
            Shape::Quantity => self.cx.fatal(quantity::QuantityError::Format.to_string()),
            Shape::IntOrString => self.cx.fatal_mismatch(found, "int32"),
            Shape::Time | Shape::MicroTime | Shape::Duration => self.cx.fatal_mismatch(found, "string"),
            Shape::SchemaOr(..) => self.cx.fatal("boolean or JSON schema expected"),
            _ => self.cx.mismatch(found, self.ty),
        }
    }
}

// === the visitor ===

impl<'de, 't> DeserializeSeed<'de> for Seed<'_, 't> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, 't> Visitor<'de> for Seed<'_, 't> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(self.bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(self.int(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        if let Ok(n) = i64::try_from(n) {
            return Ok(self.int(n));
        }
        match &self.ty.shape {
            Shape::Int32 | Shape::Int64 if !self.cx.options.unstructured => {
                Ok(self.cx.mismatch(&format!("number {n}"), self.ty))
            }
            Shape::Quantity | Shape::IntOrString if !self.cx.options.unstructured => Ok(self.number(&n.to_string())),
            #[expect(clippy::cast_precision_loss, reason = "beyond i64, JSON numbers are floats to Kubernetes")]
            _ => Ok(self.float(n as f64)),
        }
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(self.float(n))
    }

    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(self.string(s))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let ty = self.ty;
        let item = match &ty.shape {
            Shape::List(list) => &list.item,
            Shape::SchemaOr(SchemaOr::Array, props) => props,
            Shape::SchemaOr(SchemaOr::StringArray, _) => return string_array(self, seq),
            Shape::Any | Shape::Deduced => ty,
            _ if self.cx.options.unstructured => any(),
            _ => {
                let value = self.other("array");
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(value);
            }
        };
        let mut items = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(1024));
        let cx = self.cx;
        loop {
            cx.path.push(Segment::Index(items.len()));
            let next = seq.next_element_seed(Seed { ty: item, cx: &mut *cx })?;
            cx.path.pop();
            match next {
                Some(Value::Null) if !cx.options.unstructured => items.push(item.zero()),
                Some(value) => items.push(value),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        let Seed { ty, cx } = self;
        match &ty.shape {
            Shape::Struct(shape) => structure(ty, shape, cx, map),
            Shape::Map(shape) => entries(&shape.value, cx, map),
            Shape::Any | Shape::Deduced => entries(ty, cx, map),
            Shape::SchemaOr(_, props) => Seed { ty: props, cx }.visit_map(map),
            _ if cx.options.unstructured => entries(any(), cx, map),
            _ => {
                let value = Seed { ty, cx }.other("object");
                skip(map)?;
                Ok(value)
            }
        }
    }
}

fn any() -> &'static TypeRef {
    static ANY: std::sync::OnceLock<TypeRef> = std::sync::OnceLock::new();
    ANY.get_or_init(TypeRef::any)
}

fn skip<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

fn string_array<'de, A: SeqAccess<'de>>(seed: Seed<'_, '_>, mut seq: A) -> Result<Value, A::Error> {
    let mut items = Vec::new();
    while let Some(item) = seq.next_element::<Value>()? {
        if !matches!(item, Value::String(_)) {
            seed.cx.fatal("array of strings or JSON schema expected");
        }
        items.push(item);
    }
    Ok(Value::Array(items))
}

/// The entries of a map, or of an object without a schema.
fn entries<'de, 't, A: MapAccess<'de>>(
    value_type: &'t TypeRef,
    cx: &mut Context<'t>,
    mut map: A,
) -> Result<Value, A::Error> {
    // Go keeps the text of such values; only custom resources are looked through for duplicates.
    let report = cx.options.unstructured || !matches!(value_type.shape, Shape::Any | Shape::Deduced);
    let mut entries: Vec<(CompactString, Value)> = Vec::with_capacity(map.size_hint().unwrap_or(4).min(1024));
    while let Some(key) = map.next_key_seed(Key)? {
        cx.path.push(Segment::Key(key));
        let value = map.next_value_seed(Seed { ty: value_type, cx: &mut *cx })?;
        let Some(Segment::Key(key)) = cx.path.pop() else { unreachable!("pushed above") };
        let value = match value {
            Value::Null if !cx.options.unstructured && !matches!(value_type.shape, Shape::Any | Shape::Deduced) => {
                value_type.zero()
            }
            value => value,
        };
        entries.push((key, value));
    }
    let (map, duplicates) = Map::from_entries(entries);
    if report {
        for key in &duplicates {
            cx.finding("duplicate", key);
        }
    }
    Ok(Value::Object(map))
}

fn structure<'de, 't, A: MapAccess<'de>>(
    ty: &'t TypeRef,
    shape: &'t Struct,
    cx: &mut Context<'t>,
    mut map: A,
) -> Result<Value, A::Error> {
    let outer = cx.owner.replace(ty);
    let mut seen = Seen::default();
    let mut entries: Vec<(CompactString, Value)> = Vec::with_capacity(map.size_hint().unwrap_or(8).min(64));
    while let Some(key) = map.next_key_seed(FieldName(shape))? {
        let index = match key {
            Ok(index) => index,
            Err(name) => {
                unknown(shape, cx, &mut map, name, &mut entries)?;
                continue;
            }
        };
        let field: &'t Field = &shape.fields()[index];
        let again = !seen.insert(index);
        if again {
            cx.finding("duplicate", &field.name);
        }
        cx.path.push(Segment::Field(&field.name));
        let value = map.next_value_seed(Seed { ty: &field.ty, cx: &mut *cx })?;
        cx.path.pop();
        if again {
            entries.retain(|(name, _)| *name != field.name);
        }
        if cx.options.unstructured || !field.leaves_out(&value) {
            entries.push((field.name.clone(), value));
        }
    }
    cx.owner = outer;
    if !cx.options.unstructured {
        super::normalize::fill(shape, &mut entries);
    }
    let (map, duplicates) = Map::from_entries(entries);
    for key in &duplicates {
        cx.finding("duplicate", key);
    }
    Ok(Value::Object(map))
}

/// A field that the struct does not have.
fn unknown<'de, 't, A: MapAccess<'de>>(
    shape: &'t Struct,
    cx: &mut Context<'t>,
    map: &mut A,
    name: CompactString,
    entries: &mut Vec<(CompactString, Value)>,
) -> Result<(), A::Error> {
    if !shape.preserve_unknown && !cx.options.unstructured {
        cx.finding("unknown", &name);
        map.next_value::<IgnoredAny>()?;
        return Ok(());
    }
    cx.path.push(Segment::Key(name));
    let value = map.next_value_seed(Seed { ty: any(), cx: &mut *cx })?;
    let Some(Segment::Key(name)) = cx.path.pop() else { unreachable!("pushed above") };
    entries.push((name, value));
    Ok(())
}

/// Which fields of a struct were there.
#[derive(Default)]
struct Seen {
    first: u128,
    rest: Vec<usize>,
}

impl Seen {
    fn insert(&mut self, index: usize) -> bool {
        if index < 128 {
            let bit = 1u128 << index;
            let new = self.first & bit == 0;
            self.first |= bit;
            return new;
        }
        let new = !self.rest.contains(&index);
        if new {
            self.rest.push(index);
        }
        new
    }
}

/// A key of a map.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = CompactString;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<CompactString, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = CompactString;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, s: &str) -> Result<CompactString, E> {
        Ok(s.into())
    }

    fn visit_bytes<E: serde::de::Error>(self, b: &[u8]) -> Result<CompactString, E> {
        CompactString::from_utf8(b).map_err(|_| E::custom("a key is not UTF-8"))
    }
}

/// A key of a struct: the index of the field, or the name that is none.
struct FieldName<'t>(&'t Struct);

impl<'de> DeserializeSeed<'de> for FieldName<'_> {
    type Value = Result<usize, CompactString>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName<'_> {
    type Value = Result<usize, CompactString>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, s: &str) -> Result<Self::Value, E> {
        Ok(self.0.index_of(s).ok_or_else(|| s.into()))
    }
}
