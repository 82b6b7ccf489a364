//! From bytes to [`Value`] and back, through the schema.
//!
//! Decoding leaves an object as upstream's types would hold it: unknown fields pruned, `null` and empty values dropped
//! where Go drops them (`omitempty`), structs that are always written filled in, times and quantities in canonical form.
//! Type errors are worded as Go's decoder words them; unknown and duplicate fields are listed for the caller, who makes
//! them errors, warnings or nothing.

pub mod json;
pub mod protobuf;

mod go_syntax;
mod normalize;
mod typed;

pub use normalize::normalize;
pub use typed::from_value;

use crate::Value;

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// Unknown and duplicate fields, in the order of the document, each as upstream words it: `unknown field "spec.foo"`.
    /// At most 100 of them.
    pub strict: Vec<String>,
}

/// How to decode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Values of the wrong type are kept as they are, instead of being errors: a custom resource is checked by its own
    /// schema later. `null` is kept too, and unknown fields are left to pruning.
    pub unstructured: bool,
}

/// Why bytes are no object of that type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not even well-formed.
    #[error("{0}")]
    Syntax(String),
    /// Well-formed, but a value is not what its field takes.
    #[error("{0}")]
    Mismatch(String),
}

/// The error for a request that asked for strict decoding, if there is anything to complain about.
#[must_use]
pub fn strict_error(strict: &[String]) -> Option<String> {
    (!strict.is_empty()).then(|| format!("strict decoding error: {}", strict.join(", ")))
}
