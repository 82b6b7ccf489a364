//! resource.k8s.io: devices, and claims to them.

pub(crate) mod device_class;
mod devices;
pub(crate) mod resource_claim;
mod resource_claim_status;
pub(crate) mod resource_slice;
