//! What an error of etcd, or of the way to it, means for the request that got it.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use crate::StorageError;

/// Why a request has no answer. The first two may be tried on another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was not taken: it certainly had no effect.
    Unsent {
        reason: String,
    },
    /// It may have been done, or may be done yet.
    Lost {
        reason: String,
        timed_out: bool,
    },
    Compacted,
    Future,
    TooLarge,
    Full,
    LeaseNotFound,
    /// Etcd understood it and says no.
    Refused {
        reason: String,
    },
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
const TOO_LARGE: &str = "etcdserver: request is too large";
const FULL: &str = "etcdserver: mvcc: database space exceeded";
const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";

/// Etcd's words for what had no effect, though another member or a later moment may take it.
const UNSENT: &[&str] = &[
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
    "etcdserver: unhealthy cluster",
];

impl Failure {
    pub(super) fn of(error: &etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => Failure::of_status(status),
            other => Failure::Lost { reason: other.to_string(), timed_out: false },
        }
    }

    fn of_status(status: &tonic::Status) -> Self {
        if is_connect_error(status) {
            return Failure::Unsent { reason: chain_of(status) };
        }
        of_words(status.code(), status.message())
            .unwrap_or_else(|| Failure::Lost { reason: chain_of(status), timed_out: false })
    }

    pub(super) fn no_answer(within: Duration) -> Self {
        Failure::Lost { reason: format!("no answer within {}s", within.as_secs()), timed_out: true }
    }

    /// Somebody else wrote after an attempt whose answer was lost.
    pub(super) fn unknown_outcome() -> Self {
        Failure::Lost { reason: "the outcome of the write is unknown".to_owned(), timed_out: true }
    }

    /// Says which member it was.
    pub(super) fn at(self, endpoint: &str) -> Self {
        match self {
            Failure::Unsent { reason } => Failure::Unsent { reason: format!("{endpoint}: {reason}") },
            Failure::Lost { reason, timed_out } => Failure::Lost { reason: format!("{endpoint}: {reason}"), timed_out },
            other => other,
        }
    }

    /// For the log.
    pub(super) fn reason(&self) -> &str {
        match self {
            Failure::Unsent { reason } | Failure::Lost { reason, .. } | Failure::Refused { reason } => reason,
            Failure::Compacted => COMPACTED,
            Failure::Future => FUTURE,
            Failure::TooLarge => TOO_LARGE,
            Failure::Full => FULL,
            Failure::LeaseNotFound => LEASE_NOT_FOUND,
        }
    }

    pub(super) fn into_error(self) -> StorageError {
        match self {
            Failure::Lost { timed_out: true, reason } => {
                tracing::warn!(%reason, "a request to etcd timed out");
                StorageError::Timeout
            }
            Failure::Full => StorageError::Full,
            // The callers that can get the last four know more and say it themselves.
            Failure::Unsent { .. }
            | Failure::Lost { .. }
            | Failure::Refused { .. }
            | Failure::Compacted
            | Failure::Future
            | Failure::TooLarge
            | Failure::LeaseNotFound => StorageError::Unavailable { reason: self.reason().to_owned() },
        }
    }

    pub(super) fn into_write_error(self, value: &Bytes) -> StorageError {
        match self {
            Failure::TooLarge => StorageError::TooLarge { size: value.len(), limit: super::DEFAULT_REQUEST_LIMIT },
            other => other.into_error(),
        }
    }
}

/// What etcd says, by its words: several of its errors share a code.
fn of_words(code: Code, words: &str) -> Option<Failure> {
    let failure = match words {
        COMPACTED => Failure::Compacted,
        FUTURE => Failure::Future,
        TOO_LARGE => Failure::TooLarge,
        FULL => Failure::Full,
        LEASE_NOT_FOUND => Failure::LeaseNotFound,
        _ if UNSENT.contains(&words) => Failure::Unsent { reason: words.to_owned() },
        _ if words.starts_with("etcdserver: request timed out") => {
            Failure::Lost { reason: words.to_owned(), timed_out: true }
        }
        _ if code == Code::ResourceExhausted && words.contains("larger than max") => Failure::TooLarge,
        // An answer of etcd itself that is none of the passing kind.
        _ if words.starts_with("etcdserver: ") && code != Code::Unavailable => {
            Failure::Refused { reason: words.to_owned() }
        }
        _ if matches!(
            code,
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
        ) =>
        {
            Failure::Refused { reason: words.to_owned() }
        }
        _ => return None,
    };
    Some(failure)
}

/// No connection could be made: nothing was sent.
fn is_connect_error(status: &tonic::Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The status's own words and the innermost cause, which is the one that helps: `connection refused`, `UnknownIssuer`.
fn chain_of(status: &tonic::Status) -> String {
    let mut innermost: Option<&dyn std::error::Error> = None;
    let mut source = status.source();
    while let Some(error) = source {
        innermost = Some(error);
        source = error.source();
    }
    match innermost.map(ToString::to_string) {
        Some(cause) if !status.message().contains(&cause) => format!("{}: {cause}", status.message()),
        _ => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: Code, words: &str) -> &'static str {
        match Failure::of_status(&tonic::Status::new(code, words)) {
            Failure::Unsent { .. } => "unsent",
            Failure::Lost { timed_out: true, .. } => "timed out",
            Failure::Lost { .. } => "lost",
            Failure::Compacted => "compacted",
            Failure::Future => "future",
            Failure::TooLarge => "too large",
            Failure::Full => "full",
            Failure::LeaseNotFound => "no lease",
            Failure::Refused { .. } => "refused",
        }
    }

    #[test]
    fn errors_are_told_apart() {
        for (code, words, want) in [
            (Code::Unavailable, "etcdserver: no leader", "unsent"),
            (Code::ResourceExhausted, "etcdserver: too many requests", "unsent"),
            (Code::Unavailable, "etcdserver: leader changed", "lost"),
            (Code::Unavailable, "etcdserver: server stopped", "lost"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost", "timed out"),
            (Code::Unavailable, "error reading a body from connection", "lost"),
            (Code::Unknown, "transport error", "lost"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "compacted"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "future"),
            (Code::InvalidArgument, "etcdserver: request is too large", "too large"),
            (Code::ResourceExhausted, "grpc: received message larger than max (3000000 vs. 2097152)", "too large"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "full"),
            (Code::NotFound, "etcdserver: requested lease not found", "no lease"),
            (Code::PermissionDenied, "etcdserver: permission denied", "refused"),
            (Code::Unauthenticated, "etcdserver: invalid auth token", "refused"),
        ] {
            assert_eq!(kind(code, words), want, "{code:?} {words}");
        }
    }

    #[test]
    fn a_failure_to_connect_had_no_effect() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = tonic::Status::from_error(Box::new(tonic::ConnectError(Box::new(refused))));
        let failure = Failure::of_status(&status).at("http://127.0.0.1:2379");
        assert_eq!(failure, Failure::Unsent { reason: "http://127.0.0.1:2379: connection refused".to_owned() });
    }
}
