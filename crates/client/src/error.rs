//! What an API server's refusal means, asked of a [`kube::Error`] by name instead of by number.

use kube::core::Status;

/// The status that the server answered with, and the questions that callers ask of it.
pub trait ApiError {
    /// The server's `Status`, when it was the server that refused.
    fn status(&self) -> Option<&Status>;

    fn is_reason(&self, code: u16, reason: &str) -> bool {
        self.status().is_some_and(|status| status.reason == reason || (status.reason.is_empty() && status.code == code))
    }
    fn is_not_found(&self) -> bool {
        self.is_reason(404, "NotFound")
    }
    fn is_conflict(&self) -> bool {
        self.is_reason(409, "Conflict")
    }
    fn is_already_exists(&self) -> bool {
        self.is_reason(409, "AlreadyExists")
    }
    fn is_forbidden(&self) -> bool {
        self.is_reason(403, "Forbidden")
    }
    fn is_invalid(&self) -> bool {
        self.is_reason(422, "Invalid")
    }
    fn is_too_many_requests(&self) -> bool {
        self.is_reason(429, "TooManyRequests")
    }
    /// Whether the namespace that the object was to be created in is being deleted.
    fn is_namespace_terminating(&self) -> bool {
        self.is_forbidden()
            && self
                .status()
                .and_then(|status| status.details.as_ref())
                .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }
}

impl ApiError for kube::Error {
    fn status(&self) -> Option<&Status> {
        match self {
            kube::Error::Api(status) => Some(status),
            _ => None,
        }
    }
}

/// Takes "already gone" as success.
pub fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.is_not_found() => Ok(None),
        Err(err) => Err(err),
    }
}
