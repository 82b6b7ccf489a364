//! The Common Expression Language for the whole apiserver: rules of custom resources, admission policies, match conditions.
//!
//! The `cel` crate parses; evaluation is this module's own, because it must count its cost, must not copy the objects that it
//! looks at, and must answer in upstream's words. Entry points:
//!
//! - [`Program::compile`]: once for each expression, when the object that holds it is written or loaded.
//! - [`Program::evaluate`]: any number of times, over an [`Activation`] that binds names to [`Val`]s and a [`Budget`] that
//!   bounds what it may cost.
//! - [`Val::json`] and [`Val::typed`]: an [`apimachinery::Value`] as CEL sees it, borrowed; with a [`Type`], strings become
//!   timestamps and durations where the schema says so and escaped field names (`self.a__dot__b`) resolve.
//! - [`Opaque`]: objects with fields and methods of their own (`variables`, `authorizer`, `request`), implemented by whoever
//!   binds them.
//!
//! ```ignore
//! let program = Program::compile("object.spec.replicas <= params.max")?;
//! let mut budget = Budget::new(cel::CALL_LIMIT);
//! let mut names = Activation::new();
//! names.bind("object", Val::json(&object));
//! names.bind("params", Val::json(&params));
//! let allowed = program.evaluate(&names, &mut budget)?.as_bool();
//! ```
//!
//! Invariants: evaluation does no I/O, ends within its budget, and never panics on what a client wrote.

mod eval;
mod functions;
mod kubernetes;
mod lists;
mod macros;
mod operators;
mod select;
pub(crate) mod strings;
mod time;
mod types;
mod value;

use ::cel::parser::{Expression, Parser};

pub(crate) use eval::{Activation, Budget};
pub(crate) use time::decode_base64;
pub(crate) use types::{ObjectType, Type, escape};
pub(crate) use value::{Opaque, Val};

/// What one evaluation of one expression may cost.
pub(crate) const CALL_LIMIT: u64 = 1_000_000;
/// What all expressions over one object may cost together.
pub(crate) const OBJECT_LIMIT: u64 = 10_000_000;

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Failed(String),
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
}

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Error::Failed(message.into())
    }

    pub(crate) fn no_overload() -> Self {
        Error::new("no such overload")
    }
}

/// Why an expression is none, as upstream prints it: `ERROR: <input>:1:5: …` with the line and a mark below it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CompileError(pub String);

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct Program {
    expression: Expression,
    names: Vec<String>,
}

impl Program {
    /// # Errors
    /// Every syntax error, in upstream's form.
    pub(crate) fn compile(source: &str) -> Result<Self, CompileError> {
        let parser =
            Parser::new().enable_optional_syntax(true).enable_ident_escape_syntax(true).max_recursion_depth(250);
        let expression = parser.parse(source).map_err(|errors| CompileError(listed(source, &errors)))?;
        let names = expression.references().variables().into_iter().map(str::to_owned).collect();
        Ok(Program { expression, names })
    }

    /// Does it mention that variable?
    #[must_use]
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    /// Does it select that field of that variable?
    #[must_use]
    pub(crate) fn selects(&self, variable: &str, field: &str) -> bool {
        select::selects(&self.expression, variable, field)
    }

    pub(crate) fn expression(&self) -> &Expression {
        &self.expression
    }

    /// # Errors
    /// What went wrong, in upstream's words; [`Error::Budget`] when the budget is spent.
    pub(crate) fn evaluate<'a>(&'a self, names: &Activation<'a>, budget: &mut Budget) -> Result<Val<'a>, Error> {
        eval::evaluate(&self.expression, names, budget)
    }
}

/// Is that a URL as Go's `url.ParseRequestURI` takes it?
pub(crate) fn is_url(text: &str) -> bool {
    kubernetes::parse_url(text).is_ok()
}

/// Is that a duration in Go's notation?
pub(crate) fn is_duration(text: &str) -> bool {
    time::parse_duration(text).is_some()
}

fn listed(source: &str, errors: &::cel::ParseErrors) -> String {
    let texts: Vec<String> = errors.errors.iter().map(|e| mark(source, e.pos, &e.msg)).collect();
    texts.join("\n")
}

/// A message about a column of the first line.
pub(crate) fn mark_at(source: &str, column: usize, message: &str) -> String {
    mark(source, (1, column.try_into().unwrap_or(1)), message)
}

/// A message with the place that it is about.
fn mark(source: &str, (line, column): (isize, isize), message: &str) -> String {
    let (row, at) = (line.max(1).unsigned_abs(), column.max(1).unsigned_abs());
    let text = source.lines().nth(row - 1).unwrap_or_default();
    format!("ERROR: <input>:{row}:{at}: {message}\n | {text}\n | {}^", ".".repeat(at - 1))
}

#[cfg(test)]
mod tests;
