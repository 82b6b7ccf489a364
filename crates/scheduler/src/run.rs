//! Starts the scheduler: informers in, decisions and reports out.

use std::sync::Arc;
use std::time::Duration;

use client::delegation;
use client::informer::{Event, Kind, SharedInformerFactory, trim_pod};
use client::leader_election::{self, LeaderMetrics, Outcome};
use component_base::metrics;
use component_base::serving::Endpoints;
use futures::future::BoxFuture;
use kube::Client;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::framework::{PluginContext, WaitingPods};
use crate::gangs::Gangs;
use crate::listers::Listers;
use crate::metrics::Metrics;
use crate::plugins::GANG_SCHEDULING;
use crate::pod::Uid;
use crate::report::Reporter;
use crate::scheduler::{BindJob, Bound, Changed, Scheduler, Step};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", .0.join("; "))]
    Plugins(Vec<String>),
    #[error("secure port")]
    Serving(#[from] delegation::Error),
    #[error("leaderelection lost")]
    LeaderElectionLost,
}

pub(crate) const COMPONENT: &str = "kube-scheduler";

/// Bindings that are asked for at once.
const BINDINGS_AT_ONCE: usize = 64;
/// Decisions between two looks at what else is going on.
const DECISIONS_IN_A_ROW: usize = 64;
/// How often the sizes of queue and cache are measured while there is always something to decide.
const MEASURED_EVERY: Duration = Duration::from_secs(1);

/// Schedules pods until `stop`, or until leadership is lost. `client` acts as the scheduler.
///
/// # Errors
/// When the plugins cannot be made, nothing can be served, or another instance leads.
pub fn run(config: Config, client: Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(elect_and_run(config, client, stop))
}

async fn elect_and_run(config: Config, client: Client, stop: CancellationToken) -> Result<(), Error> {
    let registry = metrics::Metrics::new();
    if let Some(port) = &config.serving {
        let mut endpoints = Endpoints::new(COMPONENT, registry.clone());
        endpoints.configz.clone_from(&config.shown);
        endpoints.flags.clone_from(&config.flags);
        delegation::serve(port, &client, endpoints, stop.clone()).await?;
    }
    let metrics = Arc::new(registry.register(Metrics::register));
    let Some(lease) = &config.leader_election else {
        return schedule(&config, client, metrics, stop).await;
    };
    let recorder =
        client::events::Recorder::start(client.clone(), client::events::Dialect::Core, COMPONENT, "", stop.clone());
    let leads = registry.register(LeaderMetrics::register);
    leads.set(lease, false);
    let mut result = Ok(());
    let outcome = leader_election::run(&client, lease, Some(&recorder), stop, |leadership| {
        let (config, result) = (&config, &mut result);
        leads.set(lease, true);
        async move { *result = schedule(config, leadership.client, metrics, leadership.over).await }
    })
    .await;
    leads.set(lease, false);
    match outcome {
        Outcome::Lost => Err(Error::LeaderElectionLost),
        Outcome::Stopped | Outcome::Finished => result,
    }
}

/// What came of work that was done beside the decisions.
pub(crate) enum Outcomes {
    Bound(Bound),
    PreemptionFailed(Uid),
}

