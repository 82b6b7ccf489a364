//! How many requests are answered at once. Long-running requests need no seat.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::config::SeatsConfig;

/// How many requests may wait for a seat. Each holds its connection and its head, some 10 KB.
const MAX_WAITING: usize = 4096;

/// The seats of a server.
pub(crate) enum Seats {
    /// One pool; who finds no seat waits for a while.
    Shared { seats: Arc<Semaphore>, waiting: AtomicUsize, wait: Duration },
    /// A pool for requests that change something and one for the others, `None` without a limit; nobody waits.
    Apart { reading: Option<Arc<Semaphore>>, mutating: Option<Arc<Semaphore>> },
}

/// There was no seat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Held while a request is answered.
pub(crate) struct Seat {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Seats {
    pub(crate) fn new(config: &SeatsConfig, request_timeout: Duration) -> Self {
        let limited = |limit: usize| (limit > 0).then(|| Arc::new(Semaphore::new(limit)));
        if config.waiting {
            let seats = Arc::new(Semaphore::new(config.reading + config.mutating));
            // A request that waited longer would have little time left to be answered in.
            return Seats::Shared { seats, waiting: AtomicUsize::new(0), wait: request_timeout / 4 };
        }
        Seats::Apart { reading: limited(config.reading), mutating: limited(config.mutating) }
    }

    /// Takes a seat for a request.
    ///
    /// # Errors
    /// [`Full`] when there is none, nor one within the time that a request may wait.
    pub(crate) async fn take(&self, mutating: bool) -> Result<Seat, Full> {
        match self {
            Seats::Shared { seats, waiting, wait } => {
                if let Ok(permit) = Arc::clone(seats).try_acquire_owned() {
                    return Ok(Seat { _permit: Some(permit) });
                }
                let _place = Place::take(waiting).ok_or(Full)?;
                match tokio::time::timeout(*wait, Arc::clone(seats).acquire_owned()).await {
                    Ok(Ok(permit)) => Ok(Seat { _permit: Some(permit) }),
                    Ok(Err(_)) | Err(_) => Err(Full),
                }
            }
            Seats::Apart { reading, mutating: writing } => {
                match if mutating { writing } else { reading }.clone().map(Semaphore::try_acquire_owned) {
                    None => Ok(Seat { _permit: None }),
                    Some(Ok(permit)) => Ok(Seat { _permit: Some(permit) }),
                    Some(Err(TryAcquireError::NoPermits | TryAcquireError::Closed)) => Err(Full),
                }
            }
        }
    }
}

/// One who waits; counted until it is dropped, so that a client that goes away makes room.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Option<Self> {
        let place = Place(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(waiting: bool) -> Seats {
        let config = SeatsConfig { reading: 1, mutating: 1, waiting };
        Seats::new(&config, Duration::from_secs(60))
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_seat_waits_for_one() {
        let seats = seats(true);
        let first = seats.take(false).await.unwrap_or_else(|_| panic!("a seat"));
        let _second = seats.take(false).await.unwrap_or_else(|_| panic!("a seat"));
        let started = tokio::time::Instant::now();
        assert!(seats.take(true).await.is_err());
        assert_eq!(started.elapsed().as_secs(), 15);
        let (third, ()) = tokio::join!(seats.take(true), async { drop(first) });
        assert!(third.is_ok());
    }

    #[tokio::test]
    async fn reads_and_writes_may_have_pools_of_their_own() {
        let seats = seats(false);
        let _read = seats.take(false).await.unwrap_or_else(|_| panic!("a seat"));
        assert!(seats.take(false).await.is_err());
        assert!(seats.take(true).await.is_ok());
    }
}
