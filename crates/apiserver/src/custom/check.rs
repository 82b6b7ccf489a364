//! The rules of a definition's schemas: do they compile, and what may they cost?

use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors, Path};
use expressions::{Declarations, DeclaredType, Program, pattern};

use super::cost;
use super::default_check;
use super::rules;
use super::schema::{EMBEDDED, RULES, flag};

/// What is wrong with the rules of a definition, once everything else is right.
#[must_use]
pub(crate) fn check_definition(definition: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let versions = Cursor::root(definition).fields(&["spec", "versions"]);
    let items = versions.value.items();
    let same = items.windows(2).all(|w| w[0]["schema"] == w[1]["schema"]);
    for (i, version) in versions.elements().enumerate() {
        if same && i > 0 {
            break;
        }
        let top = if same { Path::new("spec.validation") } else { version.path.child("schema") };
        let schema = Cursor::new(top.child("openAPIV3Schema"), version.value.at(&["schema", "openAPIV3Schema"]));
        let mut checker = Checker { errs: &mut errs, rules: Vec::new() };
        checker.schema(&schema, 1, true);
        let found = std::mem::take(&mut checker.rules);
        let total = found.iter().fold(0u64, |sum, (_, cost)| sum.saturating_add(*cost));
        if let Some(complaint) = cost::complaint_of_schema(total) {
            let why = "contributed to estimated rule & messageExpression cost total exceeding cost limit for entire OpenAPIv3 schema";
            for (path, cost) in found {
                if cost > total / 4 {
                    errs.forbidden(&path, why);
                }
            }
            errs.forbidden(&schema.path, complaint);
        }
    }
    errs
}

struct Checker<'c> {
    errs: &'c mut FieldErrors,
    /// Where each rule stands and what it may cost.
    rules: Vec<(Path, u64)>,
}

impl Checker<'_> {
    /// `places`: in how many places of an object this schema may apply.
    fn schema(&mut self, at: &Cursor<'_>, places: u64, root: bool) {
        let schema = at.value;
        default_check::check(at, root, self.errs);
        let wanted = at.field("pattern");
        if let Some(Err(why)) = wanted.as_str().filter(|text| !text.is_empty()).map(pattern) {
            self.errs.invalid(&wanted, format!("must be a valid regular expression, but isn't: {why}"));
        }
        for rule in at.field(RULES).elements() {
            self.rule(&rule, schema, places, root);
        }
        for (_, property) in at.field("properties").map_entries() {
            self.schema(&property, places, false);
        }
        for below in ["items", "additionalProperties"] {
            let below = at.field(below);
            if below.value.as_object().is_some() {
                self.schema(&below, places.saturating_mul(cost::max_items(schema)), false);
            }
        }
    }

    fn rule(&mut self, rule: &Cursor<'_>, schema: &Value, places: u64, root: bool) {
        let path = rule.path.child("rule");
        let of_self = DeclaredType::from(rules::type_of(schema, root || flag(schema, EMBEDDED)));
        let of_old = match rule["optionalOldSelf"].as_bool() {
            Some(true) => DeclaredType::Optional(of_self.clone().into()),
            _ => of_self.clone(),
        };
        let names = Declarations::new().with("self", of_self).with("oldSelf", of_old);
        match Program::checked(rule.str_at(&["rule"]), &names) {
            Err(error) => self.refuse(rule, &path, &format!("compilation failed: {error}")),
            Ok((program, DeclaredType::Bool)) => {
                let cost = cost::of_expression(program.expression(), schema).saturating_mul(places);
                if let Some(complaint) = cost::complaint_of_rule(cost) {
                    self.errs.forbidden(&path, complaint);
                }
                self.rules.push((path, cost));
            }
            Ok(_) => self.refuse(rule, &path, "cel expression must evaluate to a bool"),
        }
        let wording = rule.str_at(&["messageExpression"]);
        if !wording.is_empty() {
            let why = match Program::checked(wording, &names) {
                Err(error) => format!("messageExpression compilation failed: {error}"),
                Ok((_, DeclaredType::String)) => return,
                Ok(_) => "messageExpression must evaluate to a string".to_owned(),
            };
            self.refuse(rule, &rule.path.child("messageExpression"), &why);
        }
    }

    fn refuse(&mut self, rule: &Cursor<'_>, path: &Path, why: &str) {
        // Upstream shows the rule as its own struct.
        let text = |field: &str| Value::from(rule.str_at(&[field]));
        let shown = apimachinery::field::shown(&Value::from([
            ("Rule", text("rule")),
            ("Message", text("message")),
            ("MessageExpression", text("messageExpression")),
            ("Reason", rule.value["reason"].clone()),
            ("FieldPath", text("fieldPath")),
            ("OptionalOldSelf", rule.value["optionalOldSelf"].clone()),
        ]));
        let error = FieldError { kind: ErrorKind::Invalid, path: path.clone(), shown: Some(shown), detail: why.into() };
        self.errs.0.push(error);
    }
}
