//! kube-scheduler: finds a node for every pod.
//!
//! Must not know: other components, the store. Decisions are made by one thread from an in-memory picture of the cluster
//! ([`cluster`]), pod after pod, through a framework of plugins ([`framework`], [`plugins`]); everything that takes time
//! (binding, telling users, evicting) happens beside it.
//!
//! Entry points: [`Flags`], [`Config`], [`run`]; [`framework`] for plugins of one's own; [`simulation`] for decisions without
//! an API server.
//!
//! Invariants:
//! - A pod counts on its node from the moment of the decision, so that no decision has to wait for the API server.
//! - Pods that are the same to all plugins get their answers from the same columns, and a column is worked out again only
//!   for the nodes that changed.
//! - A plugin's answer never depends on the order in which nodes are looked at.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod config;
pub mod cycle;
mod extender;
mod flags;
pub mod framework;
pub mod gangs;
pub mod listers;
mod metrics;
pub mod plugins;
pub mod pod;
mod profiles;
pub mod quantity;
pub mod queue;
mod report;
pub mod resources;
mod run;
mod scheduler;
pub mod selector;
pub mod simulation;
pub mod taints;

pub use config::Config;
pub use flags::{Flags, FlagsError};
pub use run::{Error, run};
