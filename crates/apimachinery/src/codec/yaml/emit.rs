//! Block-style YAML, in the layout of upstream's writer: two spaces, lists not indented, keys in order.

use super::super::json;
use super::scalar;
use crate::Value;

/// Writes an object (or anything else) as a document.
#[must_use]
pub fn encode(value: &Value) -> Vec<u8> {
    let mut out = String::with_capacity(4096);
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, map, 0, false),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        value => {
            flow(&mut out, value);
            out.push('\n');
        }
    }
    out.into_bytes()
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// `inline`: the first key continues the line that `- ` began.
fn mapping(out: &mut String, map: &crate::Map, depth: usize, mut inline: bool) {
    for (key, value) in map.iter() {
        if !std::mem::take(&mut inline) {
            indent(out, depth);
        }
        string(out, key, depth);
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                mapping(out, map, depth + 1, false);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(out, items, depth);
            }
            Value::String(text) if is_block(text) => block(out, text, depth + 1),
            value => {
                out.push(' ');
                flow(out, value);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], depth: usize) {
    for item in items {
        indent(out, depth);
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => mapping(out, map, depth + 1, true),
            Value::Array(items) if !items.is_empty() => {
                out.pop();
                out.push('\n');
                sequence(out, items, depth + 1);
            }
            Value::String(text) if is_block(text) => {
                out.pop();
                block(out, text, depth + 1);
            }
            item => {
                flow(out, item);
                out.push('\n');
            }
        }
    }
}

fn flow(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => string(out, text, 0),
        value => out.push_str(&String::from_utf8_lossy(&json::encode(value))),
    }
}

fn string(out: &mut String, text: &str, _depth: usize) {
    if is_plain(text) {
        out.push_str(text);
    } else {
        // JSON's strings are YAML's double-quoted ones.
        out.push_str(&String::from_utf8_lossy(&json::encode(&text.into())));
    }
}

/// Reads back as the same string without quotes.
fn is_plain(text: &str) -> bool {
    let safe = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(
                c,
                '_' | '-' | '.' | '/' | ':' | '@' | '+' | '=' | ',' | ' ' | '(' | ')' | '%' | '$' | '^' | ';' | '~'
            )
    };
    let first = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '$' | '(' | '^' | '+');
    text.len() <= 1024
        && text.starts_with(first)
        && text.chars().all(safe)
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && matches!(scalar::resolve(text), Value::String(_))
}

/// Several lines that a literal block shows as they are.
fn is_block(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && text.lines().all(|line| !line.ends_with([' ', '\t']))
        && text.chars().all(|c| {
            c == '\n'
                || c == '\t'
                || (!c.is_control() && c != '\u{feff}' && c != '\u{2028}' && c != '\u{2029}' && c != '\u{85}')
        })
        && !text.ends_with("\n\n")
}

fn block(out: &mut String, text: &str, depth: usize) {
    out.push_str(if text.ends_with('\n') { " |\n" } else { " |-\n" });
    for line in text.lines() {
        if !line.is_empty() {
            indent(out, depth);
            out.push_str(line);
        }
        out.push('\n');
    }
}
