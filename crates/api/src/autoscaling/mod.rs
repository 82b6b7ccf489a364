//! Kinds of the group `autoscaling`.

mod annotations;
mod conversion;
pub(crate) mod horizontal_pod_autoscaler;
mod metrics;
mod targets;
