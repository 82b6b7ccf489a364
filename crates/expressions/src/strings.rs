//! Strings: the standard library, cel-go's string extension, and Kubernetes' regular expressions.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use regex::{Regex, RegexBuilder};

use super::value::Val;
use super::{Error, functions};

/// A compiled pattern may take that much memory.
const PATTERN_SIZE: usize = 1 << 20;
/// How many compiled patterns a thread keeps.
const KEPT: usize = 256;

thread_local! {
    static PATTERNS: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// A regular expression, bounded in size.
///
/// # Errors
/// What is wrong with it.
pub fn pattern(text: &str) -> Result<Regex, Error> {
    PATTERNS.with_borrow_mut(|kept| {
        if let Some(regex) = kept.get(text) {
            return Ok(regex.clone());
        }
        let regex = RegexBuilder::new(&as_in_go(text))
            .size_limit(PATTERN_SIZE)
            .build()
            .map_err(|_| Error::new(format!("error parsing regexp: `{text}`")))?;
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(text.to_owned(), regex.clone());
        Ok(regex)
    })
}

/// Go's digits, words and spaces are those of ASCII.
fn as_in_go(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        // A class within brackets may be a class in brackets itself.
        match chars.next() {
            Some('d') => out.push_str("[0-9]"),
            Some('D') => out.push_str("[^0-9]"),
            Some('w') => out.push_str("[0-9A-Za-z_]"),
            Some('W') => out.push_str("[^0-9A-Za-z_]"),
            Some('s') => out.push_str(r"[\t\n\f\r ]"),
            Some('S') => out.push_str(r"[^\t\n\f\r ]"),
            Some('b') => out.push_str(r"(?-u:\b)"),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

pub(super) fn matches<'a>(text: &Val<'a>, wanted: &Val<'a>) -> Result<Val<'a>, Error> {
    let (Val::String(text), Val::String(wanted)) = (text, wanted) else { return Err(Error::no_overload()) };
    Ok(Val::Bool(pattern(wanted)?.is_match(text)))
}

pub(super) fn method<'a>(name: &str, text: &Cow<'a, str>, this: &Val<'a>, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    let owned = |s: String| Ok(Val::string(s));
    match (name, args) {
        ("contains", [Val::String(s)]) => Ok(Val::Bool(text.contains(s.as_ref()))),
        ("startsWith", [Val::String(s)]) => Ok(Val::Bool(text.starts_with(s.as_ref()))),
        ("endsWith", [Val::String(s)]) => Ok(Val::Bool(text.ends_with(s.as_ref()))),
        ("matches", [wanted]) => matches(this, wanted),
        ("find", [Val::String(p)]) => owned(pattern(p)?.find(text).map_or("", |m| m.as_str()).to_owned()),
        ("findAll", [Val::String(p)]) => find_all(text, p, None),
        ("findAll", [Val::String(p), Val::Int(limit)]) => find_all(text, p, usize::try_from(*limit).ok()),
        ("lowerAscii", []) => owned(text.to_ascii_lowercase()),
        ("upperAscii", []) => owned(text.to_ascii_uppercase()),
        ("trim", []) => owned(text.trim().to_owned()),
        ("reverse", []) => owned(text.chars().rev().collect()),
        ("charAt", [Val::Int(i)]) => char_at(text, *i),
        ("indexOf", [Val::String(s)]) => index_of(text, s, 0),
        ("indexOf", [Val::String(s), Val::Int(from)]) => index_of(text, s, *from),
        ("lastIndexOf", [Val::String(s)]) => last_index_of(text, s, None),
        ("lastIndexOf", [Val::String(s), Val::Int(from)]) => last_index_of(text, s, Some(*from)),
        ("replace", [Val::String(from), Val::String(to)]) => owned(text.replace(from.as_ref(), to)),
        ("replace", [Val::String(from), Val::String(to), Val::Int(n)]) => owned(match usize::try_from(*n) {
            Ok(n) => text.replacen(from.as_ref(), to, n),
            Err(_) => text.replace(from.as_ref(), to),
        }),
        ("split", [Val::String(by)]) => Ok(split(text, by, -1)),
        ("split", [Val::String(by), Val::Int(n)]) => Ok(split(text, by, *n)),
        ("substring", [Val::Int(from)]) => substring(text, *from, None),
        ("substring", [Val::Int(from), Val::Int(to)]) => substring(text, *from, Some(*to)),
        ("format", [list]) => format_text(text, &list.items().ok_or_else(Error::no_overload)?).map(Val::string),
        _ => super::kubernetes::method(name, this, args),
    }
}

fn find_all<'a>(text: &str, wanted: &str, limit: Option<usize>) -> Result<Val<'a>, Error> {
    let found = pattern(wanted)?;
    let found = found.find_iter(text).map(|m| Val::string(m.as_str()));
    Ok(Val::list(match limit {
        Some(limit) => found.take(limit).collect(),
        None => found.collect(),
    }))
}

fn out_of_range(i: i64) -> Error {
    Error::new(format!("index out of range: {i}"))
}

fn char_at<'a>(text: &str, i: i64) -> Result<Val<'a>, Error> {
    let at = usize::try_from(i).map_err(|_| out_of_range(i))?;
    match text.chars().nth(at) {
        Some(c) => Ok(Val::string(c)),
        None if at == text.chars().count() => Ok(Val::string("")),
        None => Err(out_of_range(i)),
    }
}

fn index_of<'a>(text: &str, wanted: &str, from: i64) -> Result<Val<'a>, Error> {
    let start = usize::try_from(from).map_err(|_| out_of_range(from))?;
    let Some(start) = byte_at(text, start) else {
        return if wanted.is_empty() { Err(out_of_range(from)) } else { Ok(Val::Int(-1)) };
    };
    let found = text[start..].find(wanted).map(|i| text[..start + i].chars().count());
    Ok(Val::Int(found.and_then(|i| i64::try_from(i).ok()).unwrap_or(-1)))
}

fn last_index_of<'a>(text: &str, wanted: &str, from: Option<i64>) -> Result<Val<'a>, Error> {
    let last = match from {
        None => usize::MAX,
        Some(from) => {
            let at = usize::try_from(from).map_err(|_| out_of_range(from))?;
            if at > text.chars().count() {
                return Err(out_of_range(from));
            }
            at
        }
    };
    let chars: Vec<(usize, usize)> = text.char_indices().map(|(at, _)| at).chain([text.len()]).enumerate().collect();
    let found = chars.iter().rev().find(|(i, at)| *i <= last && text[*at..].starts_with(wanted));
    Ok(Val::Int(found.and_then(|(i, _)| i64::try_from(*i).ok()).unwrap_or(-1)))
}

/// Where a character begins; the end counts as one.
fn byte_at(text: &str, index: usize) -> Option<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(index)
}

fn split<'a>(text: &str, by: &str, limit: i64) -> Val<'a> {
    let parts: Vec<String> = match (limit, by.is_empty()) {
        (0, _) => Vec::new(),
        (n, true) => {
            let chars: Vec<char> = text.chars().collect();
            let n = usize::try_from(n).unwrap_or(usize::MAX).min(chars.len());
            let single = chars.iter().take(n.saturating_sub(1)).map(ToString::to_string);
            let rest: String = chars.iter().skip(n.saturating_sub(1)).collect();
            single.chain((n > 0).then_some(rest)).collect()
        }
        (n, false) => match usize::try_from(n) {
            Ok(n) => text.splitn(n, by).map(str::to_owned).collect(),
            Err(_) => text.split(by).map(str::to_owned).collect(),
        },
    };
    Val::list(parts.into_iter().map(Val::string).collect())
}

fn substring<'a>(text: &str, from: i64, to: Option<i64>) -> Result<Val<'a>, Error> {
    let at = |i: i64| usize::try_from(i).ok().and_then(|i| byte_at(text, i)).ok_or_else(|| out_of_range(i));
    let start = at(from)?;
    let end = to.map_or(Ok(text.len()), at)?;
    if start > end {
        return Err(Error::new(format!("invalid substring range. start: {from}, end: {}", to.unwrap_or_default())));
    }
    Ok(Val::string(&text[start..end]))
}

/// `'%s'.format([…])`.
fn format_text(pattern: &str, args: &[Val<'_>]) -> Result<String, Error> {
    let (mut out, mut args, mut chars, mut used) = (String::new(), args.iter(), pattern.chars(), 0);
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = chars.next().ok_or_else(|| Error::new("unexpected end of format string"))?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let mut precision = String::new();
        if verb == '.' {
            for c in chars.by_ref() {
                verb = c;
                if !c.is_ascii_digit() {
                    break;
                }
                precision.push(c);
            }
        }
        let precision: usize = precision.parse::<usize>().unwrap_or(6).min(64);
        let value = args.next().ok_or_else(|| Error::new(format!("index {used} out of range")))?;
        used += 1;
        let wrong = || {
            let text = format!("error during formatting: could not convert argument {value:?} for %{verb}");
            Error::new(text)
        };
        out.push_str(&match (verb, value) {
            ('s', _) => shown(value),
            ('d', Val::Int(_) | Val::Uint(_)) => functions::to_text(value)?,
            ('b', Val::Int(i)) => format!("{i:b}"),
            ('b', Val::Uint(u)) => format!("{u:b}"),
            ('b', Val::Bool(b)) => u8::from(*b).to_string(),
            ('o', Val::Int(i)) => format!("{i:o}"),
            ('x', Val::Int(i)) => format!("{i:x}"),
            ('x', Val::Uint(u)) => format!("{u:x}"),
            ('X', Val::Int(i)) => format!("{i:X}"),
            ('X', Val::Uint(u)) => format!("{u:X}"),
            ('x', Val::String(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
            ('X', Val::String(s)) => s.bytes().map(|b| format!("{b:02X}")).collect(),
            ('f', Val::Double(d)) => format!("{d:.precision$}"),
            #[expect(clippy::cast_precision_loss, reason = "shown as a float")]
            ('f', Val::Int(i)) => format!("{:.precision$}", *i as f64),
            ('e', Val::Double(d)) => {
                let text = format!("{d:.precision$e}");
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, digits) = exponent.strip_prefix('-').map_or(("+", exponent), |e| ("-", e));
                format!("{mantissa}e{sign}{digits:0>2}")
            }
            _ => return Err(wrong()),
        });
    }
    Ok(out)
}

/// A value as `%s` shows it.
fn shown(value: &Val<'_>) -> String {
    if let Val::Null = value {
        return "null".to_owned();
    }
    if let Some(items) = value.items() {
        return format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", "));
    }
    if let Some(entries) = value.entries() {
        let mut texts: Vec<String> = entries.iter().map(|(k, v)| format!("{}: {}", shown(k), shown(v))).collect();
        texts.sort();
        return format!("{{{}}}", texts.join(", "));
    }
    functions::to_text(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_go() {
        let fits = |wanted: &str, text: &str| pattern(wanted).unwrap().is_match(text);
        assert!(fits(r"^(\d+|\*)(/\d+)?$", "15/3") && fits(r"^\d+$", "7") && !fits(r"^\d+$", "\u{661}"));
        assert!(fits(r"^[\w.-]+$", "a_b.c-1") && !fits(r"^[\w.-]+$", "a b"));
        assert!(fits(r"^[\d-x]$", "-") && fits(r"^\s\S$", " a") && fits(r"\bx\b", "a x b"));
        assert!(fits("(?i)^abc$", "ABC") && fits(r"^\pL+$", "\u{e9}") && fits(r"^\\d$", r"\d"));
        assert!(pattern("(").is_err());
    }
}
