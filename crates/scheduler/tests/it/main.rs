//! The scheduler as a whole, without an API server.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod decisions;
