//! How every component talks to the API server: a [`kube::Client`] over TLS or straight into a service in the same
//! process, one shared informer per kind, work queues and the controller runner, events, and leader election.
//!
//! Must not know: the API server's insides, any component, any particular kind. The in-process road is a
//! `tower::Service` that somebody hands in.
//!
//! Entry points: [`config::from_kubeconfig`] and [`config::from_service`], [`informer::SharedInformerFactory`],
//! [`controller::run`], [`events::Recorder`], [`leader_election::run`].
//!
//! Invariants:
//! - There is one watch per kind and selection in a factory, however many consumers it has.
//! - A cached object is an `Arc` that nobody can change; to change an object is to write to the API server.
//! - A key is worked on by at most one worker of a queue at a time.
//! - Who lost the lease, or slept past its end, writes nothing through the client that leadership gave it.

pub mod config;
pub mod controller;
pub mod delegation;
pub mod error;
pub mod events;
pub mod informer;
pub mod key;
pub mod leader_election;
pub mod workqueue;

mod fence;
mod rate_limit;
mod transport;

pub use key::ObjectKey;
