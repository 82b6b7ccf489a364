//! How many requests are answered at once. Long-running requests need no seat.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::attributes::{RequestInfo, UserInfo};
use crate::config::SeatsConfig;
use crate::flowcontrol::{self, Flow, FlowControl};
use crate::lister::Lister;

/// The seats of a server.
pub(crate) enum Seats {
    /// Shared out by priority and fairness; who finds none may wait.
    Fair(FlowControl),
    /// A pool for requests that change something and one for the others, `None` without a limit; nobody waits.
    Apart { reading: Option<Arc<Semaphore>>, mutating: Option<Arc<Semaphore>> },
}

/// There was no seat.
#[derive(Debug)]
pub(crate) struct Full(pub Option<Arc<Flow>>);

/// Held while a request is answered.
pub(crate) enum Seat {
    Fair(flowcontrol::Seat),
    Apart { _permit: Option<OwnedSemaphorePermit> },
}

impl Seat {
    /// Where the request belongs.
    pub(crate) fn flow(&self) -> Option<&Flow> {
        match self {
            Seat::Fair(seat) => seat.flow.as_deref(),
            Seat::Apart { .. } => None,
        }
    }
}

impl Seats {
    pub(crate) fn new(config: &SeatsConfig, request_timeout: Duration, lister: Arc<dyn Lister>) -> Self {
        let limited = |limit: usize| (limit > 0).then(|| Arc::new(Semaphore::new(limit)));
        if config.waiting {
            // A request that waited longer would have little time left to be answered in.
            return Seats::Fair(FlowControl::new(lister, config.reading + config.mutating, request_timeout / 4));
        }
        Seats::Apart { reading: limited(config.reading), mutating: limited(config.mutating) }
    }

    /// Takes a seat for a request.
    ///
    /// # Errors
    /// [`Full`] when there is none, nor one within the time that a request may wait.
    pub(crate) async fn take(&self, mutating: bool, user: &UserInfo, info: &RequestInfo) -> Result<Seat, Full> {
        match self {
            Seats::Fair(control) => match control.take(user, info).await {
                Ok(seat) => Ok(Seat::Fair(seat)),
                Err(rejected) => Err(Full(Some(rejected.flow))),
            },
            Seats::Apart { reading, mutating: writing } => {
                // The operator's own requests, and questions about the server's health, are answered however busy it is.
                let is_probe = ["/healthz", "/livez", "/readyz"].iter().any(|path| info.path.starts_with(path));
                if user.is_in("system:masters") || (!info.is_resource && is_probe) {
                    return Ok(Seat::Apart { _permit: None });
                }
                match if mutating { writing } else { reading }.clone().map(Semaphore::try_acquire_owned) {
                    None => Ok(Seat::Apart { _permit: None }),
                    Some(Ok(permit)) => Ok(Seat::Apart { _permit: Some(permit) }),
                    Some(Err(TryAcquireError::NoPermits | TryAcquireError::Closed)) => Err(Full(None)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    #[tokio::test]
    async fn reads_and_writes_may_have_pools_of_their_own() {
        let config = SeatsConfig { reading: 1, mutating: 1, waiting: false };
        let seats = Seats::new(&config, Duration::from_secs(60), Arc::new(MapLister::default()));
        let (user, info) = (UserInfo::default(), RequestInfo::default());
        let _read = seats.take(false, &user, &info).await.unwrap();
        assert!(seats.take(false, &user, &info).await.is_err());
        assert!(seats.take(true, &user, &info).await.is_ok());
        let master = UserInfo { groups: vec!["system:masters".to_owned()], ..UserInfo::default() };
        assert!(seats.take(false, &master, &info).await.is_ok());
    }
}
