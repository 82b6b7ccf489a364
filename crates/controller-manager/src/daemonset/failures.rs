//! How long a node rests whose daemon pods keep failing, so that pods are not made and killed in a circle.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(15 * 60);

/// By DaemonSet and node.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<String, Rest>>);

struct Rest {
    until: Instant,
    length: Duration,
}

impl Failures {
    /// Takes note of a failed pod. `Err` says how long its node still rests after the one before.
    pub(super) fn note(&self, set: &str, node: &str) -> Result<(), Duration> {
        let mut rests = self.0.lock();
        let now = Instant::now();
        // Long after its end a rest is forgotten, and the next one is short again.
        rests.retain(|_, rest| now < rest.until + LAST);
        let length = match rests.get(&key(set, node)) {
            Some(rest) if now < rest.until => return Err(rest.until - now),
            Some(rest) => (rest.length * 2).min(LAST),
            None => FIRST,
        };
        rests.insert(key(set, node), Rest { until: now + length, length });
        Ok(())
    }
}

fn key(set: &str, node: &str) -> String {
    format!("{set}/{node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rests_double_and_are_forgotten() {
        let failures = Failures::default();
        assert_eq!(failures.note("ds", "n"), Ok(()));
        assert_eq!(failures.note("ds", "n"), Err(Duration::from_secs(1)));
        assert_eq!(failures.note("ds", "m"), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(failures.note("ds", "n"), Ok(()));
        assert_eq!(failures.note("ds", "n"), Err(Duration::from_secs(2)));
        tokio::time::advance(LAST * 2).await;
        assert_eq!(failures.note("ds", "n"), Ok(()));
        assert_eq!(failures.note("ds", "n"), Err(Duration::from_secs(1)));
    }
}
