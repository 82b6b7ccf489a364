//! Values as expressions see them: borrowed from the object wherever they can be.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::rc::Rc;

use apimachinery::Value;
use apimachinery::quantity::Quantity;
use ipnet::IpNet;
use jiff::Timestamp;

use super::Error;
use super::types::{DYN, Type};

/// A value. Lists and objects of the API are looked into, never copied.
#[derive(Clone)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Cow<'a, str>),
    Bytes(Rc<[u8]>),
    /// A list or an object of the API, with what the schema says about it.
    Json(&'a Value, &'a Type),
    List(Rc<Vec<Val<'a>>>),
    Map(Rc<Vec<(Val<'a>, Val<'a>)>>),
    Timestamp(Timestamp),
    /// In nanoseconds.
    Duration(i64),
    Optional(Option<Rc<Val<'a>>>),
    /// The name of a type.
    Type(&'static str),
    Quantity(Quantity),
    Url(Rc<super::kubernetes::Url>),
    Ip(std::net::IpAddr),
    Cidr(IpNet),
    Semver(Rc<super::kubernetes::Semver>),
    Format(&'static super::kubernetes::Format),
    Opaque(Rc<dyn Opaque<'a> + 'a>),
}

/// An object with fields and methods of its own, bound by whoever evaluates.
pub trait Opaque<'a> {
    fn type_name(&self) -> &'static str;

    /// `x.name`; `None`: it has no such field.
    fn field(&self, _name: &str) -> Option<Result<Val<'a>, Error>> {
        None
    }

    /// `x.method(arguments)`; `None`: it has no such method. What a call costs is added to `cost`.
    fn call(&self, _method: &str, _arguments: &[Val<'a>], _cost: &mut u64) -> Option<Result<Val<'a>, Error>> {
        None
    }
}

impl<'a> Val<'a> {
    /// A value of the API, without a schema.
    #[must_use]
    pub fn json(value: &'a Value) -> Self {
        Self::typed(value, &DYN)
    }

    /// A value of the API that has this type.
    #[must_use]
    pub fn typed(value: &'a Value, ty: &'a Type) -> Self {
        match value {
            Value::Null => Val::Null,
            Value::Bool(b) => Val::Bool(*b),
            #[expect(clippy::cast_precision_loss, reason = "the schema says that it is a float")]
            Value::Int(i) if *ty == Type::Double => Val::Double(*i as f64),
            Value::Int(i) => Val::Int(*i),
            Value::Float(f) => Val::Double(*f),
            Value::String(s) => match ty {
                Type::Timestamp => super::time::parse_timestamp(s).map_or_else(|| Val::text(s), Val::Timestamp),
                Type::Duration => super::time::parse_duration(s).map_or_else(|| Val::text(s), Val::Duration),
                Type::Bytes => super::time::decode_base64(s).map_or_else(|| Val::text(s), |b| Val::Bytes(b.into())),
                _ => Val::text(s),
            },
            Value::Array(_) | Value::Object(_) => Val::Json(value, ty),
        }
    }

    #[must_use]
    pub fn text(s: &'a str) -> Self {
        Val::String(Cow::Borrowed(s))
    }

    #[must_use]
    pub fn string(s: impl Into<String>) -> Self {
        Val::String(Cow::Owned(s.into()))
    }

    #[must_use]
    pub fn list(items: Vec<Val<'a>>) -> Self {
        Val::List(Rc::new(items))
    }

    #[must_use]
    pub fn some(value: Val<'a>) -> Self {
        Val::Optional(Some(Rc::new(value)))
    }

    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Val::Bool(b) => Some(*b),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Val::String(s) => Some(s),
            _ => None,
        }
    }

    /// The items of a list; `None` for anything else.
    #[must_use]
    pub fn items(&self) -> Option<Vec<Val<'a>>> {
        match self {
            Val::List(items) => Some(items.as_ref().clone()),
            Val::Json(Value::Array(items), ty) => {
                let ty: &'a Type = item_type(ty);
                Some(items.iter().map(|item| Val::typed(item, ty)).collect())
            }
            _ => None,
        }
    }

    /// The entries of a map or an object; `None` for anything else.
    #[must_use]
    pub fn entries(&self) -> Option<Vec<(Val<'a>, Val<'a>)>> {
        match self {
            Val::Map(entries) => Some(entries.as_ref().clone()),
            Val::Json(Value::Object(map), ty) => {
                let ty: &'a Type = ty;
                Some(map.iter().map(|(k, v)| (Val::text(k), Val::typed(v, property_type(ty, k)))).collect())
            }
            _ => None,
        }
    }

    /// How many items, entries or characters it has.
    #[must_use]
    pub fn size(&self) -> Option<usize> {
        match self {
            Val::String(s) => Some(s.chars().count()),
            Val::Bytes(b) => Some(b.len()),
            Val::List(items) => Some(items.len()),
            Val::Map(entries) => Some(entries.len()),
            Val::Json(Value::Array(items), _) => Some(items.len()),
            Val::Json(Value::Object(map), _) => Some(map.len()),
            _ => None,
        }
    }

    /// The name of its type, as expressions and messages have it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::String(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::Json(Value::Array(_), _) | Val::List(_) => "list",
            Val::Json(..) | Val::Map(_) => "map",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::Optional(_) => "optional_type",
            Val::Type(_) => "type",
            Val::Quantity(_) => "kubernetes.Quantity",
            Val::Url(_) => "kubernetes.URL",
            Val::Ip(_) => "net.IP",
            Val::Cidr(_) => "net.CIDR",
            Val::Semver(_) => "kubernetes.Semver",
            Val::Format(_) => "kubernetes.NamedFormat",
            Val::Opaque(object) => object.type_name(),
        }
    }

    /// The value as JSON; `None` for what has no JSON.
    #[must_use]
    pub fn to_value(&self) -> Option<Value> {
        Some(match self {
            Val::Null => Value::Null,
            Val::Bool(b) => Value::Bool(*b),
            Val::Int(i) => Value::Int(*i),
            Val::Uint(u) => Value::Int(i64::try_from(*u).ok()?),
            Val::Double(d) => Value::Float(*d),
            Val::String(s) => s.as_ref().into(),
            Val::Json(v, _) => (*v).clone(),
            Val::List(items) => Value::Array(items.iter().map(Val::to_value).collect::<Option<_>>()?),
            Val::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(k, v)| Some((compact_str::CompactString::from(k.as_str()?), v.to_value()?)))
                    .collect::<Option<_>>()?,
            ),
            Val::Timestamp(_) | Val::Duration(_) => super::functions::to_text(self).ok()?.into(),
            Val::Bytes(b) => super::time::encode_base64(b).into(),
            Val::Optional(Some(inner)) => inner.to_value()?,
            _ => return None,
        })
    }
}

