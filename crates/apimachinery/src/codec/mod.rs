//! From bytes to [`Value`] and back, through the schema.
//!
//! Decoding leaves an object as upstream's types would hold it: unknown fields pruned, `null` and empty values dropped
//! where Go drops them (`omitempty`), structs that are always written filled in, times and quantities in canonical form.
//! Type errors are worded as Go's decoder words them; unknown and duplicate fields are listed for the caller, who makes
//! them errors, warnings or nothing.

pub mod cbor;
pub mod json;
pub mod protobuf;
pub mod yaml;

mod go_syntax;
mod normalize;
mod typed;

pub use normalize::normalize;
pub use typed::from_value;

use crate::Value;

/// What Go says of bytes that are no well-formed JSON document.
#[must_use]
pub fn json_syntax_error(bytes: &[u8]) -> Option<String> {
    match go_syntax::check(bytes) {
        Err(DecodeError::Syntax(message)) => Some(message),
        _ => None,
    }
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// Unknown and duplicate fields, in the order of the document, each as upstream words it: `unknown field "spec.foo"`.
    /// At most 100 of them.
    pub strict: Vec<String>,
    /// Keys that came twice in a YAML mapping: `line 6: key "a" already set in map`.
    pub yaml_duplicates: Vec<String>,
}

impl Decoded {
    /// The error for a request that asked for strict decoding, if there is anything to complain about.
    #[must_use]
    pub fn strict_error(&self) -> Option<String> {
        let mut findings = self.strict.clone();
        if !self.yaml_duplicates.is_empty() {
            findings.insert(0, format!("yaml: unmarshal errors:\n  {}", self.yaml_duplicates.join("\n  ")));
        }
        strict_error(&findings)
    }

    /// What a request that asked for warnings is warned of.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.yaml_duplicates.iter().chain(&self.strict)
    }
}

/// How to decode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Values of the wrong type are kept as they are, instead of being errors: a custom resource is checked by its own
    /// schema later. `null` is kept too, and unknown fields are left to pruning.
    pub unstructured: bool,
    /// Type errors are worded as by upstream's converter from unstructured objects, which strategic merge patches go
    /// through, rather than as by its JSON decoder.
    pub converter_words: bool,
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

/// The error of strict decoding that lists these findings, if there are any.
#[must_use]
pub fn strict_error(strict: &[String]) -> Option<String> {
    (!strict.is_empty()).then(|| format!("strict decoding error: {}", strict.join(", ")))
}
