//! What the tests of several crates need: machines made of network namespaces, waiting for what somebody else brings about,
//! and input that was tampered with.
//!
//! A dev-dependency only. It knows no other crate. It panics where a test would.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking")]

pub mod fuzz;
pub mod netns;
pub mod wait;
