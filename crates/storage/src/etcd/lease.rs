//! Leases for keys that go away by themselves. Keys written close together share one: a lease costs etcd more than a key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::failure::Failure;
use super::members::{Members, Resend};
use crate::Ttl;

/// A shared lease lives at most this much longer than asked, and never more than a twentieth.
const REUSE: Duration = Duration::from_secs(60);
/// When a lease runs out, etcd deletes all its keys in one go; this bounds that.
const MAX_KEYS: usize = 1000;

/// The lease that was granted last.
#[derive(Default)]
pub(super) struct Leases {
    last: Mutex<Option<Granted>>,
}

struct Granted {
    id: i64,
    expires: Instant,
    keys: usize,
}

impl Leases {
    /// A lease that lasts at least `ttl`, and hardly longer.
    pub(super) async fn lease_for(&self, ttl: Ttl, members: &Arc<Members>) -> Result<i64, Failure> {
        let mut last = self.last.lock().await;
        let now = Instant::now();
        if let Some(granted) = last.as_mut().filter(|granted| granted.serves(ttl.0, now)) {
            granted.keys += 1;
            return Ok(granted.id);
        }
        let seconds = i64::try_from((ttl.0 + slack(ttl.0)).as_secs().max(1)).unwrap_or(i64::MAX);
        // One that is granted twice because an answer was lost has no keys and runs out by itself.
        let granted = members.call(Resend::Always, |member| {
            let mut lease = member.lease.clone();
            async move { lease.grant(seconds, None).await }
        });
        let granted = granted.await?.value;
        let lasts = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0));
        *last = Some(Granted { id: granted.id(), expires: now + lasts, keys: 1 });
        Ok(granted.id())
    }

    /// A lease that etcd does not know any more.
    pub(super) async fn forget(&self, id: i64) {
        self.last.lock().await.take_if(|granted| granted.id == id);
    }
}

impl Granted {
    fn serves(&self, ttl: Duration, now: Instant) -> bool {
        let wanted = now + ttl;
        wanted < self.expires && self.expires < wanted + slack(ttl) && self.keys < MAX_KEYS
    }
}

fn slack(ttl: Duration) -> Duration {
    Duration::from_secs((ttl / 20).as_secs()).min(REUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_serves_keys_that_end_with_it() {
        let now = Instant::now();
        let granted = |seconds, keys| Granted { id: 1, expires: now + Duration::from_secs(seconds), keys };
        let hour = Duration::from_secs(3600);
        for (what, granted, want) in [
            ("half of its slack is used", granted(3630, 5), true),
            ("too short", granted(3599, 5), false),
            ("for something longer", granted(7200, 5), false),
            ("full", granted(3630, MAX_KEYS), false),
        ] {
            assert_eq!(granted.serves(hour, now), want, "{what}");
        }
        assert_eq!(slack(hour), REUSE);
        assert_eq!(slack(Duration::from_secs(100)), Duration::from_secs(5));
        assert_eq!(slack(Duration::from_secs(1)), Duration::ZERO);
    }
}
