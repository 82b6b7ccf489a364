//! Graceful node shutdown (KEP-2000, KEP-2712): logind is asked to hold a shutdown up, and meanwhile the node's pods end, those
//! of low priority first.

mod logind;
mod plan;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::events::reference;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::pod::admission::Refusal;
use crate::pod::status::Doom;
pub(crate) use logind::Logind;
pub use plan::Shutdown;
use plan::{Group, groups};

/// After logind has gone or did not answer, it is asked again.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// How soon it is seen that the last pod of a group has ended.
const LOOK: Duration = Duration::from_millis(200);
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// Whether the node shuts down.
#[derive(Default)]
pub(crate) struct ShuttingDown(AtomicBool);

impl ShuttingDown {
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.is_on().then(|| Refusal {
            reason: "NodeShutdown".to_owned(),
            message: "Pod was rejected as the node is shutting down.".to_owned(),
        })
    }
}

/// Holds shutdowns up until `stop`, where any time is given to pods.
pub(crate) async fn watch(context: Arc<Context>, shutdown: Shutdown, logind: Logind, stop: CancellationToken) {
    if shutdown.total().is_zero() {
        return;
    }
    let mut pause = RETRY;
    let mut is_told = false;
    loop {
        let failed = match stop.run_until_cancelled(follow(&context, &shutdown, &logind)).await {
            None => return,
            Some(Ok(())) => {
                (pause, is_told) = (RETRY, false);
                "the watch has ended".to_owned()
            }
            Some(Err(error)) => error,
        };
        if !is_told {
            tracing::warn!(error = failed, "shutdowns of this node cannot be held up");
            is_told = true;
        }
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

async fn follow(context: &Context, shutdown: &Shutdown, logind: &Logind) -> Result<(), String> {
    logind.allow(shutdown.total()).await?;
    let mut signals = logind.signals()?;
    let mut lock = Some(logind.hold().await?);
    while let Some(is_on) = signals.next().await {
        context.shutting_down.0.store(is_on, Ordering::Relaxed);
        context.pressures_changed.notify_one();
        let text = if is_on { "shutdown event" } else { "shutdown cancellation" };
        if let Some(node) = context.node() {
            context.events.normal(&reference(&*node), "NodeShutdown", format!("Shutdown manager detected {text}"));
        }
        if is_on {
            tracing::info!("the node shuts down: its pods end first");
            end_all(context, shutdown).await;
            lock = None; // now the node may go
        } else if lock.is_none() {
            lock = Some(logind.hold().await?);
        }
    }
    Ok(())
}

/// One group after the other, each in its time.
async fn end_all(context: &Context, shutdown: &Shutdown) {
    for Group { period, pods } in groups(shutdown, context.admitted.all()) {
        if pods.is_empty() {
            continue;
        }
        for pod in &pods {
            let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
            let given = i64::try_from(period.as_secs()).unwrap_or(i64::MAX);
            let doom = Doom {
                reason: "Terminated".to_owned(),
                message: MESSAGE.to_owned(),
                grace: Some(own.min(given)),
                disruption: true,
            };
            context.dooms.add(pod.metadata.uid.as_deref().unwrap_or_default(), doom);
        }
        let ended = async {
            while !pods.iter().all(|pod| has_ended(context, pod)) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(period, ended).await.is_err() {
            tracing::warn!(seconds = period.as_secs(), "pods have not ended in their time");
        }
    }
}

fn has_ended(context: &Context, pod: &Pod) -> bool {
    let status = context.statuses.current(pod.metadata.uid.as_deref().unwrap_or_default());
    status.is_none_or(|s| s.phase.is_some_and(|phase| phase == "Failed" || phase == "Succeeded"))
}

#[cfg(test)]
mod tests;
