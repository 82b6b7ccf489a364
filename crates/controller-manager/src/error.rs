//! Why a reconcile did not reach its end.

use client::{controller::ReconcileError, error::ApiError};

/// A failure that the runner logs and tries again after a pause.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// What the server said, once: the error's own text has it three times.
    #[error("{}", crate::pod_control::said(.0))]
    Api(kube::Error),
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

impl From<kube::Error> for SyncError {
    fn from(err: kube::Error) -> Self {
        Self::Api(err)
    }
}

impl ReconcileError for SyncError {
    fn is_routine(&self) -> bool {
        match self {
            // An object that went away meanwhile needs nothing more, as the next look will find.
            Self::Api(err) => ReconcileError::is_routine(err) || err.is_not_found(),
            Self::NotYet(_) => true,
            Self::Selector(_) | Self::Encode(_) | Self::Sign(_) => false,
        }
    }
}
