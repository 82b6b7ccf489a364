//! The functions of the standard library, and the way to those of the other libraries.

use super::Error;
use super::value::{Val, equal};
use super::{kubernetes, lists, strings, time};

/// What stands before the dot of functions that belong to no value.
pub(super) const NAMESPACES: &[&str] =
    &["optional", "sets", "format", "ip", "cidr", "math", "strings", "base64", "semver", "jsonpatch"];

/// What a call costs, by the sizes of what it looks at.
pub(super) fn cost(name: &str, target: Option<&Val<'_>>, args: &[Val<'_>]) -> u64 {
    fn size(v: Option<&Val<'_>>) -> u64 {
        v.and_then(Val::size).map_or(1, |n| n as u64)
    }
    let tenth = |n: u64| n.div_ceil(10).max(1);
    match name {
        "_==_" | "_!=_" => match (args.first().and_then(Val::size), args.get(1).and_then(Val::size)) {
            (Some(a), Some(b)) => tenth(a.min(b) as u64),
            _ => 1,
        },
        "_+_" if args.iter().any(|a| a.size().is_some()) => tenth(size(args.first()) + size(args.get(1))),
        "_<_" | "_<=_" | "_>_" | "_>=_" => tenth(size(args.first()).min(size(args.get(1)))),
        "@in" => size(args.get(1)),
        "matches" => {
            let (text, pattern) = match target {
                Some(target) => (size(Some(target)), size(args.first())),
                None => (size(args.first()), size(args.get(1))),
            };
            tenth(text + 1) * pattern.div_ceil(4).max(1)
        }
        "find" | "findAll" => tenth(size(target) + 1) * size(args.first()).div_ceil(4).max(1),
        "contains" | "indexOf" | "lastIndexOf" => tenth(size(target)) * tenth(size(args.first())),
        "startsWith" | "endsWith" => tenth(size(args.first())),
        "lowerAscii" | "upperAscii" | "replace" | "split" | "substring" | "trim" | "join" | "format" | "reverse"
        | "quantity" | "isQuantity" | "url" | "isURL" | "ip" | "isIP" | "cidr" | "isCIDR" | "validate" | "semver"
        | "isSemver" | "ip.isCanonical" => tenth(if target.is_some() { size(target) } else { size(args.first()) }),
        "isSorted" | "sum" | "min" | "max" => size(target).max(1),
        "sets.contains" | "sets.intersects" | "sets.equivalent" => size(args.first()) * size(args.get(1)) + 1,
        // An authorizer asks somebody else.
        "check" => 350_000,
        _ => 1,
    }
}

/// `f(arguments)`.
pub(super) fn global<'a>(name: &str, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    match (name, args) {
        ("size", [v]) => size(v),
        ("type", [v]) => Ok(Val::Type(v.type_name())),
        ("dyn", [v]) => Ok(v.clone()),
        ("string", [v]) => to_text(v).map(Val::string),
        ("int", [v]) => to_int(v),
        ("uint", [v]) => to_uint(v),
        ("double", [v]) => to_double(v),
        ("bool", [v]) => to_bool(v),
        ("bytes", [v]) => match v {
            Val::String(s) => Ok(Val::Bytes(s.as_bytes().into())),
            Val::Bytes(_) => Ok(v.clone()),
            _ => Err(Error::no_overload()),
        },
        ("matches", [text, pattern]) => strings::matches(text, pattern),
        ("optional.of", [v]) => Ok(Val::some(v.clone())),
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.ofNonZeroValue", [v]) => Ok(if is_zero(v) { Val::Optional(None) } else { Val::some(v.clone()) }),
        ("timestamp" | "duration", [v]) => time::convert(name, v),
        ("jsonpatch.escapeKey", [Val::String(s)]) => Ok(Val::string(s.replace('~', "~0").replace('/', "~1"))),
        ("sets.contains" | "sets.intersects" | "sets.equivalent", [a, b]) => lists::sets(name, a, b),
        _ => kubernetes::global(name, args),
    }
}

/// `target.f(arguments)`.
pub(super) fn method<'a>(name: &str, target: &Val<'a>, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    if let ("size", []) = (name, args) {
        return size(target);
    }
    match target {
        Val::String(text) => strings::method(name, text, target, args),
        Val::Optional(inner) => match (name, args, inner) {
            ("hasValue", [], _) => Ok(Val::Bool(inner.is_some())),
            ("value", [], Some(inner)) => Ok(inner.as_ref().clone()),
            ("value", [], None) => Err(Error::new("optional.none() dereference")),
            ("orValue", [other], _) => Ok(inner.as_ref().map_or_else(|| other.clone(), |v| v.as_ref().clone())),
            ("or", [other @ Val::Optional(_)], _) => Ok(if inner.is_some() { target.clone() } else { other.clone() }),
            _ => Err(Error::no_overload()),
        },
        Val::Timestamp(at) => time::of_timestamp(name, *at, args),
        Val::Duration(nanos) => time::of_duration(name, *nanos, args),
        _ if target.items().is_some() => lists::method(name, target, args),
        _ => kubernetes::method(name, target, args),
    }
}

