//! Why a reconcile did not reach its end.

use client::controller::ReconcileError;

/// A failure that the runner logs and tries again after a pause.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error("request to the API server failed")]
    Api(#[from] kube::Error),
    #[error("invalid label selector: {0}")]
    Selector(String),
    #[error("object cannot be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("signing failed")]
    Sign(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is needed is not there yet, and nothing that is watched will tell when it is.
    #[error("{0}")]
    NotYet(String),
}

impl ReconcileError for SyncError {
    fn is_routine(&self) -> bool {
        match self {
            Self::Api(err) => ReconcileError::is_routine(err),
            Self::NotYet(_) => true,
            Self::Selector(_) | Self::Encode(_) | Self::Sign(_) => false,
        }
    }
}
