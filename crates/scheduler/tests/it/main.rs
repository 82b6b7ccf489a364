//! The scheduler as a whole, without an API server.

mod decisions;
