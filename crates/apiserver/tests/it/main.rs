//! The server as clients see it: through sockets and TLS, each test with a server and a store of its own.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod aggregation;
mod audit;
mod bad_input;
mod custom;
mod encodings;
mod encryption;
mod ending;
mod fixture;
mod grpc;
mod identity;
mod kms;
mod kubelet;
mod limits;
mod outside;
mod proxy;
mod selectors;
mod store;
mod tls;
mod traces;
