//! The runner of controllers: what a controller says about itself, and everything around it that is the same for all.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use kube::Resource;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    ObjectKey,
    error::ApiError,
    informer::{Event, Kind, SharedInformer},
    workqueue::{Backoff, Queue, QueueMetrics},
};

/// A controller: a name, what it watches, and how it brings one key from what is to what should be.
///
/// `reconcile` starts from current state and may be called at any time, also for keys whose object is gone. It is never
/// called twice at once for one key.
pub trait Controller: Send + Sync + 'static {
    /// Upstream's name of the controller's queue, which logs and metrics carry.
    const NAME: &'static str;
    type Error: ReconcileError;

    /// Declares which changes lead to which keys.
    fn watches(&self, watches: &mut Watches);

    fn reconcile(&self, key: &ObjectKey) -> impl Future<Output = Result<Action, Self::Error>> + Send;
}

/// An error of a reconcile.
pub trait ReconcileError: std::error::Error + Send + Sync + 'static {
    /// Whether it is part of normal life (a stale cache, a namespace that goes away): tried again, but not logged as an
    /// error.
    fn is_routine(&self) -> bool {
        false
    }
}

impl ReconcileError for kube::Error {
    fn is_routine(&self) -> bool {
        self.is_conflict() || self.is_namespace_terminating()
    }
}

/// What follows a successful reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something that is watched changes.
    AwaitChange,
    /// Again after this time, or at a change before it.
    Requeue(Duration),
    /// Again soon, with growing pauses, though nothing failed.
    Retry,
}

impl Action {
    #[must_use]
    pub fn await_change() -> Self {
        Self::AwaitChange
    }
    #[must_use]
    pub fn requeue(after: Duration) -> Self {
        Self::Requeue(after)
    }
}

/// Collects what a controller watches.
pub struct Watches {
    queue: Queue<ObjectKey>,
    syncing: Vec<BoxFuture<'static, bool>>,
}

impl Watches {
    /// Changes of an object lead to its own key.
    pub fn own<K: Kind>(&mut self, informer: &SharedInformer<K>) {
        self.map(informer, |event| Some(event.key()));
    }

    /// Changes lead to the keys that `keys` gives.
    pub fn map<K, I>(&mut self, informer: &SharedInformer<K>, keys: impl Fn(&Event<K>) -> I + Send + Sync + 'static)
    where
        K: Kind,
        I: IntoIterator<Item = ObjectKey>,
    {
        self.act(informer, move |event, queue| {
            for key in keys(event) {
                queue.add(key);
            }
        });
    }

    /// Changes lead to the key of the controlling owner of kind `O`, before and after.
    pub fn controlled_by<O: Kind, K: Kind>(&mut self, informer: &SharedInformer<K>) {
        self.map(informer, |event| {
            let of = |object: &Arc<K>| controller_key::<O>(&**object);
            let new = event.now().and_then(of);
            let old = event.old().and_then(of).filter(|old| Some(old) != new.as_ref());
            [old, new].into_iter().flatten()
        });
    }

    /// Calls `act` with every change and the queue, for what the other forms cannot say.
    pub fn act<K: Kind>(
        &mut self,
        informer: &SharedInformer<K>,
        act: impl Fn(&Event<K>, &Queue<ObjectKey>) + Send + Sync + 'static,
    ) {
        let queue = self.queue.clone();
        informer.on_event(move |event| act(event, &queue));
        self.read(informer);
    }

    /// Only waits for the informer's first list before any key is worked on.
    pub fn read<K: Kind>(&mut self, informer: &SharedInformer<K>) {
        let informer = informer.clone();
        self.syncing.push(async move { informer.synced().await }.boxed());
    }

    /// The queue, for keys that come from elsewhere than informers.
    #[must_use]
    pub fn queue(&self) -> Queue<ObjectKey> {
        self.queue.clone()
    }
}

/// The key of the object's controlling owner, if that is a `O` of any version of its group.
#[must_use]
pub fn controller_key<O: Kind>(object: &impl Resource) -> Option<ObjectKey> {
    let owners = object.meta().owner_references.as_deref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    (owner.kind == O::kind(&()) && group == O::group(&()))
        .then(|| ObjectKey::new(object.meta().namespace.as_deref().unwrap_or_default(), &owner.name))
}

/// How a controller is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Keys worked on at once.
    pub workers: usize,
    pub backoff: Backoff,
    pub metrics: Option<QueueMetrics>,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 5, backoff: Backoff::default(), metrics: None }
    }
}

/// Runs the controller until `stop`: waits for its informers, then lets its workers take keys. Returns when every worker
/// has finished the key it was at.
pub async fn run<C: Controller>(controller: Arc<C>, options: Options, stop: CancellationToken) {
    run_any(controller, options, stop).await;
}

/// A [`Controller`] of any type, so that what runs it is compiled once and not for each.
trait AnyController: Send + Sync {
    fn name(&self) -> &'static str;
    fn watches(&self, watches: &mut Watches);
    fn reconcile<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Action, Failure>>;
}

