//! Events that wait for a backend that may take its time.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

pub(super) struct Queue {
    /// `None`: it is closed.
    events: Mutex<Option<mpsc::Sender<Bytes>>>,
    /// Fails when all that was queued has been dealt with.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

/// The other end of a queue; its owner drops it when it has dealt with everything.
pub(super) struct Waiting {
    pub events: mpsc::Receiver<Bytes>,
    _ended: oneshot::Sender<()>,
}

impl Queue {
    pub(super) fn new(size: usize) -> (Self, Waiting) {
        let (sender, events) = mpsc::channel(size);
        let (ending, ended) = oneshot::channel();
        let queue = Queue { events: Mutex::new(Some(sender)), ended: Mutex::new(Some(ended)) };
        (queue, Waiting { events, _ended: ending })
    }

    pub(super) fn push(&self, event: &Bytes) -> bool {
        let taken = self.events.lock().as_ref().is_some_and(|queue| queue.try_send(event.clone()).is_ok());
        if !taken {
            tracing::error!("an audit event was dropped: its backend does not keep up, or has ended");
        }
        taken
    }

    /// Takes no more; returns when all has been dealt with.
    pub(super) async fn close(&self) {
        self.events.lock().take();
        let ended = self.ended.lock().take();
        if let Some(ended) = ended {
            // Nothing is ever sent there.
            let _ = ended.await;
        }
    }
}
