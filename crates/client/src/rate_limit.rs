//! A token bucket over requests, as upstream's `--kube-api-qps` and `--kube-api-burst` mean it: a request waits for
//! its turn, it is never refused.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Hands out turns at `qps` per second after a first `burst`.
#[derive(Debug, Clone)]
pub(crate) struct RateLimiter(Option<Arc<Mutex<Bucket>>>);

#[derive(Debug)]
struct Bucket {
    qps: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl RateLimiter {
    /// No limit where `qps` is not positive, as upstream has it.
    pub(crate) fn new(qps: f64, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self((qps > 0.0).then(|| Arc::new(Mutex::new(Bucket { qps, burst, tokens: burst, filled: Instant::now() }))))
    }

    /// Takes a turn and says how long to wait for it.
    fn reserve(&self) -> Duration {
        let Some(bucket) = &self.0 else { return Duration::ZERO };
        let mut bucket = bucket.lock();
        let now = Instant::now();
        let gained = now.duration_since(bucket.filled).as_secs_f64() * bucket.qps;
        bucket.filled = now;
        bucket.tokens = (bucket.tokens + gained).min(bucket.burst) - 1.0;
        // A negative balance is the length of the queue in front of us.
        if bucket.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-bucket.tokens / bucket.qps) }
    }

    pub(crate) async fn turn(&self) {
        let wait = self.reserve();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lets_the_burst_through_and_then_keeps_the_rate() {
        let limiter = RateLimiter::new(10.0, 3);
        let start = Instant::now();
        for _ in 0..3 {
            limiter.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..5 {
            limiter.turn().await;
        }
        assert_eq!(start.elapsed().as_millis(), 500);
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_limit_without_a_rate() {
        let limiter = RateLimiter::new(-1.0, 1);
        for _ in 0..1000 {
            assert_eq!(limiter.reserve(), Duration::ZERO);
        }
    }
}
