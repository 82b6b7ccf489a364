//! Macros that the parser leaves alone: optional values and comprehensions with two variables.

use ::cel::common::ast::{Expr, IdedExpr};

use super::Error;
use super::eval::{Run, pairs};
use super::value::Val;

/// Evaluates `target.name(…)` if that is one of these macros.
pub(super) fn expand<'a>(
    run: &mut Run<'_, 'a>,
    name: &str,
    target: &'a IdedExpr,
    args: &'a [IdedExpr],
) -> Option<Result<Val<'a>, Error>> {
    let ident = |i: usize| match &args.get(i)?.expr {
        Expr::Ident(name) => Some(name.as_str()),
        _ => None,
    };
    match (name, args.len()) {
        ("optMap" | "optFlatMap", 2) => Some(opt_map(run, target, ident(0)?, &args[1], name == "optFlatMap")),
        ("all" | "exists" | "existsOne" | "exists_one", 3) => {
            let loops = Two { names: (ident(0)?, ident(1)?), filter: None, step: &args[2] };
            Some(quantified(run, name, target, &loops))
        }
        ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => {
            let filter = (args.len() == 4).then(|| &args[2]);
            let loops = Two { names: (ident(0)?, ident(1)?), filter, step: args.last()? };
            Some(transform(run, name, target, &loops))
        }
        _ => None,
    }
}

/// A loop with a name for the key or index, and one for the value.
struct Two<'a> {
    names: (&'a str, &'a str),
    filter: Option<&'a IdedExpr>,
    step: &'a IdedExpr,
}

fn opt_map<'a>(
    run: &mut Run<'_, 'a>,
    target: &'a IdedExpr,
    name: &'a str,
    body: &'a IdedExpr,
    flat: bool,
) -> Result<Val<'a>, Error> {
    let Val::Optional(inner) = run.eval(target)? else { return Err(Error::no_overload()) };
    let Some(inner) = inner else { return Ok(Val::Optional(None)) };
    run.names.bind(name, inner.as_ref().clone());
    let result = run.eval(body);
    run.names.unbind();
    match (result?, flat) {
        (result @ Val::Optional(_), true) => Ok(result),
        (_, true) => Err(Error::no_overload()),
        (result, false) => Ok(Val::some(result)),
    }
}

fn with_names<'a, T>(
    run: &mut Run<'_, 'a>,
    loops: &Two<'a>,
    (key, value): (Val<'a>, Val<'a>),
    body: impl FnOnce(&mut Run<'_, 'a>) -> Result<T, Error>,
) -> Result<T, Error> {
    run.names.bind(loops.names.0, key);
    run.names.bind(loops.names.1, value);
    let result = body(run);
    run.names.unbind();
    run.names.unbind();
    result
}

fn quantified<'a>(run: &mut Run<'_, 'a>, name: &str, target: &'a IdedExpr, loops: &Two<'a>) -> Result<Val<'a>, Error> {
    let range = run.eval(target)?;
    let (mut count, mut failed) = (0, None);
    for pair in pairs(&range, true)? {
        run.budget.spend(1)?;
        match (name, with_names(run, loops, pair, |run| run.eval(loops.step))) {
            (_, Err(Error::Budget)) => return Err(Error::Budget),
            ("all", Ok(Val::Bool(false))) => return Ok(Val::Bool(false)),
            ("exists", Ok(Val::Bool(true))) => return Ok(Val::Bool(true)),
            (_, Ok(Val::Bool(b))) => count += u32::from(b),
            (_, Ok(_)) => failed = Some(Error::no_overload()),
            (_, Err(error)) => failed = Some(error),
        }
    }
    match (failed, name) {
        (Some(error), _) => Err(error),
        (None, "all") => Ok(Val::Bool(true)),
        (None, "exists") => Ok(Val::Bool(false)),
        (None, _) => Ok(Val::Bool(count == 1)),
    }
}

fn transform<'a>(run: &mut Run<'_, 'a>, name: &str, target: &'a IdedExpr, loops: &Two<'a>) -> Result<Val<'a>, Error> {
    let range = run.eval(target)?;
    let (mut items, mut entries) = (Vec::new(), Vec::new());
    for (key, value) in pairs(&range, true)? {
        run.budget.spend(1)?;
        let made = with_names(run, loops, (key.clone(), value), |run| {
            if let Some(filter) = loops.filter {
                match run.eval(filter)? {
                    Val::Bool(true) => {}
                    Val::Bool(false) => return Ok(None),
                    _ => return Err(Error::no_overload()),
                }
            }
            run.eval(loops.step).map(Some)
        })?;
        match (made, name) {
            (None, _) => {}
            (Some(made), "transformList") => items.push(made),
            (Some(made), "transformMap") => entries.push((key, made)),
            (Some(made), _) => {
                for (k, v) in made.entries().ok_or_else(Error::no_overload)? {
                    if entries.iter().any(|(other, _)| super::value::equal(other, &k)) {
                        return Err(Error::new(format!("insert failed: key {k:?} already exists")));
                    }
                    entries.push((k, v));
                }
            }
        }
    }
    Ok(if name == "transformList" { Val::list(items) } else { Val::Map(entries.into()) })
}
