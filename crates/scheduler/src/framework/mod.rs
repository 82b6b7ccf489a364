//! The framework: extension points, what plugins answer, and profiles of plugins.
//!
//! It knows no plugin. [`points`] lists the traits; [`registry`] is how plugins are found by name.

pub(crate) mod erased;
mod event;
mod points;
mod profile;
mod registry;
mod signature;
mod status;
pub(crate) mod waiting;

pub use event::{Actions, Change, ClusterEvent, EventResource, Hint};
pub use points::{
    Bind, BindStatus, Filter, Permit, PermitStatus, Plugin, PostBind, PostFilter, PreBind, PreEnqueue, QueueSort,
    Reserve, Score,
};
pub(crate) use profile::Profile;
pub use registry::{Build, PluginContext, Points, PointsOf, Registry};
pub use signature::{Reuse, Signature};
pub use status::{FilterStatus, MAX_NODE_SCORE, Normalize, PreFilter, PreScore, Reasons, Rejection};
pub use waiting::WaitingPods;
