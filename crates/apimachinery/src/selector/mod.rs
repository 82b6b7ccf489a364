//! Label selectors and field selectors, parsed from queries and from objects, with upstream's messages.

mod field;
mod label;
mod lexer;
pub mod syntax;

pub use field::{FieldSelector, FieldTerm};
pub use label::{LabelSelector, Operator, Requirement};

/// A selector that cannot be parsed; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);
