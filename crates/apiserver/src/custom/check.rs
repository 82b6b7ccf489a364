//! The rules of a definition's schemas: do they compile, and what may they cost?

use ::cel::common::ast::{Expr, IdedExpr, LiteralValue};
use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors, Path};

use super::cost;
use super::default_check;
use super::rules;
use super::schema::{EMBEDDED, RULES, flag};
use crate::cel::strings::pattern;
use crate::cel::{Program, Type, mark_at};

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
        let source = rule.str_at(&["rule"]);
        match Program::compile(source) {
            Err(error) => self.refuse(rule, &path, &format!("compilation failed: {error}")),
            Ok(program) => {
                let ty = rules::type_of(schema, root || flag(schema, EMBEDDED));
                if let Some(field) = undefined(program.expression(), &ty) {
                    let column = source.find(&format!(".{field}")).map_or(1, |i| i + 1);
                    let error = mark_at(source, column, &format!("undefined field '{field}'"));
                    self.refuse(rule, &path, &format!("compilation failed: {error}"));
                } else if is_no_bool(program.expression()) {
                    self.refuse(rule, &path, "cel expression must evaluate to a bool");
                } else {
                    let cost = cost::of_expression(program.expression(), schema).saturating_mul(places);
                    if let Some(complaint) = cost::complaint_of_rule(cost) {
                        self.errs.forbidden(&path, complaint);
                    }
                    self.rules.push((path, cost));
                }
            }
        }
        let wording = rule.str_at(&["messageExpression"]);
        if !wording.is_empty()
            && let Err(error) = Program::compile(wording)
        {
            let path = rule.path.child("messageExpression");
            self.refuse(rule, &path, &format!("messageExpression compilation failed: {error}"));
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

/// The first field that is selected from `self` or `oldSelf` and that the schema does not have.
fn undefined<'e>(expr: &'e IdedExpr, of_self: &Type) -> Option<&'e str> {
    let mut found = None;
    visit(expr, &mut |expr| {
        if found.is_none()
            && let Expr::Select(select) = &expr.expr
            && let Some(Type::Object(object)) = type_at(&select.operand, of_self)
            && object.field(&select.field).is_none()
        {
            found = Some(select.field.as_str());
        }
    });
    found
}

/// The type at the end of a chain of fields that begins with `self`.
fn type_at(expr: &IdedExpr, of_self: &Type) -> Option<Type> {
    match &expr.expr {
        Expr::Ident(name) if name == "self" => Some(of_self.clone()),
        Expr::Select(select) if !select.test => match type_at(&select.operand, of_self)? {
            Type::Object(object) => object.field(&select.field).map(|f| f.ty.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn visit<'e>(expr: &'e IdedExpr, see: &mut impl FnMut(&'e IdedExpr)) {
    see(expr);
    match &expr.expr {
        Expr::Select(select) => visit(&select.operand, see),
        Expr::Call(call) => {
            if let Some(target) = &call.target {
                visit(target, see);
            }
            call.args.iter().for_each(|a| visit(a, see));
        }
        Expr::List(list) => list.elements.iter().for_each(|e| visit(e, see)),
        Expr::Comprehension(loops) => {
            visit(&loops.iter_range, see);
            // An inner variable may be called `self` too; then this says nothing about ours.
            if loops.iter_var != "self" {
                visit(&loops.loop_step, see);
            }
        }
        _ => {}
    }
}

/// It can be told that the result is no truth value.
fn is_no_bool(expr: &IdedExpr) -> bool {
    match &expr.expr {
        Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) | Expr::Map(_) => true,
        Expr::Call(call) => matches!(
            call.func_name.as_str(),
            "_+_"
                | "_-_"
                | "_*_"
                | "_/_"
                | "_%_"
                | "-_"
                | "size"
                | "string"
                | "int"
                | "double"
                | "uint"
                | "timestamp"
                | "duration"
        ),
        _ => false,
    }
}
