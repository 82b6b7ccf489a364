//! The interpreter: walks the parsed expression and counts what that costs.

use ::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators as op};

use super::value::{Val, lookup};
use super::{Error, functions, macros, operators};

/// What evaluation may still cost.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u64,
    limit: u64,
}

/// Names and what they stand for; inner ones hide outer ones.
#[derive(Clone, Default)]
pub struct Activation<'a>(Vec<(&'a str, Val<'a>)>);

/// One evaluation under way.
pub(super) struct Run<'r, 'a> {
    pub names: Activation<'a>,
    pub budget: &'r mut Budget,
}

// === impl Budget ===

impl Budget {
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Budget { left: limit, limit }
    }

    #[must_use]
    pub fn spent(&self) -> u64 {
        self.limit - self.left
    }

    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// # Errors
    /// [`Error::Budget`] when that is more than is left.
    pub fn spend(&mut self, cost: u64) -> Result<(), Error> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Error::Budget)
            }
        }
    }
}

// === impl Activation ===

impl<'a> Activation<'a> {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bind(&mut self, name: &'a str, value: Val<'a>) {
        self.0.push((name, value));
    }

    pub(super) fn unbind(&mut self) {
        self.0.pop();
    }

    fn get(&self, name: &str) -> Option<&Val<'a>> {
        self.0.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// Replaces what the innermost of that name stands for.
    fn set(&mut self, name: &str, value: Val<'a>) {
        if let Some((_, v)) = self.0.iter_mut().rev().find(|(n, _)| *n == name) {
            *v = value;
        }
    }
}

pub(super) fn evaluate<'a>(expr: &'a IdedExpr, names: &Activation<'a>, budget: &mut Budget) -> Result<Val<'a>, Error> {
    Run { names: names.clone(), budget }.eval(expr)
}

