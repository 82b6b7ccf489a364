//! When each node was last heard of, by our own clock.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Heartbeats(Mutex<HashMap<String, Instant>>);

impl Heartbeats {
    pub(super) fn heard(&self, node: &str) {
        self.0.lock().insert(node.to_owned(), Instant::now());
    }

    /// Its Lease was renewed; a Lease without a node is nobody's.
    pub(super) fn renewed(&self, node: &str) {
        if let Some(last) = self.0.lock().get_mut(node) {
            *last = Instant::now();
        }
    }

    pub(super) fn forget(&self, node: &str) {
        self.0.lock().remove(node);
    }

    /// How long the node may still be silent; `None` if it has been for too long.
    pub(super) fn left(&self, node: &str, grace: Duration) -> Option<Duration> {
        let last = *self.0.lock().entry(node.to_owned()).or_insert_with(Instant::now);
        // A little later than exactly, so that a look is not a moment too early.
        (last + grace + Duration::from_millis(10)).checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

/// Whether the node's status was posted by its kubelet, as its conditions' times show.
pub(super) fn is_heartbeat(old: &Node, new: &Node) -> bool {
    let beats = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.into_iter().map(|condition| condition.last_heartbeat_time).collect::<Vec<_>>()
    };
    old.metadata.uid != new.metadata.uid || beats(old) != beats(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_measured_from_the_last_sign_of_life() {
        let (heartbeats, grace) = (Heartbeats::default(), Duration::from_secs(40));
        heartbeats.heard("n");
        tokio::time::advance(Duration::from_secs(30)).await;
        heartbeats.renewed("n");
        heartbeats.renewed("ghost");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(heartbeats.left("n", grace).map(|left| left.as_secs()), Some(10));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(heartbeats.left("n", grace), None);
        assert!(!heartbeats.0.lock().contains_key("ghost"));
    }
}
