//! Values against their schema, with the findings in the words of upstream's validator.
//!
//! What an update does not touch is not held against it (ratcheting).

use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors, Path, shown};

use super::formats;
use super::schema::{INT_OR_STRING, LIST_KEYS, LIST_TYPE, flag};
use expressions::pattern;

/// All that is wrong with a value; `old` is what stood in its place.
pub(super) fn validate(at: &Cursor<'_>, schema: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    if old.is_some_and(|old| old == at.value) {
        return;
    }
    if at.value.is_null() && flag(schema, "nullable") {
        return;
    }
    let typed = check_type(at, schema, errs);
    if !at.value.is_null() {
        check_enum(at, schema, errs);
    }
    match at.value {
        Value::String(text) => check_string(at, text, schema, errs),
        Value::Int(_) | Value::Float(_) => check_number(at, schema, typed, errs),
        Value::Array(items) => check_list(at, items, schema, old, errs),
        Value::Object(_) => check_object(at, schema, old, errs),
        Value::Null | Value::Bool(_) => {}
    }
    combined(at, schema, errs);
}

fn push(errs: &mut FieldErrors, kind: ErrorKind, path: &Path, shown: Option<String>, detail: String) {
    errs.0.push(FieldError { kind, path: path.clone(), shown, detail });
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Int(_) => "integer",
        Value::Float(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Returns whether the value has the schema's type.
fn check_type(at: &Cursor<'_>, schema: &Value, errs: &mut FieldErrors) -> bool {
    let either = flag(schema, INT_OR_STRING);
    let wanted = if either { "integer,string" } else { schema.str_at(&["type"]) };
    let fits = match (wanted, at.value) {
        ("", _) => true,
        ("integer,string", v) => matches!(v, Value::Int(_) | Value::String(_)),
        ("number", v) => matches!(v, Value::Int(_) | Value::Float(_)),
        (wanted, v) => type_name(v) == wanted,
    };
    if !fits {
        let got = type_name(at.value);
        if wanted == "integer" && matches!(at.value, Value::Float(_)) {
            let why = format!("Checked value must be of type integer (default format) in {}", at.path);
            push(errs, ErrorKind::Invalid, &Path::root(), Some("\"\"".into()), why);
        }
        let detail = format!("{} in body must be of type {wanted}: {got:?}", at.path);
        push(errs, ErrorKind::TypeInvalid, &at.path, Some(format!("{got:?}")), detail);
    }
    fits
}

fn check_enum(at: &Cursor<'_>, schema: &Value, errs: &mut FieldErrors) {
    let allowed = schema["enum"].items();
    if allowed.is_empty() || allowed.contains(at.value) {
        return;
    }
    let listed: Vec<String> =
        allowed.iter().map(|v| v.as_str().map_or_else(|| format!("\"{}\"", shown(v)), |s| format!("{s:?}"))).collect();
    let detail = format!("supported values: {}", listed.join(", "));
    push(errs, ErrorKind::NotSupported, &at.path, Some(shown(at.value)), detail);
}

fn check_string(at: &Cursor<'_>, text: &str, schema: &Value, errs: &mut FieldErrors) {
    let wanted = schema.str_at(&["type"]);
    if !(wanted == "string" || wanted.is_empty()) {
        return;
    }
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(max) = schema["maxLength"].as_i64()
        && length > max
    {
        errs.too_long(&at.path, usize::try_from(max).unwrap_or_default());
    }
    if let Some(min) = schema["minLength"].as_i64()
        && length < min
    {
        errs.invalid(at, format!("{} in body should be at least {min} chars long", at.path));
    }
    if let Some(wanted) = schema["pattern"].as_str().filter(|p| !p.is_empty())
        && !pattern(wanted).is_ok_and(|r| r.is_match(text))
    {
        errs.invalid(at, format!("{} in body should match '{wanted}'", at.path));
    }
    if let Some(format) = schema["format"].as_str()
        && !formats::fits(format, text)
    {
        let detail = format!("{} in body must be of type {format}: {text:?}", at.path);
        push(errs, ErrorKind::TypeInvalid, &at.path, Some(shown(at.value)), detail);
    }
}

fn check_number(at: &Cursor<'_>, schema: &Value, typed: bool, errs: &mut FieldErrors) {
    let Some(n) = at.value.as_f64() else { return };
    if !typed && !matches!(schema.str_at(&["type"]), "integer" | "number") {
        return;
    }
    if let Some(step) = schema["multipleOf"].as_f64()
        && step != 0.0
        && ((n / step) - (n / step).round()).abs() > 1e-9
    {
        errs.invalid(at, format!("{} in body should be a multiple of {}", at.path, shown(&schema["multipleOf"])));
    }
    if let Some(max) = schema["maximum"].as_f64() {
        let exclusive = flag(schema, "exclusiveMaximum");
        if n > max || (exclusive && n >= max) {
            let or = if exclusive { "" } else { " or equal to" };
            errs.invalid(at, format!("{} in body should be less than{or} {}", at.path, shown(&schema["maximum"])));
        }
    }
    if let Some(min) = schema["minimum"].as_f64() {
        let exclusive = flag(schema, "exclusiveMinimum");
        if n < min || (exclusive && n <= min) {
            let or = if exclusive { "" } else { " or equal to" };
            errs.invalid(at, format!("{} in body should be greater than{or} {}", at.path, shown(&schema["minimum"])));
        }
    }
    let (low, high) = match schema.str_at(&["format"]) {
        "int32" => (f64::from(i32::MIN), f64::from(i32::MAX)),
        "uint32" => (0.0, f64::from(u32::MAX)),
        _ => return,
    };
    if n < low || n > high {
        let why =
            format!("Checked value must be of type integer with format {} in {}", schema.str_at(&["format"]), at.path);
        push(errs, ErrorKind::Invalid, &Path::root(), Some("\"\"".into()), why);
    }
}

fn check_list(at: &Cursor<'_>, items: &[Value], schema: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
    if let Some(min) = schema["minItems"].as_i64()
        && count < min
    {
        errs.invalid(at, format!("{} in body should have at least {min} items", at.path));
    }
    if let Some(max) = schema["maxItems"].as_i64()
        && count > max
    {
        errs.too_many(&at.path, items.len(), usize::try_from(max).unwrap_or_default());
    }
    if flag(schema, "uniqueItems") && items.iter().enumerate().any(|(i, v)| items[..i].contains(v)) {
        errs.invalid(at, format!("{} in body shouldn't contain duplicates", at.path));
    }
    if schema["items"].as_object().is_some() {
        for item in at.elements() {
            let old = correlated(item.value, schema, old);
            validate(&item, &schema["items"], old, errs);
        }
    }
    let mut seen: Vec<Value> = Vec::new();
    for item in at.elements() {
        let key = match schema.str_at(&[LIST_TYPE]) {
            "set" => item.value.clone(),
            "map" => key_of(item.value, schema),
            _ => break,
        };
        if seen.contains(&key) {
            errs.duplicate(&item.path, key);
        } else {
            seen.push(key);
        }
    }
}

fn key_of(item: &Value, schema: &Value) -> Value {
    let mut key = Value::object();
    for name in schema[LIST_KEYS].items().iter().filter_map(Value::as_str) {
        if let Some(value) = item.get(name) {
            key.set(&[name], value.clone());
        }
    }
    key
}

/// The item of an old list that an item stands for: lists that are maps have keys to tell, sets have their values.
pub(super) fn correlated<'v>(item: &Value, schema: &Value, old: Option<&'v Value>) -> Option<&'v Value> {
    let old = old?.items();
    match schema.str_at(&[LIST_TYPE]) {
        "map" => {
            let key = key_of(item, schema);
            old.iter().find(|o| key_of(o, schema) == key)
        }
        "set" => old.iter().find(|o| *o == item),
        _ => None,
    }
}

