//! `/healthz`, `/livez` and `/readyz`: named checks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use crate::cache::feed::Feed;

type CheckFuture = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type CheckFn = Arc<dyn Fn() -> CheckFuture + Send + Sync>;

/// Which endpoints a check belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Health,
    Live,
    Ready,
}

struct Check {
    name: String,
    run: CheckFn,
    ready_only: bool,
}

/// The checks of a server.
pub(crate) struct Health {
    checks: parking_lot::RwLock<Vec<Check>>,
    /// Turns true when the server has become ready for the first time.
    ready: watch::Sender<bool>,
}

impl Health {
    #[must_use]
    pub(crate) fn new() -> Self {
        let health = Health { checks: parking_lot::RwLock::default(), ready: watch::Sender::new(false) };
        health.add("ping", false, || async { Ok(()) });
        health.add("log", false, || async { Ok(()) });
        health
    }

    /// Adds a check; it counts for `/readyz`, and for the others too unless `ready_only`.
    pub(crate) fn add<F, R>(&self, name: &str, ready_only: bool, run: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        let run: CheckFn = Arc::new(move || Box::pin(run()));
        self.checks.write().push(Check { name: name.to_owned(), run, ready_only });
    }

    /// A check that fails until it is told that its hook is done.
    #[must_use]
    pub(crate) fn add_hook(&self, name: &str) -> watch::Sender<bool> {
        let (done, seen) = watch::channel(false);
        self.add(&format!("poststarthook/{name}"), false, move || {
            let finished = *seen.borrow();
            async move { if finished { Ok(()) } else { Err("not finished".to_owned()) } }
        });
        done
    }

    fn checks_of(&self, endpoint: Endpoint) -> Vec<(String, CheckFn)> {
        let checks = self.checks.read();
        let counted = checks.iter().filter(|c| endpoint == Endpoint::Ready || !c.ready_only);
        counted.map(|c| (c.name.clone(), Arc::clone(&c.run))).collect()
    }

    /// Runs all checks of an endpoint: name and outcome, in order.
    pub(crate) async fn run(&self, endpoint: Endpoint) -> Vec<(String, Result<(), String>)> {
        let mut outcomes = Vec::new();
        for (name, run) in self.checks_of(endpoint) {
            outcomes.push((name, run().await));
        }
        outcomes
    }

    /// Runs one check.
    pub(crate) async fn run_one(&self, endpoint: Endpoint, name: &str) -> Option<Result<(), String>> {
        let (_, run) = self.checks_of(endpoint).into_iter().find(|(n, _)| n == name)?;
        Some(run().await)
    }

    /// Waits until every check of `/readyz` passes.
    pub(crate) async fn wait_until_ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives as long as this does.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Looks at the checks until they all pass once, then tells those who wait. Start-up only.
    pub(super) async fn watch_start(&self, feed: &Feed) {
        while !feed.synced() || self.run(Endpoint::Ready).await.iter().any(|(_, outcome)| outcome.is_err()) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        self.ready.send_replace(true);
    }
}

impl Default for Health {
    fn default() -> Self {
        Health::new()
    }
}
