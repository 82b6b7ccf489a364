//! The proxy as a whole, with an API server that says what it is told, in a network namespace with no way out.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../../../client/tests/scripted/mod.rs"]
mod scripted;

mod faults;