fn check_object(at: &Cursor<'_>, schema: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let map = at.value.entries();
    let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
    if let Some(min) = schema["minProperties"].as_i64()
        && count < min
    {
        errs.invalid(at, format!("{} in body should have at least {min} properties", at.path));
    }
    if let Some(max) = schema["maxProperties"].as_i64()
        && count > max
    {
        errs.too_many(&at.path, map.len(), usize::try_from(max).unwrap_or_default());
    }
    for name in schema["required"].items().iter().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            errs.required(&at.path.child(name), "");
        }
    }
    let properties = schema["properties"].entries();
    let values = &schema["additionalProperties"];
    for (name, value) in map {
        let old = old.and_then(|o| o.get(name));
        if let Some(property) = properties.get(name) {
            validate(&Cursor::new(at.path.child(name), value), property, old, errs);
        } else if values.as_object().is_some() {
            validate(&Cursor::new(at.path.child(name), value), values, old, errs);
        }
    }
}

/// `allOf`, `anyOf`, `oneOf`, `not`.
fn combined(at: &Cursor<'_>, schema: &Value, errs: &mut FieldErrors) {
    let findings = |schema: &Value| {
        let mut found = FieldErrors::new();
        validate(at, schema, None, &mut found);
        found
    };
    let mut complain = |why: String, details: Option<FieldErrors>| {
        push(errs, ErrorKind::Invalid, &Path::root(), Some("\"\"".into()), format!("\"{}\" {why}", at.path));
        errs.extend(details.unwrap_or_default());
    };
    let fewest = |all: Vec<FieldErrors>| all.into_iter().min_by_key(|f| f.0.len());
    let any: Vec<FieldErrors> = schema["anyOf"].items().iter().map(findings).collect();
    if !any.is_empty() && !any.iter().any(FieldErrors::is_empty) {
        complain("must validate at least one schema (anyOf)".into(), fewest(any));
    }
    let one: Vec<FieldErrors> = schema["oneOf"].items().iter().map(findings).collect();
    if !one.is_empty() {
        match one.iter().filter(|f| f.is_empty()).count() {
            1 => {}
            0 => complain("must validate one and only one schema (oneOf). Found none valid".into(), fewest(one)),
            n => complain(format!("must validate one and only one schema (oneOf). Found {n} valid alternatives"), None),
        }
    }
    let all: Vec<FieldErrors> = schema["allOf"].items().iter().map(findings).filter(|f| !f.is_empty()).collect();
    if !all.is_empty() {
        let mut details = FieldErrors::new();
        all.into_iter().for_each(|f| details.extend(f));
        complain("must validate all the schemas (allOf)".into(), Some(details));
    }
    if schema["not"].as_object().is_some() && findings(&schema["not"]).is_empty() {
        complain("must not validate the schema (not)".into(), None);
    }
}
