//! Events sent to a server outside, in lists.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::Backend;
use super::queue::{Queue, Waiting};
use crate::config::{AuditMode, AuditWebhookConfig};
use crate::outbound::kubeconfig::Remote;

pub(super) enum Webhook {
    /// Sent before the request goes on.
    Direct(Sender),
    Queued(Queue),
}

pub(super) struct Sender {
    remote: Remote,
    first_pause: Duration,
}

impl Webhook {
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub(super) fn new(config: &AuditWebhookConfig) -> Result<Self, String> {
        let sender = Sender { remote: Remote::load(&config.config_file)?, first_pause: config.initial_backoff };
        if config.mode != AuditMode::Batch {
            return Ok(Webhook::Direct(sender));
        }
        let (queue, waiting) = Queue::new(config.buffer_size.max(1));
        let (max, wait) = (config.max_batch_size.max(1), config.max_batch_wait);
        tokio::spawn(async move { gather(&sender, waiting, max, wait).await });
        Ok(Webhook::Queued(queue))
    }
}

#[async_trait]
impl Backend for Webhook {
    async fn take(&self, event: &Bytes) -> bool {
        match self {
            Webhook::Direct(sender) => sender.send(std::slice::from_ref(event)).await,
            Webhook::Queued(queue) => queue.push(event),
        }
    }

    async fn close(&self) {
        match self {
            Webhook::Direct(_) => {}
            Webhook::Queued(queue) => queue.close().await,
        }
    }
}

/// Sends what has come together: so many events, or what came within a while of the first.
async fn gather(sender: &Sender, mut waiting: Waiting, max: usize, wait: Duration) {
    while let Some(first) = waiting.events.recv().await {
        let mut batch = vec![first];
        let end = Instant::now() + wait;
        while batch.len() < max {
            match tokio::time::timeout_at(end, waiting.events.recv()).await {
                Ok(Some(event)) => batch.push(event),
                Ok(None) | Err(_) => break,
            }
        }
        sender.send(&batch).await;
    }
}

impl Sender {
    async fn send(&self, events: &[Bytes]) -> bool {
        let answered = self.remote.post_again(list_of(events), self.first_pause, |code| !code.is_success()).await;
        let why = match answered {
            Ok(answer) if answer.status.is_success() => return true,
            Ok(answer) => format!("it answered {}", answer.status),
            Err(why) => why,
        };
        tracing::error!(why, events = events.len(), "audit events were dropped: the webhook does not take them");
        false
    }
}

/// An `EventList`.
fn list_of(events: &[Bytes]) -> Bytes {
    let mut out = BytesMut::from(&br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#[..]);
    for (i, event) in events.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(b",");
        }
        out.extend_from_slice(event);
    }
    out.extend_from_slice(b"]}");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_sent_in_lists() {
        let list = list_of(&[Bytes::from("{\"a\":1}"), Bytes::from("{}")]);
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        assert_eq!((list["kind"].as_str(), list["items"].as_array().map(Vec::len)), (Some("EventList"), Some(2)));
    }
}
