//! Arithmetic, comparison, membership and indexing.

use std::cmp::Ordering;

use ::cel::common::ast::operators as op;

use super::Error;
use super::value::{Val, compare, equal, lookup};

/// Applies an operator; `None` if that is none.
pub(super) fn apply<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>, Error>> {
    Some(match (name, args) {
        (op::EQUALS, [a, b]) => Ok(Val::Bool(equal(a, b))),
        (op::NOT_EQUALS, [a, b]) => Ok(Val::Bool(!equal(a, b))),
        (op::LESS, [a, b]) => ordered(a, b, |o| o == Ordering::Less),
        (op::LESS_EQUALS, [a, b]) => ordered(a, b, |o| o != Ordering::Greater),
        (op::GREATER, [a, b]) => ordered(a, b, |o| o == Ordering::Greater),
        (op::GREATER_EQUALS, [a, b]) => ordered(a, b, |o| o != Ordering::Less),
        (op::LOGICAL_NOT, [Val::Bool(b)]) => Ok(Val::Bool(!b)),
        (op::NEGATE, [a]) => match a {
            Val::Int(i) => i.checked_neg().map(Val::Int).ok_or_else(overflow),
            Val::Double(d) => Ok(Val::Double(-d)),
            Val::Duration(d) => d.checked_neg().map(Val::Duration).ok_or_else(overflow),
            _ => Err(Error::no_overload()),
        },
        (op::ADD, [a, b]) => add(a, b),
        (op::SUBSTRACT, [a, b]) => subtract(a, b),
        (op::MULTIPLY, [a, b]) => match (a, b) {
            (Val::Int(x), Val::Int(y)) => x.checked_mul(*y).map(Val::Int).ok_or_else(overflow),
            (Val::Uint(x), Val::Uint(y)) => x.checked_mul(*y).map(Val::Uint).ok_or_else(unsigned_overflow),
            (Val::Double(x), Val::Double(y)) => Ok(Val::Double(x * y)),
            _ => Err(Error::no_overload()),
        },
        (op::DIVIDE, [a, b]) => match (a, b) {
            (Val::Int(_), Val::Int(0)) | (Val::Uint(_), Val::Uint(0)) => Err(Error::new("division by zero")),
            (Val::Int(x), Val::Int(y)) => x.checked_div(*y).map(Val::Int).ok_or_else(overflow),
            (Val::Uint(x), Val::Uint(y)) => Ok(Val::Uint(x / y)),
            (Val::Double(x), Val::Double(y)) => Ok(Val::Double(x / y)),
            _ => Err(Error::no_overload()),
        },
        (op::MODULO, [a, b]) => match (a, b) {
            (Val::Int(_), Val::Int(0)) | (Val::Uint(_), Val::Uint(0)) => Err(Error::new("modulus by zero")),
            (Val::Int(x), Val::Int(y)) => x.checked_rem(*y).map(Val::Int).ok_or_else(overflow),
            (Val::Uint(x), Val::Uint(y)) => Ok(Val::Uint(x % y)),
            _ => Err(Error::no_overload()),
        },
        (op::IN, [a, b]) => contains(a, b),
        (op::INDEX, [of, key]) => index(of, key),
        (op::OPT_INDEX, [of, key]) => optional(of, key),
        (op::OPT_SELECT, [of, key]) => optional(of, key),
        _ if name.starts_with('_') || name.starts_with('@') || name == op::LOGICAL_NOT || name == op::NEGATE => {
            Err(Error::no_overload())
        }
        _ => return None,
    })
}

fn overflow() -> Error {
    Error::new("integer overflow")
}

fn unsigned_overflow() -> Error {
    Error::new("unsigned integer overflow")
}

fn ordered<'a>(a: &Val<'_>, b: &Val<'_>, holds: impl FnOnce(Ordering) -> bool) -> Result<Val<'a>, Error> {
    if let (Val::Double(_) | Val::Int(_) | Val::Uint(_), Val::Double(_) | Val::Int(_) | Val::Uint(_)) = (a, b) {
        return Ok(Val::Bool(compare(a, b).is_some_and(holds)));
    }
    compare(a, b).map(|o| Val::Bool(holds(o))).ok_or_else(Error::no_overload)
}