async fn schedule(
    config: &Config,
    client: Client,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), Error> {
    // Everything of this term ends with it.
    let term = stop.child_token();
    let _ended = term.clone().drop_guard();
    let informers = SharedInformerFactory::new(client.clone(), term.clone());
    // Extenders are shown whole pods.
    if config.extenders.is_empty() {
        informers.trim(trim_pod);
    }
    let (changes, mut changes_of_objects) = mpsc::unbounded_channel();
    let notify = move |change| {
        // Without a receiver the term is over.
        let _ = changes.send(change);
    };
    let context = PluginContext {
        client: Some(client.clone()),
        listers: Listers::watch(&informers, config.feature_gates.enabled(GANG_SCHEDULING), notify),
        waiting_pods: WaitingPods::default(),
        gangs: Gangs::default(),
        feature_gates: config.feature_gates.clone(),
    };
    let mut scheduler = Scheduler::new(config, context, metrics.clone(), Instant::now()).map_err(Error::Plugins)?;
    let mut namespaces = informers.informer().subscribe();
    let mut nodes = informers.informer().subscribe();
    let mut pods = informers.informer().subscribe();
    if !informers.synced().await {
        return Ok(());
    }
    let (outcomes, mut done) = mpsc::unbounded_channel();
    let work = Arc::new(Work {
        reporter: Reporter::start(&client, scheduler.profiles(), &term),
        slots: Semaphore::new(BINDINGS_AT_ONCE),
        metrics,
        outcomes,
        term: term.clone(),
    });
    let mut measured = Instant::now();
    loop {
        let now = Instant::now();
        while let Ok(outcome) = done.try_recv() {
            work.finish(&mut scheduler, outcome, now);
        }
        while let Some(event) = namespaces.try_next() {
            scheduler.namespace_changed(changed(event));
        }
        while let Some(event) = nodes.try_next() {
            scheduler.node_changed(changed(event), now);
        }
        while let Some(event) = pods.try_next() {
            scheduler.pod_changed(changed(event), now);
        }
        while let Ok(change) = changes_of_objects.try_recv() {
            scheduler.object_changed(&change, now);
        }
        scheduler.flush(now);
        let idle = (0..DECISIONS_IN_A_ROW).any(|_| !work.take(scheduler.step(Instant::now())));
        if !idle {
            if measured.elapsed() > MEASURED_EVERY {
                scheduler.measure();
                measured = Instant::now();
            }
            tokio::task::yield_now().await;
            continue;
        }
        scheduler.measure();
        let flush = scheduler.queue().next_flush();
        let now = tokio::select! {
            () = term.cancelled() => return Ok(()),
            outcome = done.recv() => {
                outcome.into_iter().for_each(|outcome| work.finish(&mut scheduler, outcome, Instant::now()));
                continue;
            }
            event = namespaces.next() => { scheduler.namespace_changed(changed(event)); continue }
            event = nodes.next() => { scheduler.node_changed(changed(event), Instant::now()); continue }
            event = pods.next() => { scheduler.pod_changed(changed(event), Instant::now()); continue }
            Some(change) = changes_of_objects.recv() => { scheduler.object_changed(&change, Instant::now()); continue }
            () = tokio::time::sleep_until(flush.unwrap_or(now)), if flush.is_some() => Instant::now(),
        };
        scheduler.flush(now);
    }
}

fn changed<K: Kind>(event: Event<K>) -> Changed<K> {
    match event {
        Event::Added(new) => (None, Some(new)),
        Event::Updated { old, new } => (Some(old), Some(new)),
        Event::Deleted(old) => (Some(old), None),
    }
}

/// What is done beside the decisions.
struct Work {
    reporter: Reporter,
    slots: Semaphore,
    metrics: Arc<Metrics>,
    outcomes: mpsc::UnboundedSender<Outcomes>,
    term: CancellationToken,
}

impl Work {
    /// Does what a step asks for; whether there was one.
    fn take(self: &Arc<Self>, step: Step) -> bool {
        match step {
            Step::Idle => return false,
            Step::Done => {}
            Step::Failed(report) => self.reporter.failed(*report, &self.outcomes),
            Step::Group(report) => self.reporter.group(*report),
            Step::Bind(job) => self.bind(job),
        }
        true
    }

    fn bind(self: &Arc<Self>, job: Box<BindJob>) {
        let work = self.clone();
        tokio::spawn(async move {
            work.metrics.binding(true);
            let bound = work.term.run_until_cancelled(job.run(&work.slots, &work.metrics)).await;
            work.metrics.binding(false);
            if let Some(bound) = bound {
                // Without a receiver the term is over.
                let _ = work.outcomes.send(Outcomes::Bound(bound));
            }
        });
    }

    fn finish(&self, scheduler: &mut Scheduler, outcome: Outcomes, now: Instant) {
        match outcome {
            Outcomes::Bound(bound) => {
                if bound.result.is_ok() {
                    self.reporter.bound(&bound.job);
                }
                if let Some(report) = scheduler.finish(bound, now) {
                    self.reporter.failed(report, &self.outcomes);
                }
            }
            Outcomes::PreemptionFailed(uid) => scheduler.preemption_failed(&uid, now),
        }
    }
}
