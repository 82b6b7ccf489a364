//! Do the types of an expression fit together? As cel-go's checker sees it, and in its words.
//!
//! `types` has what there is, `declarations` what may be done with it; here expressions are walked. A mistake is noted and
//! taken for a value of any type from then on, so that each is told once.

use std::sync::Arc;

use ::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};

use super::declarations::{Overload, overloads};
use super::unify::Unifier;
use super::{DeclaredType, ObjectType, Type};

/// The names that an expression may use, with their types. A name may have dots.
#[derive(Clone, Debug, Default)]
pub struct Declarations {
    names: Vec<(String, DeclaredType)>,
    /// Objects may be made: `Object{…}`, `Object.spec{…}`, `JSONPatch{…}`.
    pub makes_objects: bool,
}

impl Declarations {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn with(mut self, name: &str, of: impl Into<DeclaredType>) -> Self {
        self.declare(name, of);
        self
    }

    pub fn declare(&mut self, name: &str, of: impl Into<DeclaredType>) {
        self.names.push((name.to_owned(), of.into()));
    }

    fn find(&self, name: &str) -> Option<&DeclaredType> {
        self.names.iter().rev().find(|(n, _)| n == name).map(|(_, of)| of)
    }
}

/// The type of an expression, and the mistakes in it by the id of the part that they are about.
pub(super) fn check(expr: &IdedExpr, names: &Declarations) -> (DeclaredType, Vec<(u64, String)>) {
    let mut checker = Checker { names, local: Vec::new(), types: Unifier::default(), mistakes: Vec::new() };
    let found = checker.check(expr);
    (checker.types.resolved(&found, true), checker.mistakes)
}

struct Checker<'c> {
    names: &'c Declarations,
    /// The variables of the loops around.
    local: Vec<(String, DeclaredType)>,
    types: Unifier,
    mistakes: Vec<(u64, String)>,
}

