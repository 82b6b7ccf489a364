//! The fence in front of a leader's writes: past the end of its term nothing but reads goes through.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Method, Request};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::BoxError;

/// A write was held back because the lease was not renewed in time.
#[derive(Debug, thiserror::Error)]
#[error("leadership ended, write refused")]
pub(crate) struct Fenced;

/// Until when this process may write. Starts closed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fence(Arc<Mutex<Option<Term>>>);

#[derive(Debug, Clone, Copy)]
struct Term {
    began: Instant,
    /// The wall clock goes on while the machine sleeps, the other one may not; the later of both counts.
    began_wall: SystemTime,
    length: Duration,
}

/// The moment from which a term is counted: before the request that renews it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(Instant, SystemTime);

impl Mark {
    pub(crate) fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }
}

impl Fence {
    pub(crate) fn open(&self, from: Mark, length: Duration) {
        *self.0.lock() = Some(Term { began: from.0, began_wall: from.1, length });
    }

    pub(crate) fn close(&self) {
        *self.0.lock() = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.lock().is_some_and(|term| {
            let wall = term.began_wall.elapsed().unwrap_or_default();
            term.began.elapsed().max(wall) < term.length
        })
    }

    /// A client whose writes stop at this fence.
    pub(crate) fn guard(&self, client: &Client) -> Client {
        let (fence, inner) = (self.clone(), client.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (fence, inner) = (fence.clone(), inner.clone());
            async move {
                let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
                if !reads && !fence.is_open() {
                    return Err(BoxError::from(Fenced));
                }
                inner.send(request).await.map_err(BoxError::from)
            }
        });
        Client::new(service, client.default_namespace().to_owned())
    }
}
