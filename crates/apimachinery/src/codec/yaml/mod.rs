//! YAML as upstream reads and writes it: 1.1 scalars (`yes` is a boolean, `010` is eight), the first document only, keys
//! made strings, merge keys; and then everything as for JSON.
//!
//! What aliases expand to is bounded, in nodes and in bytes.

mod compose;
mod emit;
mod scalar;

pub use emit::encode;

use super::json::TypeMeta;
use super::{DecodeError, Decoded, Options, from_value};
use crate::Value;
use crate::schema::TypeRef;

/// A YAML document as a tree, without a schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub value: Value,
    /// Keys that came twice in a mapping: `line 6: key "a" already set in map`.
    pub duplicates: Vec<String>,
}

/// Reads the first document. An empty one is `null`.
///
/// # Errors
/// [`DecodeError::Syntax`] for what is no YAML or is too large or deep when expanded.
pub fn parse(body: &[u8]) -> Result<Document, DecodeError> {
    let text =
        std::str::from_utf8(body).map_err(|_| DecodeError::Syntax("yaml: invalid leading UTF-8 octet".into()))?;
    compose::compose(text)
}

/// Decodes a document through a type.
///
/// # Errors
/// [`DecodeError`] as for JSON.
pub fn decode(body: &[u8], ty: &TypeRef, options: Options) -> Result<Decoded, DecodeError> {
    parse(body)?.decode(ty, options)
}

impl Document {
    /// What the document says that it is.
    #[must_use]
    pub fn type_meta(&self) -> TypeMeta {
        TypeMeta { api_version: self.value.api_version().into(), kind: self.value.kind().into() }
    }

    /// Takes the tree through a type.
    ///
    /// # Errors
    /// [`DecodeError::Mismatch`] where a value is not what its field takes.
    pub fn decode(self, ty: &TypeRef, options: Options) -> Result<Decoded, DecodeError> {
        let mut decoded = from_value(self.value, ty, options)?;
        decoded.yaml_duplicates = self.duplicates;
        Ok(decoded)
    }
}