impl Checker<'_> {
    fn mistake(&mut self, at: &IdedExpr, what: impl Into<String>) -> DeclaredType {
        self.mistakes.push((at.id, what.into()));
        DeclaredType::Error
    }

    fn undeclared(&mut self, at: &IdedExpr, name: &str) -> DeclaredType {
        self.mistake(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    /// The type of a part, as far as it is known by now.
    fn check(&mut self, expr: &IdedExpr) -> DeclaredType {
        let found = self.type_of(expr);
        self.types.resolved(&found, false)
    }

    fn type_of(&mut self, expr: &IdedExpr) -> DeclaredType {
        match &expr.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => DeclaredType::Bool,
                LiteralValue::Bytes(_) => DeclaredType::Bytes,
                LiteralValue::Double(_) => DeclaredType::Double,
                LiteralValue::Int(_) => DeclaredType::Int,
                LiteralValue::Null => DeclaredType::Null,
                LiteralValue::String(_) => DeclaredType::String,
                LiteralValue::UInt(_) => DeclaredType::Uint,
            },
            Expr::Ident(name) => self.named(name).unwrap_or_else(|| self.undeclared(expr, name)),
            Expr::Select(select) => {
                if let Some(found) = qualified(expr).and_then(|name| self.named(&name)) {
                    return found;
                }
                let of = self.check(&select.operand);
                let field = self.field(expr, of, &select.field, false);
                if select.test { DeclaredType::Bool } else { field }
            }
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                let mut element = None;
                for (i, item) in list.elements.iter().enumerate() {
                    let mut of = self.check(item);
                    if list.optional_indices.contains(&i) {
                        of = unwrapped(of).0;
                    }
                    element = Some(self.joined(item, element, of));
                }
                DeclaredType::List(element.unwrap_or_else(|| self.types.unknown()).into())
            }
            Expr::Map(map) => {
                let (mut key, mut value) = (None, None);
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        let of_key = self.check(&entry.key);
                        key = Some(self.joined(&entry.key, key, of_key));
                        let mut of = self.check(&entry.value);
                        if entry.optional {
                            of = unwrapped(of).0;
                        }
                        value = Some(self.joined(&entry.value, value, of));
                    }
                }
                let key = key.unwrap_or_else(|| self.types.unknown());
                let value = value.unwrap_or_else(|| self.types.unknown());
                DeclaredType::Map(key.into(), value.into())
            }
            Expr::Struct(made) => {
                for entry in &made.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        self.check(&field.value);
                    }
                }
                let known = matches!(made.type_name.as_str(), "Object" | "JSONPatch");
                if self.names.makes_objects && (known || made.type_name.starts_with("Object.")) {
                    DeclaredType::Made(made.type_name.as_str().into())
                } else {
                    self.undeclared(expr, &made.type_name)
                }
            }
            Expr::Comprehension(loops) => self.comprehension(loops),
            Expr::Unspecified => DeclaredType::Error,
        }
    }

    fn named(&self, name: &str) -> Option<DeclaredType> {
        let local = self.local.iter().rev().find(|(n, _)| n == name).map(|(_, of)| of);
        local.or_else(|| self.names.find(name)).cloned().or_else(|| is_type(name).then_some(DeclaredType::Type))
    }

    /// `x.name` and `x.?name`.
    fn field(&mut self, at: &IdedExpr, of: DeclaredType, name: &str, optional: bool) -> DeclaredType {
        let (of, was_optional) = unwrapped(of);
        let found = match &of {
            DeclaredType::Map(_, value) => (**value).clone(),
            DeclaredType::Object(object) => match object.field(name) {
                Some(field) => (&field.ty).into(),
                None => self.mistake(at, format!("undefined field '{name}'")),
            },
            DeclaredType::Record(fields) => match fields.iter().find(|(n, _)| n == name) {
                Some((_, of)) => of.clone(),
                None => self.mistake(at, format!("undefined field '{name}'")),
            },
            DeclaredType::Unknown(_) => {
                self.types.fits(&DeclaredType::Dyn, &of);
                DeclaredType::Dyn
            }
            DeclaredType::Dyn | DeclaredType::Error | DeclaredType::Made(_) => DeclaredType::Dyn,
            _ => {
                self.mistake(at, format!("type '{of}' does not support field selection"));
                DeclaredType::Dyn
            }
        };
        if was_optional || optional { DeclaredType::Optional(found.into()) } else { found }
    }

    fn call(&mut self, at: &IdedExpr, call: &CallExpr) -> DeclaredType {
        let name = call.func_name.as_str();
        if let (op::OPT_SELECT, [of, key]) = (name, call.args.as_slice()) {
            let of = self.check(of);
            let Expr::Literal(LiteralValue::String(field)) = &key.expr else {
                return self.mistake(at, "unsupported optional field selection");
            };
            return self.field(at, of, field.inner(), true);
        }
        if let Some(target) = &call.target
            && let Some(found) = self.own_macro(at, name, target, &call.args)
        {
            return found;
        }
        let args: Vec<DeclaredType> = call.args.iter().map(|arg| self.check(arg)).collect();
        let Some(target) = &call.target else {
            return match overloads(name) {
                Some(known) => self.resolve(at, name, known, None, args),
                None => self.undeclared(at, name),
            };
        };
        // Given a.b.c(), either a.b.c is a function or c is one of what a.b is.
        if let Some(full) = qualified(target).map(|prefix| format!("{prefix}.{name}"))
            && let Some(known) = overloads(&full)
        {
            return self.resolve(at, &full, known, None, args);
        }
        let of = self.check(target);
        match overloads(name) {
            Some(known) => self.resolve(at, name, known, Some(of), args),
            None => self.undeclared(at, name),
        }
    }

    /// The result of the overloads that fit; of any type where they disagree.
    fn resolve(
        &mut self,
        at: &IdedExpr,
        name: &str,
        known: &[Overload],
        target: Option<DeclaredType>,
        mut args: Vec<DeclaredType>,
    ) -> DeclaredType {
        let member = target.is_some();
        if let Some(target) = target {
            args.insert(0, target);
        }
        let mut result: Option<DeclaredType> = None;
        for overload in known.iter().filter(|overload| overload.member == member) {
            let (wanted, gives) = self.types.instance(overload);
            if self.types.all_fit(&args, &wanted) {
                let gives = self.types.resolved(&gives, false);
                result = Some(match result {
                    None => gives,
                    Some(before) if before == gives => before,
                    Some(_) => DeclaredType::Dyn,
                });
            }
        }
        result.unwrap_or_else(|| {
            let mut shown = args.iter().map(|arg| self.types.resolved(arg, true).to_string());
            let receiver = if member { shown.next().map(|of| format!("{of}.")) } else { None };
            let applied = format!("{}({})", receiver.unwrap_or_default(), shown.collect::<Vec<_>>().join(", "));
            self.mistake(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
        })
    }

    /// What an aggregate has in common.
    fn joined(&mut self, at: &IdedExpr, before: Option<DeclaredType>, of: DeclaredType) -> DeclaredType {
        let Some(before) = before else { return of };
        if self.types.fits(&before, &of) {
            return self.types.more_general(before, of);
        }
        self.mistake(at, format!("expected type '{before}' but found '{of}'"))
    }

    fn demand(&mut self, at: &IdedExpr, of: &DeclaredType, wanted: &DeclaredType) {
        if !self.types.fits(of, wanted) {
            let (wanted, of) = (self.types.resolved(wanted, false), self.types.resolved(of, false));
            self.mistake(at, format!("expected type '{wanted}' but found '{of}'"));
        }
    }

    /// What a loop over something names: a key or an index, and a value. A loop with one name is over the items of a list, and
    /// over the keys of a map: that comes third.
    fn range(&mut self, at: &IdedExpr) -> (DeclaredType, DeclaredType, DeclaredType) {
        let of = self.check(at);
        let any = || (DeclaredType::Dyn, DeclaredType::Dyn, DeclaredType::Dyn);
        match &of {
            DeclaredType::List(item) => (DeclaredType::Int, (**item).clone(), (**item).clone()),
            DeclaredType::Map(key, value) => ((**key).clone(), (**value).clone(), (**key).clone()),
            DeclaredType::Unknown(_) => {
                self.types.fits(&DeclaredType::Dyn, &of);
                any()
            }
            DeclaredType::Dyn | DeclaredType::Error => any(),
            _ => {
                let why = "cannot be range of a comprehension (must be list, map, or dynamic)";
                self.mistake(at, format!("expression of type '{of}' {why}"));
                (DeclaredType::Error, DeclaredType::Error, DeclaredType::Error)
            }
        }
    }

    fn comprehension(&mut self, loops: &ComprehensionExpr) -> DeclaredType {
        let (key, value, single) = self.range(&loops.iter_range);
        let accumulated = self.check(&loops.accu_init);
        self.local.push((loops.accu_var.clone(), accumulated.clone()));
        match &loops.iter_var2 {
            Some(second) => {
                self.local.push((loops.iter_var.clone(), key));
                self.local.push((second.clone(), value));
            }
            None => self.local.push((loops.iter_var.clone(), single)),
        }
        let goes_on = self.check(&loops.loop_cond);
        self.demand(&loops.loop_cond, &goes_on, &DeclaredType::Bool);
        let step = self.check(&loops.loop_step);
        self.demand(&loops.loop_step, &step, &accumulated);
        self.local.truncate(self.local.len() - if loops.iter_var2.is_some() { 2 } else { 1 });
        let result = self.check(&loops.result);
        self.local.pop();
        result
    }

    /// The macros that the evaluator expands itself.
    fn own_macro(&mut self, at: &IdedExpr, name: &str, target: &IdedExpr, args: &[IdedExpr]) -> Option<DeclaredType> {
        let ident = |i: usize| match &args.get(i)?.expr {
            Expr::Ident(name) => Some(name.clone()),
            _ => None,
        };
        match (name, args.len()) {
            ("optMap" | "optFlatMap", 2) => {
                let variable = ident(0)?;
                let of = self.check(target);
                let (inner, is_optional) = unwrapped(of.clone());
                if !is_optional && !matches!(of, DeclaredType::Dyn | DeclaredType::Error) {
                    let shown = format!("found no matching overload for 'hasValue' applied to '{of}.()'");
                    return Some(self.mistake(at, shown));
                }
                let body = self.within(&[(variable, inner)], &args[1]);
                Some(if name == "optFlatMap" { body } else { DeclaredType::Optional(body.into()) })
            }
            ("all" | "exists" | "existsOne" | "exists_one", 3) => {
                let names = (ident(0)?, ident(1)?);
                let (key, value, _) = self.range(target);
                let body = self.within(&[(names.0, key), (names.1, value)], &args[2]);
                self.demand(&args[2], &body, &DeclaredType::Bool);
                Some(DeclaredType::Bool)
            }
            ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => {
                let names = (ident(0)?, ident(1)?);
                let (key, value, _) = self.range(target);
                let local = [(names.0, key.clone()), (names.1, value)];
                if args.len() == 4 {
                    let kept = self.within(&local, &args[2]);
                    self.demand(&args[2], &kept, &DeclaredType::Bool);
                }
                let body = self.within(&local, args.last()?);
                Some(match name {
                    "transformList" => DeclaredType::List(body.into()),
                    "transformMap" => DeclaredType::Map(key.into(), body.into()),
                    _ => body,
                })
            }
            _ => None,
        }
    }

    fn within(&mut self, local: &[(String, DeclaredType)], expr: &IdedExpr) -> DeclaredType {
        self.local.extend_from_slice(local);
        let found = self.check(expr);
        self.local.truncate(self.local.len() - local.len());
        found
    }
}