/// An error of a reconcile, as it is logged.
struct Failure {
    is_routine: bool,
    text: String,
}

impl<C: Controller> AnyController for C {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn watches(&self, watches: &mut Watches) {
        Controller::watches(self, watches);
    }

    fn reconcile<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Action, Failure>> {
        let outcome = Controller::reconcile(self, key);
        async move { outcome.await.map_err(|err| Failure { is_routine: err.is_routine(), text: chain(&err) }) }.boxed()
    }
}

async fn run_any(controller: Arc<dyn AnyController>, options: Options, stop: CancellationToken) {
    let name = controller.name();
    let queue = Queue::new(name, options.backoff, options.metrics.as_ref());
    let mut watches = Watches { queue: queue.clone(), syncing: Vec::new() };
    controller.watches(&mut watches);
    for synced in watches.syncing {
        if stop.run_until_cancelled(synced).await != Some(true) {
            return;
        }
    }
    tracing::debug!(controller = name, workers = options.workers, "caches are synced");
    let mut workers = JoinSet::new();
    for _ in 0..options.workers.max(1) {
        workers.spawn(work(controller.clone(), queue.clone()));
    }
    stop.cancelled().await;
    queue.shut_down();
    while workers.join_next().await.is_some() {}
}

async fn work(controller: Arc<dyn AnyController>, queue: Queue<ObjectKey>) {
    let name = controller.name();
    while let Some(key) = queue.get().await {
        let outcome = AssertUnwindSafe(controller.reconcile(&key)).catch_unwind().await;
        match outcome {
            Ok(Ok(Action::AwaitChange)) => queue.forget(&key),
            Ok(Ok(Action::Requeue(after))) => {
                queue.forget(&key);
                queue.add_after(key.clone(), after);
            }
            Ok(Ok(Action::Retry)) => queue.add_rate_limited(key.clone()),
            Ok(Err(Failure { is_routine, text })) => {
                if is_routine {
                    tracing::debug!(controller = name, %key, err = text, "reconcile has to be tried again");
                } else {
                    tracing::error!(controller = name, %key, err = text, "reconcile failed");
                }
                queue.add_rate_limited(key.clone());
            }
            Err(panic) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .copied()
                    .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                    .unwrap_or("unknown");
                tracing::error!(controller = name, %key, message, "reconcile panicked");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

/// The error and its causes in one line; a cause that an error repeats in its own text is not repeated.
fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let next = err.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = err.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::{
        api::{apps::v1::ReplicaSet, core::v1::Pod},
        apimachinery::pkg::apis::meta::v1::OwnerReference,
    };
    use kube::core::ObjectMeta;
    use tokio::sync::mpsc;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("not yet")]
    struct NotYet;

    impl ReconcileError for NotYet {}

    struct Flaky {
        pods: SharedInformer<Pod>,
        tries: AtomicUsize,
        finished: mpsc::Sender<(String, usize)>,
    }

    impl Controller for Flaky {
        const NAME: &'static str = "flaky";
        type Error = NotYet;

        fn watches(&self, watches: &mut Watches) {
            watches.own(&self.pods);
        }

        async fn reconcile(&self, key: &ObjectKey) -> Result<Action, NotYet> {
            match self.tries.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("first try"),
                1 => Err(NotYet),
                2 => Ok(Action::requeue(Duration::from_secs(1))),
                tries => {
                    self.finished.send((key.to_string(), tries)).await.map_err(|_| NotYet)?;
                    Ok(Action::await_change())
                }
            }
        }
    }

    fn named(name: &str) -> ObjectMeta {
        ObjectMeta { name: Some(name.into()), namespace: Some("ns".into()), ..ObjectMeta::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn panics_and_errors_are_tried_again_and_stop_ends_the_workers() {
        let pods = SharedInformer::fixed([Pod { metadata: named("a"), ..Pod::default() }]);
        let (finished, mut done) = mpsc::channel(1);
        let controller = Arc::new(Flaky { pods, tries: AtomicUsize::new(0), finished });
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(controller, Options::default(), stop.clone()));
        assert_eq!(done.recv().await, Some(("ns/a".into(), 3)));
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn the_controlling_owner_is_found_by_group_and_kind() {
        let owner = |api_version: &str, controller| OwnerReference {
            api_version: api_version.into(),
            kind: "ReplicaSet".into(),
            name: "web".into(),
            controller: Some(controller),
            ..OwnerReference::default()
        };
        let key = |owner| {
            let metadata = ObjectMeta { owner_references: Some(vec![owner]), ..named("a") };
            controller_key::<ReplicaSet>(&Pod { metadata, ..Pod::default() }).map(|key| key.to_string())
        };
        assert_eq!(key(owner("apps/v1", true)), Some("ns/web".into()));
        assert_eq!(key(owner("apps/v1", false)), None);
        assert_eq!(key(owner("example.com/v1", true)), None);
    }
}