fn add<'a>(a: &Val<'a>, b: &Val<'a>) -> Result<Val<'a>, Error> {
    match (a, b) {
        (Val::Int(x), Val::Int(y)) => x.checked_add(*y).map(Val::Int).ok_or_else(overflow),
        (Val::Uint(x), Val::Uint(y)) => x.checked_add(*y).map(Val::Uint).ok_or_else(unsigned_overflow),
        (Val::Double(x), Val::Double(y)) => Ok(Val::Double(x + y)),
        (Val::String(x), Val::String(y)) => Ok(Val::string(format!("{x}{y}"))),
        (Val::Bytes(x), Val::Bytes(y)) => Ok(Val::Bytes([&**x, &**y].concat().into())),
        (Val::Duration(x), Val::Duration(y)) => x.checked_add(*y).map(Val::Duration).ok_or_else(overflow),
        (Val::Timestamp(t), Val::Duration(d)) | (Val::Duration(d), Val::Timestamp(t)) => {
            t.checked_add(jiff::SignedDuration::from_nanos(*d)).map(Val::Timestamp).map_err(|_| timestamp_overflow())
        }
        _ => match (a.items(), b.items()) {
            (Some(mut x), Some(y)) => {
                x.extend(y);
                Ok(Val::list(x))
            }
            _ => Err(Error::no_overload()),
        },
    }
}

fn timestamp_overflow() -> Error {
    Error::new("timestamp overflow")
}

fn subtract<'a>(a: &Val<'a>, b: &Val<'a>) -> Result<Val<'a>, Error> {
    match (a, b) {
        (Val::Int(x), Val::Int(y)) => x.checked_sub(*y).map(Val::Int).ok_or_else(overflow),
        (Val::Uint(x), Val::Uint(y)) => x.checked_sub(*y).map(Val::Uint).ok_or_else(unsigned_overflow),
        (Val::Double(x), Val::Double(y)) => Ok(Val::Double(x - y)),
        (Val::Duration(x), Val::Duration(y)) => x.checked_sub(*y).map(Val::Duration).ok_or_else(overflow),
        (Val::Timestamp(t), Val::Duration(d)) => {
            t.checked_sub(jiff::SignedDuration::from_nanos(*d)).map(Val::Timestamp).map_err(|_| timestamp_overflow())
        }
        (Val::Timestamp(x), Val::Timestamp(y)) => {
            i64::try_from(x.duration_since(*y).as_nanos()).map(Val::Duration).map_err(|_| overflow())
        }
        _ => Err(Error::no_overload()),
    }
}

fn contains<'a>(what: &Val<'a>, within: &Val<'a>) -> Result<Val<'a>, Error> {
    if let Some(items) = within.items() {
        return Ok(Val::Bool(items.iter().any(|item| equal(item, what))));
    }
    match within {
        Val::Json(..) | Val::Map(_) => Ok(Val::Bool(lookup(within, what)?.is_some())),
        _ => Err(Error::no_overload()),
    }
}

/// An index from whatever kind of whole number.
fn position(key: &Val<'_>) -> Option<i64> {
    match key {
        Val::Int(i) => Some(*i),
        Val::Uint(u) => i64::try_from(*u).ok(),
        #[expect(clippy::cast_possible_truncation, reason = "only if it is whole")]
        Val::Double(d) if d.fract() == 0.0 => Some(*d as i64),
        _ => None,
    }
}

fn found<'a>(of: &Val<'a>, key: &Val<'a>) -> Result<Option<Val<'a>>, Error> {
    let at = || position(key).ok_or_else(Error::no_overload).map(|i| usize::try_from(i).unwrap_or(usize::MAX));
    match of {
        Val::List(items) => Ok(items.get(at()?).cloned()),
        Val::Json(apimachinery::Value::Array(items), ty) => {
            Ok(items.get(at()?).map(|item| Val::typed(item, super::value::item_type(ty))))
        }
        _ => lookup(of, key),
    }
}

fn index<'a>(of: &Val<'a>, key: &Val<'a>) -> Result<Val<'a>, Error> {
    if let Val::Optional(_) = of {
        return optional(of, key);
    }
    let missing = || match of {
        Val::List(_) | Val::Json(apimachinery::Value::Array(_), _) => {
            Error::new(format!("index out of bounds: {key:?}"))
        }
        _ => Error::new(format!("no such key: {}", super::functions::to_text(key).unwrap_or_default())),
    };
    found(of, key)?.ok_or_else(missing)
}

/// `x[?key]`, `x.?key`.
fn optional<'a>(of: &Val<'a>, key: &Val<'a>) -> Result<Val<'a>, Error> {
    match of {
        Val::Optional(None) => Ok(Val::Optional(None)),
        Val::Optional(Some(inner)) => optional(inner, key),
        _ => Ok(found(of, key)?.map_or(Val::Optional(None), Val::some)),
    }
}
