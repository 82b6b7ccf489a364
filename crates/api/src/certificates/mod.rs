//! certificates.k8s.io.

pub(crate) mod cluster_trust_bundle;
pub(crate) mod signing_request;

pub use signing_request::validate_conditions;