/// The type of a list's items.
pub(super) fn item_type(ty: &Type) -> &Type {
    match ty {
        Type::List(item) => item,
        _ => &DYN,
    }
}

/// The type of what an object has under a key, by its real name.
fn property_type<'t>(ty: &'t Type, key: &str) -> &'t Type {
    match ty {
        Type::Map(value) => value,
        Type::Object(object) => super::types::escape(key).and_then(|k| object.field(&k).map(|f| &f.ty)).unwrap_or(&DYN),
        _ => &DYN,
    }
}

/// `map[key]`, `object.key`: `None` if it is not there, an error if this is no map.
pub(super) fn lookup<'a>(of: &Val<'a>, key: &Val<'_>) -> Result<Option<Val<'a>>, Error> {
    match of {
        Val::Json(Value::Object(map), ty) => {
            let ty: &'a Type = ty;
            let Val::String(key) = key else { return Ok(None) };
            let named = match ty {
                Type::Object(object) => object.field(key).map(|f| (f.name.as_str(), &f.ty)),
                Type::Map(value) => Some((key.as_ref(), &**value)),
                _ => None,
            };
            let (name, ty) = named.unwrap_or((key.as_ref(), &DYN));
            // In an object with fields, null is the same as nothing.
            Ok(map.get(name).map(|v| Val::typed(v, ty)))
        }
        Val::Map(entries) => Ok(entries.iter().find(|(k, _)| equal(k, key)).map(|(_, v)| v.clone())),
        Val::Opaque(object) => match key {
            Val::String(key) => object.field(key).transpose(),
            _ => Err(Error::no_overload()),
        },
        _ => Err(Error::no_overload()),
    }
}

