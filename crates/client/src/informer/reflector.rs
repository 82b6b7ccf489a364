//! Keeps one cache equal to what the server has: a streaming list and watch where the server knows them, else pages and
//! a watch; after an error again, with growing pauses.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api,
    runtime::watcher::{self, Error as WatchError, Event as WatchEvent, InitialListStrategy, watcher},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Kind, store::Shared};
use crate::error::ApiError;

/// Pauses after errors, as upstream's reflectors make them: doubling from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
const LAST_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct Reflector<K> {
    pub(super) api: Api<K>,
    pub(super) config: watcher::Config,
    pub(super) shared: Arc<Shared<K>>,
    pub(super) synced: watch::Sender<bool>,
}

impl<K: Kind> Reflector<K> {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let kind = K::kind(&()).into_owned();
        let mut listed: Vec<Arc<K>> = Vec::new();
        let mut pause = FIRST_PAUSE;
        let mut events: BoxStream<'static, _> = watcher(self.api.clone(), self.config.clone()).boxed();
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            match event {
                Ok(event) => {
                    pause = FIRST_PAUSE;
                    self.take(event, &mut listed);
                }
                Err(err) if self.is_streaming() && refuses_streaming_lists(&err) => {
                    tracing::debug!(%kind, "the server has no streaming lists, listing in pages");
                    self.config.initial_list_strategy = InitialListStrategy::ListWatch;
                    events = watcher(self.api.clone(), self.config.clone()).boxed();
                }
                Err(err) => {
                    if is_routine(&err) {
                        tracing::debug!(%kind, %err, "watch ended");
                    } else {
                        tracing::warn!(%kind, %err, "watch failed");
                    }
                    let wait = pause.mul_f64(rand::random_range(0.8..1.2));
                    pause = (pause * 2).min(LAST_PAUSE);
                    if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn is_streaming(&self) -> bool {
        self.config.initial_list_strategy == InitialListStrategy::StreamingList
    }

    fn take(&self, event: WatchEvent<K>, listed: &mut Vec<Arc<K>>) {
        match event {
            WatchEvent::Init => listed.clear(),
            WatchEvent::InitApply(object) => listed.push(Arc::new(slim(object))),
            WatchEvent::InitDone => {
                self.shared.replace(std::mem::take(listed));
                self.synced.send_replace(true);
            }
            WatchEvent::Apply(object) => self.shared.apply(slim(object)),
            WatchEvent::Delete(object) => self.shared.delete(slim(object)),
        }
    }
}

/// Drops what no component reads: managedFields are often the larger half of an object. A server takes an update
/// without them as one that leaves them alone.
fn slim<K: Kind>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// Servers before v1.34, or with the feature switched off, refuse `sendInitialEvents` as an invalid option.
fn refuses_streaming_lists(err: &WatchError) -> bool {
    match err {
        WatchError::WatchStartFailed(err) => err.is_invalid() || err.is_reason(400, "BadRequest"),
        _ => false,
    }
}

/// Ends that belong to a watch's life: the server's clock or compaction.
fn is_routine(err: &WatchError) -> bool {
    match err {
        WatchError::WatchError(status) => status.code == 410,
        WatchError::WatchStartFailed(err) => err.is_reason(410, "Expired"),
        _ => false,
    }
}
