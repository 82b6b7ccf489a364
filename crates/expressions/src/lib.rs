//! The Common Expression Language as Kubernetes speaks it: rules of custom resources, admission policies, match conditions.
//!
//! The `cel` crate parses; checking and evaluation are this crate's own, because they must answer in upstream's words, and
//! evaluation must count its cost and must not copy the objects that it looks at. Knows no I/O, no requests and nothing of how
//! objects are stored. Entry points:
//!
//! - [`Program::checked`]: is it an expression over names with those types, and of which type is what it makes? For
//!   expressions that somebody writes.
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
//! let mut budget = Budget::new(expressions::CALL_LIMIT);
//! let mut names = Activation::new();
//! names.bind("object", Val::json(&object));
//! names.bind("params", Val::json(&params));
//! let allowed = program.evaluate(&names, &mut budget)?.as_bool();
//! ```
//!
//! Invariants: evaluation does no I/O, ends within its budget, and never panics on what a client wrote.

pub mod admission;
mod check;
mod declarations;
mod eval;
mod functions;
mod kubernetes;
mod lists;
mod macros;
mod operators;
mod select;
mod strings;
mod time;
mod types;
mod unify;
mod value;

use ::cel::common::ast::SourceInfo;
use ::cel::parser::{Expression, Parser};

pub use check::Declarations;
pub use declarations::{AUTHORIZER, RESOURCE_CHECK};
pub use eval::{Activation, Budget};
pub use strings::pattern;
pub use time::decode_base64;
pub use types::{ObjectType, Type, escape};
pub use unify::DeclaredType;
pub use value::{Opaque, Val};

/// What one evaluation of one expression may cost.
pub const CALL_LIMIT: u64 = 1_000_000;
/// What all expressions over one object may cost together.
pub const OBJECT_LIMIT: u64 = 10_000_000;

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Failed(String),
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
}

impl Error {
    pub fn new(message: impl Into<String>) -> Self {
        Error::Failed(message.into())
    }

    pub fn no_overload() -> Self {
        Error::new("no such overload")
    }
}

/// Why an expression is none, as upstream prints it: `ERROR: <input>:1:5: …` with the line and a mark below it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(pub String);

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expression: Expression,
    names: Vec<String>,
}

impl Program {
    /// # Errors
    /// Every syntax error, in upstream's form.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        Self::parse(source).map(|(program, _)| program)
    }

    /// As [`Self::compile`], for an expression that may use those names only; tells the type of what it makes.
    ///
    /// # Errors
    /// Every error of syntax or, without one, of types, in upstream's form.
    pub fn checked(source: &str, names: &Declarations) -> Result<(Self, DeclaredType), CompileError> {
        let (program, places) = Self::parse(source)?;
        let (of, mistakes) = check::check(&program.expression, names);
        if mistakes.is_empty() {
            return Ok((program, of));
        }
        let mut told: Vec<_> = mistakes.into_iter().map(|(id, what)| (place(source, &places, id), what)).collect();
        told.sort_by_key(|(at, _)| *at);
        let told: Vec<String> = told.into_iter().map(|(at, what)| mark(source, at, &what)).collect();
        Err(CompileError(told.join("\n")))
    }

    fn parse(source: &str) -> Result<(Self, SourceInfo), CompileError> {
        let parser =
            Parser::new().enable_optional_syntax(true).enable_ident_escape_syntax(true).max_recursion_depth(250);
        let parsed = parser.parse_with_source_info(source);
        let (expression, places) = parsed.map_err(|errors| CompileError(listed(source, &errors)))?;
        let names = expression.references().variables().into_iter().map(str::to_owned).collect();
        Ok((Program { expression, names }, places))
    }

    /// Does it mention that variable?
    #[must_use]
    pub fn uses(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    /// Does it select that field of that variable?
    #[must_use]
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        select::selects(&self.expression, variable, field)
    }

    pub fn expression(&self) -> &Expression {
        &self.expression
    }

    /// # Errors
    /// What went wrong, in upstream's words; [`Error::Budget`] when the budget is spent.
    pub fn evaluate<'a>(&'a self, names: &Activation<'a>, budget: &mut Budget) -> Result<Val<'a>, Error> {
        eval::evaluate(&self.expression, names, budget)
    }
}

/// Is that a URL as Go's `url.ParseRequestURI` takes it?
pub fn is_url(text: &str) -> bool {
    kubernetes::parse_url(text).is_ok()
}

/// Is that a duration in Go's notation?
pub fn is_duration(text: &str) -> bool {
    time::parse_duration(text).is_some()
}

fn listed(source: &str, errors: &::cel::ParseErrors) -> String {
    let texts: Vec<String> = errors.errors.iter().map(|e| mark(source, e.pos, &e.msg)).collect();
    texts.join("\n")
}

/// The line and the column of a part of an expression, from 1.
fn place(source: &str, places: &SourceInfo, id: u64) -> (isize, isize) {
    let offset = places.offset_for(id).map_or(0, |(start, _)| start as usize);
    let before = source.get(..offset).unwrap_or_default();
    let line = before.matches('\n').count();
    let column = before.chars().rev().take_while(|c| *c != '\n').count();
    (isize::try_from(line + 1).unwrap_or(1), isize::try_from(column + 1).unwrap_or(1))
}

/// A message with the place that it is about.
fn mark(source: &str, (line, column): (isize, isize), message: &str) -> String {
    let (row, at) = (line.max(1).unsigned_abs(), column.max(1).unsigned_abs());
    let text = source.lines().nth(row - 1).unwrap_or_default();
    format!("ERROR: <input>:{row}:{at}: {message}\n | {text}\n | {}^", ".".repeat(at - 1))
}

#[cfg(test)]
mod tests;