impl<'a> Run<'_, 'a> {
    pub(super) fn eval(&mut self, expr: &'a IdedExpr) -> Result<Val<'a>, Error> {
        match &expr.expr {
            Expr::Literal(literal) => Ok(literal_of(literal)),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => {
                if select.test {
                    let of = self.eval(&select.operand)?;
                    self.budget.spend(1)?;
                    return present(&of, &select.field).map(Val::Bool);
                }
                if let Some(ty) = type_named(expr) {
                    return Ok(ty);
                }
                let of = self.eval(&select.operand)?;
                self.budget.spend(1)?;
                select_field(&of, &select.field)
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                self.budget.spend(10)?;
                let mut items = Vec::with_capacity(list.elements.len());
                for (i, element) in list.elements.iter().enumerate() {
                    let item = self.eval(element)?;
                    if list.optional_indices.contains(&i) {
                        match item {
                            Val::Optional(Some(inner)) => items.push(inner.as_ref().clone()),
                            Val::Optional(None) => {}
                            _ => return Err(Error::no_overload()),
                        }
                    } else {
                        items.push(item);
                    }
                }
                Ok(Val::list(items))
            }
            Expr::Map(map) => {
                self.budget.spend(30)?;
                let mut entries: Vec<(Val<'a>, Val<'a>)> = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { return Err(Error::no_overload()) };
                    let (key, mut value) = (self.eval(&entry.key)?, self.eval(&entry.value)?);
                    if entry.optional {
                        match value {
                            Val::Optional(Some(inner)) => value = inner.as_ref().clone(),
                            Val::Optional(None) => continue,
                            _ => return Err(Error::no_overload()),
                        }
                    }
                    if entries.iter().any(|(k, _)| super::value::equal(k, &key)) {
                        return Err(Error::new(format!("Failed with repeated key: {key:?}")));
                    }
                    entries.push((key, value));
                }
                Ok(Val::Map(entries.into()))
            }
            Expr::Struct(made) => {
                // Only what mutating policies make: a typed object is the map of its fields.
                self.budget.spend(40)?;
                let mut entries = Vec::with_capacity(made.entries.len());
                for entry in &made.entries {
                    let EntryExpr::StructField(field) = &entry.expr else { return Err(Error::no_overload()) };
                    let mut value = self.eval(&field.value)?;
                    if field.optional {
                        match value {
                            Val::Optional(Some(inner)) => value = inner.as_ref().clone(),
                            _ => continue,
                        }
                    }
                    entries.push((Val::text(&field.field), value));
                }
                Ok(Val::Map(entries.into()))
            }
            Expr::Comprehension(loops) => self.comprehension(loops),
            Expr::Unspecified => Err(Error::no_overload()),
        }
    }

    fn ident(&mut self, name: &'a str) -> Result<Val<'a>, Error> {
        self.budget.spend(1)?;
        if let Some(value) = self.names.get(name) {
            return Ok(value.clone());
        }
        type_of_name(name).map(Val::Type).ok_or_else(|| Error::new(format!("no such attribute(s): {name}")))
    }

    fn call(&mut self, call: &'a CallExpr) -> Result<Val<'a>, Error> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (op::LOGICAL_AND, [a, b]) => return self.logical(a, b, false),
            (op::LOGICAL_OR, [a, b]) => return self.logical(a, b, true),
            (op::CONDITIONAL, [test, yes, no]) => {
                return match self.eval(test)? {
                    Val::Bool(true) => self.eval(yes),
                    Val::Bool(false) => self.eval(no),
                    _ => Err(Error::no_overload()),
                };
            }
            // A step that fails does not end a loop: its error may yet be absorbed.
            (op::NOT_STRICTLY_FALSE, [a]) => {
                return match self.eval(a) {
                    Ok(Val::Bool(false)) => Ok(Val::Bool(false)),
                    Err(Error::Budget) => Err(Error::Budget),
                    _ => Ok(Val::Bool(true)),
                };
            }
            _ => {}
        }
        if let Some(target) = &call.target {
            if let Some(done) = macros::expand(self, name, target, &call.args) {
                return done;
            }
            if let Some(result) = self.namespaced(name, target, &call.args) {
                return result;
            }
            let target = self.eval(target)?;
            let arguments = self.arguments(&call.args)?;
            if let Val::Opaque(object) = &target {
                let mut cost = 1;
                let answer = object.call(name, &arguments, &mut cost);
                self.budget.spend(cost)?;
                if let Some(answer) = answer {
                    return answer;
                }
            }
            self.budget.spend(functions::cost(name, Some(&target), &arguments))?;
            return functions::method(name, &target, &arguments);
        }
        let arguments = self.arguments(&call.args)?;
        self.budget.spend(functions::cost(name, None, &arguments))?;
        match operators::apply(name, &arguments) {
            Some(result) => result,
            None => functions::global(name, &arguments),
        }
    }

    fn arguments(&mut self, args: &'a [IdedExpr]) -> Result<Vec<Val<'a>>, Error> {
        args.iter().map(|a| self.eval(a)).collect()
    }

    /// `optional.of(x)`, `sets.contains(a, b)`, `format.dns1123Label()`: functions whose names have a dot.
    fn namespaced(&mut self, name: &str, target: &IdedExpr, args: &'a [IdedExpr]) -> Option<Result<Val<'a>, Error>> {
        let Expr::Ident(space) = &target.expr else { return None };
        if !functions::NAMESPACES.contains(&space.as_str()) || self.names.get(space).is_some() {
            return None;
        }
        let full = format!("{space}.{name}");
        let arguments = match self.arguments(args) {
            Ok(arguments) => arguments,
            Err(error) => return Some(Err(error)),
        };
        let spent = self.budget.spend(functions::cost(&full, None, &arguments));
        Some(spent.and_then(|()| functions::global(&full, &arguments)))
    }

    /// `&&` (`decides` false) and `||` (`decides` true): either side may decide, even if the other fails.
    fn logical(&mut self, a: &'a IdedExpr, b: &'a IdedExpr, decides: bool) -> Result<Val<'a>, Error> {
        let left = self.eval(a);
        match &left {
            Ok(Val::Bool(l)) if *l == decides => return left,
            Err(Error::Budget) => return left,
            _ => {}
        }
        match (left, self.eval(b)) {
            (_, Ok(Val::Bool(r))) if r == decides => Ok(Val::Bool(decides)),
            (_, Err(Error::Budget)) => Err(Error::Budget),
            (Err(error), _) | (Ok(Val::Bool(_)), Err(error)) => Err(error),
            (Ok(Val::Bool(_)), Ok(Val::Bool(r))) => Ok(Val::Bool(r)),
            _ => Err(Error::no_overload()),
        }
    }

    fn comprehension(&mut self, loops: &'a ComprehensionExpr) -> Result<Val<'a>, Error> {
        let range = self.eval(&loops.iter_range)?;
        let accumulated = self.eval(&loops.accu_init)?;
        let depth = self.names.0.len();
        self.names.bind(&loops.accu_var, accumulated);
        let result = self.iterate(loops, &range);
        self.names.0.truncate(depth);
        result
    }

    fn iterate(&mut self, loops: &'a ComprehensionExpr, range: &Val<'a>) -> Result<Val<'a>, Error> {
        let mut last: Result<(), Error> = Ok(());
        for (key, value) in pairs(range, loops.iter_var2.is_some())? {
            let bound = if let Some(second) = &loops.iter_var2 {
                self.names.bind(&loops.iter_var, key);
                self.names.bind(second, value);
                2
            } else {
                self.names.bind(&loops.iter_var, value);
                1
            };
            let on = last.is_err() || !matches!(self.eval(&loops.loop_cond)?, Val::Bool(false));
            let step = if on { Some(self.step(loops, &last)) } else { None };
            for _ in 0..bound {
                self.names.unbind();
            }
            match step {
                None => break,
                Some(Ok(value)) => {
                    self.names.set(&loops.accu_var, value);
                    last = Ok(());
                }
                Some(Err(Error::Budget)) => return Err(Error::Budget),
                Some(Err(error)) => last = Err(error),
            }
        }
        last?;
        self.eval(&loops.result)
    }

    /// One step. After a step that failed, the accumulator is that failure, which `&&` and `||` may absorb.
    fn step(&mut self, loops: &'a ComprehensionExpr, last: &Result<(), Error>) -> Result<Val<'a>, Error> {
        let Err(failed) = last else { return self.eval(&loops.loop_step) };
        match &loops.loop_step.expr {
            Expr::Call(call) if matches!(call.func_name.as_str(), op::LOGICAL_AND | op::LOGICAL_OR) => {
                let decides = call.func_name == op::LOGICAL_OR;
                match call.args.get(1).map(|test| self.eval(test)) {
                    Some(Ok(Val::Bool(b))) if b == decides => Ok(Val::Bool(b)),
                    Some(Err(Error::Budget)) => Err(Error::Budget),
                    _ => Err(failed.clone()),
                }
            }
            _ => Err(failed.clone()),
        }
    }
}

/// What a loop goes over: items, or keys; with two variables, indexes and items, or keys and values.
pub(super) fn pairs<'a>(range: &Val<'a>, two: bool) -> Result<Vec<(Val<'a>, Val<'a>)>, Error> {
    if let Some(items) = range.items() {
        return Ok(items.into_iter().enumerate().map(|(i, v)| (Val::Int(i64::try_from(i).unwrap_or(0)), v)).collect());
    }
    let entries = range.entries().ok_or_else(Error::no_overload)?;
    Ok(if two { entries } else { entries.into_iter().map(|(k, _)| (Val::Null, k)).collect() })
}

