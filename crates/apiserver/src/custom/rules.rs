//! The CEL rules of a schema (`x-kubernetes-validations`) over an object and what it was before.

use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors, Path, shown};
use compact_str::CompactString;

use super::Custom;
use super::schema::{EMBEDDED, INT_OR_STRING, RULES, flag};
use super::validate::correlated;
use expressions::{Activation, Budget, CALL_LIMIT, Error, OBJECT_LIMIT, ObjectType, Program, Type, Val};

/// Does any part of the schema have rules?
#[must_use]
pub(super) fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => {
            !schema[RULES].items().is_empty()
                || has_rules(&schema["items"])
                || has_rules(&schema["additionalProperties"])
                || map.get("properties").is_some_and(|p| p.entries().values().any(has_rules))
        }
        _ => false,
    }
}

/// The type that rules see.
pub(super) fn type_of(schema: &Value, root: bool) -> Type {
    if flag(schema, INT_OR_STRING) {
        return Type::Dyn;
    }
    match (schema.str_at(&["type"]), schema.str_at(&["format"])) {
        ("object", _) => {
            let values = &schema["additionalProperties"];
            if values.as_object().is_some() {
                return Type::Map(type_of(values, false).into());
            }
            let properties = schema["properties"].entries().iter().map(|(k, p)| (k.clone(), type_of(p, false)));
            let whole = root || flag(schema, EMBEDDED);
            Type::Object(ObjectType::new(properties.chain(envelope().into_iter().filter(|_| whole))).into())
        }
        ("array", _) => Type::List(type_of(&schema["items"], false).into()),
        ("integer", _) => Type::Int,
        ("number", _) => Type::Double,
        ("boolean", _) => Type::Bool,
        ("string", "date-time" | "date") => Type::Timestamp,
        ("string", "duration") => Type::Duration,
        ("string", "byte") => Type::Bytes,
        ("string", _) => Type::String,
        _ => Type::Dyn,
    }
}

/// Of a whole object: of its metadata, only the name is anybody's business here.
fn envelope() -> [(CompactString, Type); 3] {
    let metadata = ObjectType::new(["name", "generateName"].map(|field| (field.into(), Type::String)));
    let text = |field: &str| (field.into(), Type::String);
    [text("apiVersion"), text("kind"), ("metadata".into(), Type::Object(metadata.into()))]
}

/// Evaluates every rule over the object.
pub(super) fn check(custom: &Custom, object: &Value, old: Option<&Value>, errs: &mut FieldErrors) {
    let mut walk = Walk { custom, left: Budget::new(OBJECT_LIMIT), errs, spent: false };
    walk.value(&Cursor::root(object), custom.schema(), old, true);
}

struct Walk<'w> {
    custom: &'w Custom,
    left: Budget,
    errs: &'w mut FieldErrors,
    spent: bool,
}