/// What is within an optional, and whether it is one.
fn unwrapped(of: DeclaredType) -> (DeclaredType, bool) {
    match of {
        DeclaredType::Optional(inner) => ((*inner).clone(), true),
        other => (other, false),
    }
}

/// `a.b.c`.
fn qualified(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", qualified(&select.operand)?, select.field)),
        _ => None,
    }
}

fn is_type(name: &str) -> bool {
    const TYPES: &[&str] = &[
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "optional_type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "kubernetes.Quantity",
        "kubernetes.Semver",
        "kubernetes.URL",
        "net.IP",
        "net.CIDR",
    ];
    TYPES.contains(&name)
}

impl From<&Type> for DeclaredType {
    fn from(of: &Type) -> Self {
        match of {
            Type::Dyn => DeclaredType::Dyn,
            Type::Bool => DeclaredType::Bool,
            Type::Int => DeclaredType::Int,
            Type::Double => DeclaredType::Double,
            Type::String => DeclaredType::String,
            Type::Bytes => DeclaredType::Bytes,
            Type::Timestamp => DeclaredType::Timestamp,
            Type::Duration => DeclaredType::Duration,
            Type::List(item) => DeclaredType::List(Arc::new((&**item).into())),
            Type::Map(value) => DeclaredType::Map(Arc::new(DeclaredType::String), Arc::new((&**value).into())),
            Type::Object(object) => DeclaredType::Object(Arc::clone(object)),
        }
    }
}