fn literal_of(literal: &LiteralValue) -> Val<'_> {
    match literal {
        LiteralValue::Boolean(b) => Val::Bool(*b.inner()),
        LiteralValue::Bytes(b) => Val::Bytes(b.inner().into()),
        LiteralValue::Double(d) => Val::Double(*d.inner()),
        LiteralValue::Int(i) => Val::Int(*i.inner()),
        LiteralValue::Null => Val::Null,
        LiteralValue::String(s) => Val::text(s.inner()),
        LiteralValue::UInt(u) => Val::Uint(*u.inner()),
    }
}

/// `has(x.field)`.
pub(super) fn present(of: &Val<'_>, field: &str) -> Result<bool, Error> {
    match of {
        Val::Optional(None) => Ok(false),
        Val::Optional(Some(inner)) => present(inner, field),
        _ => {
            let found = lookup(of, &Val::text(field))?;
            // A schema without nullable fields has no nulls; without a schema null is as good as nothing.
            Ok(found.is_some_and(|v| !matches!((of, v), (Val::Json(..), Val::Null))))
        }
    }
}

/// `x.field`, through an optional too.
pub(super) fn select_field<'a>(of: &Val<'a>, field: &str) -> Result<Val<'a>, Error> {
    if let Val::Optional(inner) = of {
        return match inner {
            None => Ok(Val::Optional(None)),
            Some(inner) => Ok(lookup(inner, &Val::text(field))?.map_or(Val::Optional(None), Val::some)),
        };
    }
    lookup(of, &Val::text(field))?.ok_or_else(|| Error::new(format!("no such key: {field}")))
}

fn type_of_name(name: &str) -> Option<&'static str> {
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"]
        .into_iter()
        .find(|ty| *ty == name)
}

/// Types whose names have dots.
fn type_named<'a>(expr: &IdedExpr) -> Option<Val<'a>> {
    let mut parts = Vec::new();
    let mut at = expr;
    loop {
        match &at.expr {
            Expr::Select(select) if !select.test => {
                parts.push(select.field.as_str());
                at = &select.operand;
            }
            Expr::Ident(name) => {
                parts.push(name);
                break;
            }
            _ => return None,
        }
    }
    parts.reverse();
    let full = parts.join(".");
    [
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "kubernetes.Quantity",
        "kubernetes.URL",
        "net.IP",
        "net.CIDR",
    ]
    .into_iter()
    .find(|ty| *ty == full)
    .map(Val::Type)
}
