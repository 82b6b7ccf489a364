//! Follows one kind: a streaming list and watch where the server knows them, else pages and a watch; after an error
//! again, with growing pauses.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::watcher::{self, Error as WatchError, Event as WatchEvent, InitialListStrategy, watcher},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Kind, store::Shared};
use crate::error::ApiError;

/// Pauses after errors, as upstream's reflectors make them: doubling from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Keeps one cache equal to what the server has.
pub(super) struct Reflector<K> {
    pub(super) api: Api<K>,
    pub(super) config: watcher::Config,
    pub(super) shared: Arc<Shared<K>>,
    pub(super) synced: watch::Sender<bool>,
}

impl<K: Kind> Reflector<K> {
    pub(super) async fn run(self, stop: CancellationToken) {
        let (api, shared, synced) = (self.api, self.shared, self.synced);
        let mut listed: Vec<Arc<K>> = Vec::new();
        let start = move |config| watcher(api.clone(), config).boxed();
        follow(&K::kind(&()), start, self.config, stop, move |event| match event {
            WatchEvent::Init => listed.clear(),
            WatchEvent::InitApply(object) => listed.push(Arc::new(slim(object))),
            WatchEvent::InitDone => {
                shared.replace(std::mem::take(&mut listed));
                synced.send_replace(true);
            }
            WatchEvent::Apply(object) => shared.apply(slim(object)),
            WatchEvent::Delete(object) => shared.delete(slim(object)),
        })
        .await;
    }
}

/// Follows the metadata of all objects of a resource that is only known at run time, without keeping any of it: `take`
/// hears of each list (`Init`, `InitApply`, `InitDone`) and of each change.
pub async fn follow_metadata(
    client: Client,
    resource: ApiResource,
    stop: CancellationToken,
    take: impl FnMut(WatchEvent<PartialObjectMeta<DynamicObject>>),
) {
    let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client, &resource);
    let start = move |config| watcher(api.clone(), config).boxed();
    follow(&resource.kind, start, watcher::Config::default().streaming_lists(), stop, take).await;
}

async fn follow<T: Resource + Debug>(
    kind: &str,
    start: impl Fn(watcher::Config) -> BoxStream<'static, watcher::Result<WatchEvent<T>>>,
    mut config: watcher::Config,
    stop: CancellationToken,
    mut take: impl FnMut(WatchEvent<T>),
) {
    let mut pause = FIRST_PAUSE;
    let mut events = start(config.clone());
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        match event {
            Ok(event) => {
                pause = FIRST_PAUSE;
                take(event);
            }
            Err(err)
                if config.initial_list_strategy == InitialListStrategy::StreamingList
                    && refuses_streaming_lists(&err) =>
            {
                tracing::debug!(%kind, "the server has no streaming lists, listing in pages");
                config.initial_list_strategy = InitialListStrategy::ListWatch;
                events = start(config.clone());
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