impl From<Type> for DeclaredType {
    fn from(of: Type) -> Self {
        (&of).into()
    }
}

impl From<ObjectType> for DeclaredType {
    fn from(of: ObjectType) -> Self {
        DeclaredType::Object(of.into())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Declarations, DeclaredType, ObjectType, Program, Type};

    fn names() -> Declarations {
        let spec = ObjectType::new([
            ("replicas".into(), Type::Int),
            ("name".into(), Type::String),
            ("ports".into(), Type::List(Type::Int.into())),
            ("labels".into(), Type::Map(Type::String.into())),
            ("since".into(), Type::Timestamp),
            ("any".into(), Type::Dyn),
        ]);
        let object = ObjectType::new([("spec".into(), Type::Object(spec.into()))]);
        Declarations::new()
            .with("object", object)
            .with("params", Type::Dyn)
            .with("authorizer", DeclaredType::Opaque(crate::AUTHORIZER))
    }

    /// The type of what an expression makes, or its mistakes: `COLUMN MESSAGE`, one after the other.
    #[track_caller]
    fn check(source: &str, want: &str) {
        let got = match Program::checked(source, &names()) {
            Ok((_, of)) => of.to_string(),
            Err(error) => {
                let first = error.0.lines().filter_map(|line| line.strip_prefix("ERROR: <input>:1:"));
                first.map(|line| line.replacen(':', "", 1)).collect::<Vec<_>>().join("; ")
            }
        };
        assert_eq!(got, want, "{source}");
    }

