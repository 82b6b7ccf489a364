//! The core group.

mod access_modes;
pub(crate) mod config_map;
pub(crate) mod endpoints;
pub(crate) mod limit_range;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod persistent_volume;
pub(crate) mod persistent_volume_claim;
pub(crate) mod pod;
pub(crate) mod pod_template;
pub(crate) mod replication_controller;
pub(crate) mod resource_quota;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod service_account;
mod service_rules;
mod service_update;
pub(crate) mod volume_sources;

/// The rules of a Service's addresses, which the allocator checks before it gives any out.
#[must_use]
pub fn validate_service_addresses(
    service: &apimachinery::Value,
    old: &apimachinery::Value,
) -> apimachinery::field::FieldErrors {
    service_rules::validate_addresses(service, old)
}