fn size<'a>(v: &Val<'a>) -> Result<Val<'a>, Error> {
    v.size().and_then(|n| i64::try_from(n).ok()).map(Val::Int).ok_or_else(Error::no_overload)
}

fn is_zero(v: &Val<'_>) -> bool {
    match v {
        Val::Null => true,
        Val::Bool(b) => !b,
        Val::Int(_) | Val::Uint(_) | Val::Double(_) => equal(v, &Val::Int(0)),
        Val::Duration(d) => *d == 0,
        other => other.size() == Some(0),
    }
}

/// `string(x)`.
pub(super) fn to_text(v: &Val<'_>) -> Result<String, Error> {
    Ok(match v {
        Val::String(s) => s.to_string(),
        Val::Bool(b) => b.to_string(),
        Val::Int(i) => i.to_string(),
        Val::Uint(u) => u.to_string(),
        Val::Double(d) => double_text(*d),
        Val::Bytes(b) => std::str::from_utf8(b)
            .map_err(|_| Error::new("invalid UTF-8 in bytes, cannot convert to string"))?
            .to_owned(),
        Val::Timestamp(at) => time::timestamp_text(*at),
        Val::Duration(nanos) => time::duration_text(*nanos),
        Val::Type(name) => (*name).to_owned(),
        Val::Quantity(q) => q.to_string(),
        Val::Url(url) => url.text.clone(),
        Val::Ip(ip) => ip.to_string(),
        Val::Cidr(net) => net.to_string(),
        Val::Semver(version) => version.text.clone(),
        _ => return Err(Error::no_overload()),
    })
}

fn double_text(d: f64) -> String {
    if d.is_infinite() {
        return if d > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let magnitude = d.abs();
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{d:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(("+", exponent), |e| ("-", e));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    d.to_string()
}

fn to_int<'a>(v: &Val<'a>) -> Result<Val<'a>, Error> {
    let range = || Error::new("integer overflow");
    match v {
        Val::Int(_) => Ok(v.clone()),
        Val::Uint(u) => i64::try_from(*u).map(Val::Int).map_err(|_| range()),
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
        Val::Double(d) if d.is_finite() && d.abs() < 9.223_372_036_854_776e18 => Ok(Val::Int(*d as i64)),
        Val::Double(_) => Err(range()),
        Val::String(s) => s.parse().map(Val::Int).map_err(|_| {
            let numeric = s.trim_start_matches(['-', '+']);
            let what = if !numeric.is_empty() && numeric.bytes().all(|b| b.is_ascii_digit()) {
                "value out of range"
            } else {
                "invalid syntax"
            };
            Error::new(format!("strconv.ParseInt: parsing {:?}: {what}", s.as_ref()))
        }),
        Val::Timestamp(at) => Ok(Val::Int(at.as_second())),
        Val::Duration(nanos) => Ok(Val::Int(*nanos)),
        _ => Err(Error::no_overload()),
    }
}

fn to_uint<'a>(v: &Val<'a>) -> Result<Val<'a>, Error> {
    let range = || Error::new("unsigned integer overflow");
    match v {
        Val::Uint(_) => Ok(v.clone()),
        Val::Int(i) => u64::try_from(*i).map(Val::Uint).map_err(|_| range()),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        Val::Double(d) if (0.0..1.844_674_407_370_955_2e19).contains(d) => Ok(Val::Uint(*d as u64)),
        Val::Double(_) => Err(range()),
        Val::String(s) => s
            .parse()
            .map(Val::Uint)
            .map_err(|_| Error::new(format!("strconv.ParseUint: parsing {:?}: invalid syntax", s.as_ref()))),
        _ => Err(Error::no_overload()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "that is what asking for a float means")]
fn to_double<'a>(v: &Val<'a>) -> Result<Val<'a>, Error> {
    match v {
        Val::Double(_) => Ok(v.clone()),
        Val::Int(i) => Ok(Val::Double(*i as f64)),
        Val::Uint(u) => Ok(Val::Double(*u as f64)),
        Val::String(s) => s
            .parse()
            .map(Val::Double)
            .map_err(|_| Error::new(format!("strconv.ParseFloat: parsing {:?}: invalid syntax", s.as_ref()))),
        _ => Err(Error::no_overload()),
    }
}

fn to_bool<'a>(v: &Val<'a>) -> Result<Val<'a>, Error> {
    match v {
        Val::Bool(_) => Ok(v.clone()),
        Val::String(s) => match s.as_ref() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Val::Bool(false)),
            _ => Err(Error::new(format!("strconv.ParseBool: parsing {:?}: invalid syntax", s.as_ref()))),
        },
        _ => Err(Error::no_overload()),
    }
}