    #[test]
    fn expressions_have_types() {
        check("object.spec.replicas > 1", "bool");
        check("object.spec.replicas + 1", "int");
        check("object.spec.any.x.y == 3", "bool");
        check("params", "dyn");
        check("has(object.spec.name) && size(object.spec.name) < 3.5", "bool");
        check("object.spec.ports.map(p, string(p))", "list(string)");
        check("object.spec.ports.filter(p, p > 3)", "list(int)");
        check("object.spec.ports.all(p, p < 10) || object.spec.ports.exists_one(p, p == 3)", "bool");
        check("object.spec.labels.all(k, object.spec.labels[k].startsWith('a'))", "bool");
        check("object.spec.labels.transformList(k, v, k + v)", "list(string)");
        check("object.spec.labels.transformMap(k, v, size(v))", "map(string, int)");
        check("object.?spec.?name.orValue('x')", "string");
        check("object.spec.labels[?'a'].optMap(v, v + 'b').hasValue()", "bool");
        check("[]", "list(dyn)");
        check("{'a': 1}", "map(string, int)");
        check("params.x ? [1] : []", "list(int)");
        check("object.spec.since + duration('1h') > timestamp('2020-01-01T00:00:00Z')", "bool");
        check("quantity('1').isLessThan(quantity('2')) && ip.isCanonical('::1') && isIP('x')", "bool");
        check("type(object.spec.replicas) == int", "bool");
        check("object == null || object.spec.since == null", "bool");
        check("authorizer.group('').resource('pods').fieldSelector('a=b').check('list').allowed()", "bool");
        check("[1, 2, 3].sum() + [1].max()", "int");
        check("sets.contains(['a'], [object.spec.name])", "bool");
        check("optional.none().orValue(3)", "int");
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        check("object.spec.replicas > '1'", "22 found no matching overload for '_>_' applied to '(int, string)'");
        check("object.spec.maxRetries < 10", "12 undefined field 'maxRetries'");
        check("nothing == 1", "1 undeclared reference to 'nothing' (in container '')");
        check("nope(1)", "5 undeclared reference to 'nope' (in container '')");
        check("object.spec.name.nope()", "22 undeclared reference to 'nope' (in container '')");
        check("object.spec.name.contains(1)", "26 found no matching overload for 'contains' applied to 'string.(int)'");
        check("object.spec.replicas.x", "21 type 'int' does not support field selection");
        check("[1, 'a']", "5 expected type 'int' but found 'string'");
        check(
            "object.spec.replicas.all(x, true)",
            "12 expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        );
        check("object.spec.a == 1 && object.spec.b == 'x'", "12 undefined field 'a'; 34 undefined field 'b'");
        check("object.spec.name == 1", "18 found no matching overload for '_==_' applied to '(string, int)'");
        check("!object.spec.name", "1 found no matching overload for '!_' applied to '(string)'");
        check("Object{spec: 1}", "7 undeclared reference to 'Object' (in container '')");
    }

    #[test]
    fn objects_are_made_where_they_may_be() {
        let names = Declarations { makes_objects: true, ..names() };
        let made = |source: &str| Program::checked(source, &names).map(|(_, of)| of.to_string());
        assert_eq!(made("Object{spec: Object.spec{replicas: 1}}"), Ok("Object".to_owned()));
        assert_eq!(made("params.x ? [JSONPatch{op: 'add'}] : []"), Ok("list(JSONPatch)".to_owned()));
        assert!(made("Thing{}").is_err());
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        let error = Program::checked("'ü' == 'a' &&\n  nothing", &names()).unwrap_err();
        assert_eq!(
            error.0,
            "ERROR: <input>:2:3: undeclared reference to 'nothing' (in container '')\n |   nothing\n | ..^"
        );
    }
}
