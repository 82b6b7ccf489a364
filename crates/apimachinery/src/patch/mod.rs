//! The three patches that need nothing but an object and themselves. Server-side apply is [`crate::apply`].
//!
//! Patches work on trees without looking at types; the result goes through [`crate::codec::from_value`].

mod go_format;
mod json_patch;
mod merge;
mod strategic;

pub use json_patch::{JsonPatch, MAX_OPERATIONS};
pub use merge::merge;
pub use strategic::strategic_merge;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is no patch: the request is bad.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: a failed test, a path that is not there.
    #[error("{0}")]
    Unprocessable(String),
    /// The patch has, or makes, too much.
    #[error("{0}")]
    TooLarge(String),
    /// A directive of a strategic merge patch that cannot be followed. Upstream answers 500.
    #[error("{0}")]
    Directive(String),
}
