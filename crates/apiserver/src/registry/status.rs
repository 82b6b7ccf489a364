//! What a failure of the store is to a client. The only place that decides it.

use apimachinery::meta::Gvr;
use apimachinery::status::{Cause, Details, Status};
use storage::{Key, StorageError};

use crate::cache::feed::TooLarge;

/// Upstream's words for an object that somebody else changed meanwhile.
pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// The Status of a storage error about the object under a key.
#[must_use]
pub(crate) fn of(error: &StorageError, gvr: &Gvr, key: &Key) -> Status {
    let name = key.0.rsplit('/').next().unwrap_or_default();
    match error {
        StorageError::Exists { .. } => Status::already_exists(gvr, name),
        StorageError::NotFound { .. } => Status::not_found(gvr, name),
        StorageError::Conflict { .. } => Status::conflict(gvr, name, MODIFIED),
        StorageError::Compacted { .. } => expired_list(),
        StorageError::Future { asked, current } => too_large(&TooLarge { asked: *asked, current: *current }),
        StorageError::TooLarge { .. } => Status::too_large(error.to_string()),
        StorageError::Full => Status::new(500, "", "etcdserver: mvcc: database space exceeded"),
        StorageError::Timeout => server_timeout(gvr),
        StorageError::Unavailable { .. }
        | StorageError::Corrupt { .. }
        | StorageError::Transform { .. }
        | StorageError::Io(_) => {
            tracing::error!(%error, key = %key.0, "the store failed");
            Status::internal(error.to_string())
        }
    }
}

/// A revision that the server has not seen, and perhaps never will.
#[must_use]
pub(crate) fn too_large(error: &TooLarge) -> Status {
    Status::new(504, "Timeout", format!("Timeout: {error}")).with_details(Details {
        causes: vec![Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        }],
        retry_after_seconds: 1,
        ..Details::default()
    })
}

/// A past that has been forgotten.
#[must_use]
pub(crate) fn expired_list() -> Status {
    Status::expired("The resourceVersion for the provided list is too old.")
}

fn server_timeout(gvr: &Gvr) -> Status {
    let message = format!(
        "The {} operation against {} could not be completed at this time, please try again.",
        "storage",
        gvr.group_resource()
    );
    Status::new(500, "ServerTimeout", message).with_details(Details {
        group: gvr.group.to_string(),
        kind: gvr.resource.to_string(),
        ..Details::default()
    })
}

/// What upstream gives where a plain error of Go reaches the client: 500 without a reason.
#[must_use]
pub(crate) fn plain(message: impl Into<String>) -> Status {
    Status::new(500, "", message)
}