impl Walk<'_> {
    fn value(&mut self, at: &Cursor<'_>, schema: &Value, old: Option<&Value>, root: bool) {
        if self.spent || (at.value.is_null() && !root) {
            return;
        }
        if !schema[RULES].items().is_empty() {
            let ty = type_of(schema, root);
            for rule in schema[RULES].items() {
                self.rule(at, schema, rule, old, &ty);
            }
        }
        match at.value {
            Value::Object(map) => {
                let properties = schema["properties"].entries();
                let values = &schema["additionalProperties"];
                for (name, value) in map {
                    let old = old.and_then(|o| o.get(name));
                    if let Some(property) = properties.get(name) {
                        self.value(&Cursor::new(at.path.child(name), value), property, old, false);
                    } else if values.as_object().is_some() {
                        self.value(&Cursor::new(at.path.key(name), value), values, old, false);
                    }
                }
            }
            Value::Array(_) => {
                for item in at.elements() {
                    let old = correlated(item.value, schema, old);
                    self.value(&item, &schema["items"], old, false);
                }
            }
            _ => {}
        }
    }

    fn rule(&mut self, at: &Cursor<'_>, schema: &Value, rule: &Value, old: Option<&Value>, ty: &Type) {
        let source = rule.str_at(&["rule"]);
        let Some(program) = self.custom.program(source) else { return };
        let transition = program.uses("oldSelf");
        let optional = rule["optionalOldSelf"].as_bool() == Some(true);
        if transition && old.is_none() && !optional {
            return;
        }
        // What has not changed is not judged again, except by rules about change.
        if !transition && old.is_some_and(|old| old == at.value) {
            return;
        }
        let wording = rule["messageExpression"].as_str().and_then(|e| self.custom.program(e));
        let mut names = Activation::new();
        names.bind("self", Val::typed(at.value, ty));
        if optional {
            names.bind("oldSelf", old.map_or(Val::Optional(None), |old| Val::some(Val::typed(old, ty))));
        } else if let Some(old) = old {
            names.bind("oldSelf", Val::typed(old, ty));
        }
        match self.evaluate(&program, &names) {
            Ok(Val::Bool(true)) => {}
            Ok(_) => {
                let made = wording.as_deref().and_then(|program| self.text(program, &names));
                let message = made.unwrap_or_else(|| fixed_message(rule));
                self.refuse(at, schema, rule, &message);
            }
            Err(Error::Budget) => {
                self.spent = self.left.left() == 0;
                let why = if self.spent {
                    "validation failed due to running out of cost budget, no further validation rules will be run"
                        .to_owned()
                } else {
                    format!("call cost exceeds limit for rule: {source}")
                };
                self.push(ErrorKind::Invalid, &at.path, Some(format!("{:?}", schema.str_at(&["type"]))), why);
            }
            Err(error) => {
                let why = format!("{error} evaluating rule: {}", source.trim());
                self.push(ErrorKind::Invalid, &at.path, Some(format!("{:?}", schema.str_at(&["type"]))), why);
            }
        }
    }

    fn evaluate<'a>(&mut self, program: &'a Program, names: &Activation<'a>) -> Result<Val<'a>, Error> {
        let mut budget = Budget::new(CALL_LIMIT.min(self.left.left()));
        let result = program.evaluate(names, &mut budget);
        let _ = self.left.spend(budget.spent());
        result
    }

    /// What a message expression makes, if that is fit to be a message.
    fn text<'a>(&mut self, program: &'a Program, names: &Activation<'a>) -> Option<String> {
        let text = self.evaluate(program, names).ok()?.as_str()?.trim().to_owned();
        (!text.is_empty() && !text.contains('\n') && text.len() <= 5 << 10).then_some(text)
    }

    fn refuse(&mut self, at: &Cursor<'_>, schema: &Value, rule: &Value, message: &str) {
        let path = match rule["fieldPath"].as_str() {
            Some(below) => Path::new(format!("{}{below}", at.path).trim_start_matches('.')),
            None => at.path.clone(),
        };
        let scalar = !matches!(schema.str_at(&["type"]), "object" | "array");
        let shown = scalar.then(|| shown(at.value));
        match rule.str_at(&["reason"]) {
            "FieldValueForbidden" => self.push(ErrorKind::Forbidden, &path, None, message.to_owned()),
            "FieldValueRequired" => self.push(ErrorKind::Required, &path, None, message.to_owned()),
            "FieldValueDuplicate" => self.push(ErrorKind::Duplicate, &path, shown, String::new()),
            _ => self.push(ErrorKind::Invalid, &path, shown, message.to_owned()),
        }
    }

    fn push(&mut self, kind: ErrorKind, path: &Path, shown: Option<String>, detail: String) {
        self.errs.0.push(FieldError { kind, path: path.clone(), shown, detail });
    }
}

fn fixed_message(rule: &Value) -> String {
    match rule["message"].as_str().map(str::trim).filter(|m| !m.is_empty()) {
        Some(message) => message.to_owned(),
        None => format!("failed rule: {}", rule.str_at(&["rule"]).trim()),
    }
}
