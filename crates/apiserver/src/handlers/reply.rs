//! What handlers answer with, before it is encoded.

use apimachinery::Value;
use http::StatusCode;

use crate::registry::{ListResult, Stored};
use crate::resources::Resource;

/// An answer in the making.
pub(crate) enum Reply<'a> {
    /// An object as it is stored.
    Stored {
        resource: &'a Resource,
        stored: Stored,
    },
    /// An object in the version that is served.
    Value(Value),
    List(Listing<'a>),
}

/// The objects of a list.
pub(crate) struct Listing<'a> {
    pub resource: &'a Resource,
    pub result: ListResult,
}

/// An answer and its code.
pub(crate) struct Coded<'a> {
    pub code: StatusCode,
    pub reply: Reply<'a>,
}
