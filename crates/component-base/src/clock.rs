//! Time as a value that is handed in, so that tests decide what it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may jump; use `tokio::time` to wait.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that stands still until it is told to move.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<SystemTime>>);

impl ManualClock {
    #[must_use]
    pub fn at(now: SystemTime) -> Self {
        ManualClock(Arc::new(Mutex::new(now)))
    }

    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}
