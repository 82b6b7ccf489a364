//! certificates.k8s.io.

pub(crate) mod signing_request;

pub use signing_request::validate_conditions;
