//! Values as Go's `%v` prints them, which shows in messages: `map[image:x name:a]`.

use std::fmt::Write as _;

use crate::Value;

/// Messages are cut at this length: values may be as long as the body.
const MAX_LENGTH: usize = 4096;

pub(super) fn go_format(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value);
    out
}

pub(super) fn go_format_list(items: &[Value]) -> String {
    let mut out = String::new();
    write_list(&mut out, items);
    out
}

fn write(out: &mut String, value: &Value) {
    if out.len() > MAX_LENGTH {
        return;
    }
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Null => write!(out, "<nil>"),
        Value::Bool(b) => write!(out, "{b}"),
        Value::Int(n) => write!(out, "{n}"),
        Value::Float(n) => write!(out, "{n}"),
        Value::String(s) => write!(out, "{s}"),
        Value::Array(items) => {
            write_list(out, items);
            Ok(())
        }
        Value::Object(map) => {
            out.push_str("map[");
            for (i, (key, value)) in map.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                write(out, value);
            }
            out.push(']');
            Ok(())
        }
    };
}

fn write_list(out: &mut String, items: &[Value]) {
    out.push('[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(' ');
        }
        write(out, item);
    }
    out.push(']');
}
