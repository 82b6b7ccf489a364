//! Kinds of the group `apps`: those that keep a number of pods running.

pub(crate) mod controller_revision;
pub(crate) mod daemon_set;
pub(crate) mod deployment;
pub(crate) mod replica_set;
pub(crate) mod rules;
pub(crate) mod stateful_set;
