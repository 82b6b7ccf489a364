//! The release of Kubernetes whose behaviour this is.

pub const MAJOR: &str = "1";
pub const MINOR: &str = "36";
/// As `/version` and `kubeletVersion` give it.
pub const GIT_VERSION: &str = "v1.36.2";
pub const MIN_COMPATIBILITY_MINOR: &str = "35";

/// Kelson's own version, which clients do not compare with anything.
pub const KELSON: &str = env!("CARGO_PKG_VERSION");