/// CEL's `==`: values of different types are different, except that numbers compare by what they are worth.
#[must_use]
pub(super) fn equal(a: &Val<'_>, b: &Val<'_>) -> bool {
    match (a, b) {
        (Val::Null, Val::Null) => true,
        (Val::Bool(x), Val::Bool(y)) => x == y,
        (Val::String(x), Val::String(y)) => x == y,
        (Val::Bytes(x), Val::Bytes(y)) => x == y,
        (Val::Json(x, s), Val::Json(y, t)) if std::ptr::eq(*s, *t) && *s == &DYN && x == y => true,
        (Val::Optional(x), Val::Optional(y)) => match (x, y) {
            (None, None) => true,
            (Some(x), Some(y)) => equal(x, y),
            _ => false,
        },
        (Val::Type(x), Val::Type(y)) => x == y,
        (Val::Url(x), Val::Url(y)) => x.text == y.text,
        (Val::Ip(x), Val::Ip(y)) => x == y,
        (Val::Cidr(x), Val::Cidr(y)) => x == y,
        (Val::Format(x), Val::Format(y)) => x.name == y.name,
        (Val::Opaque(x), Val::Opaque(y)) => std::ptr::addr_eq(Rc::as_ptr(x), Rc::as_ptr(y)),
        (Val::Json(..) | Val::List(_) | Val::Map(_), Val::Json(..) | Val::List(_) | Val::Map(_)) => {
            if let (Some(x), Some(y)) = (a.items(), b.items()) {
                return x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| equal(x, y));
            }
            let (Some(x), Some(y)) = (a.entries(), b.entries()) else { return false };
            x.len() == y.len() && x.iter().all(|(k, v)| y.iter().any(|(other, w)| equal(k, other) && equal(v, w)))
        }
        _ => compare(a, b) == Some(Ordering::Equal),
    }
}

/// The order of two values; `None` for values that have none.
#[must_use]
pub(super) fn compare(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    #[expect(clippy::cast_precision_loss, reason = "that is how CEL compares an integer with a float")]
    match (a, b) {
        (Val::Bool(x), Val::Bool(y)) => Some(x.cmp(y)),
        (Val::Int(x), Val::Int(y)) => Some(x.cmp(y)),
        (Val::Uint(x), Val::Uint(y)) => Some(x.cmp(y)),
        (Val::Double(x), Val::Double(y)) => x.partial_cmp(y),
        (Val::Int(x), Val::Uint(y)) => Some(u64::try_from(*x).map_or(Ordering::Less, |x| x.cmp(y))),
        (Val::Uint(_), Val::Int(_)) | (Val::Double(_), Val::Int(_) | Val::Uint(_)) => {
            compare(b, a).map(Ordering::reverse)
        }
        (Val::Int(x), Val::Double(y)) => (*x as f64).partial_cmp(y),
        (Val::Uint(x), Val::Double(y)) => (*x as f64).partial_cmp(y),
        (Val::String(x), Val::String(y)) => Some(x.cmp(y)),
        (Val::Bytes(x), Val::Bytes(y)) => Some(x.cmp(y)),
        (Val::Timestamp(x), Val::Timestamp(y)) => Some(x.cmp(y)),
        (Val::Duration(x), Val::Duration(y)) => Some(x.cmp(y)),
        (Val::Quantity(x), Val::Quantity(y)) => Some(x.cmp(y)),
        (Val::Semver(x), Val::Semver(y)) => Some(x.compare(y)),
        _ => None,
    }
}

impl fmt::Debug for Val<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Val::Optional(None) => f.write_str("optional.none()"),
            Val::Optional(Some(inner)) => write!(f, "optional.of({inner:?})"),
            Val::Type(name) => f.write_str(name),
            Val::Uint(u) => write!(f, "{u}u"),
            other => match other.to_value().and_then(|v| serde_json::to_string(&v).ok()) {
                Some(json) => f.write_str(&json),
                None => match super::functions::to_text(other) {
                    Ok(text) => write!(f, "{}({text})", other.type_name()),
                    Err(_) => f.write_str(other.type_name()),
                },
            },
        }
    }
}
