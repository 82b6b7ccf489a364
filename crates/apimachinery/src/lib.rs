//! The machinery that every API object shares, whatever its kind: the [`Value`] tree and its schema, codecs, patches,
//! selectors, quantities, `Status` errors and field errors.
//!
//! Pure: it knows no async runtime, no files, no clock and no HTTP. Entry points: [`Value`], [`schema::Schema`],
//! [`codec`], [`patch`], [`selector`], [`status::Status`].
//!
//! Invariants:
//! - A [`Map`] is sorted by key and has no key twice, so equal objects have equal encodings.
//! - A custom resource and a built-in object take the same road: only their [`schema::Schema`] differs.

#![forbid(unsafe_code)]

pub mod apply;
pub mod codec;
pub mod field;
pub mod meta;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod time;
pub mod value;

pub use value::{Map, Value};
