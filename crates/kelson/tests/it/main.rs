//! The program as its users start it.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod apiserver;
mod bootstrap;
mod clients;
mod cluster;
mod component;
mod components;
mod convergence;
mod etcd;
mod linearizability;
mod rollouts;
mod runtime;
