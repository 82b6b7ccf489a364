//! From a chosen node to a bound pod: reserve and permit here, the rest is a [`BindJob`] to be run beside further
//! decisions, and what became of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Nomination, Report, SCHEDULER_ERROR, Scheduler, Step};
use crate::cycle::Choice;
use crate::extender::Extender;
use crate::framework::erased::{AnyBind, AnyPostBind, AnyPreBind, AnyReserve, Held};
use crate::framework::waiting::Wait;
use crate::framework::{
    Actions, BindStatus, Change, ClusterEvent, EventResource, PermitStatus, Profile, Rejection, WaitingPods,
};
use crate::metrics::{AttemptResult, Metrics};
use crate::pod::PodInfo;
use crate::queue::QueuedPod;

/// Everything that binding a pod takes.
pub(crate) struct BindJob {
    pub(crate) queued: QueuedPod,
    pub(crate) node: Arc<str>,
    pub(crate) scheduler_name: String,
    held: Vec<(Arc<dyn AnyReserve>, Held)>,
    wait: Option<Wait>,
    pre_binds: Vec<Arc<dyn AnyPreBind>>,
    binds: Vec<Arc<dyn AnyBind>>,
    post_binds: Vec<Arc<dyn AnyPostBind>>,
    /// Binds instead of the plugins.
    extender: Option<Extender>,
    waiting_pods: WaitingPods,
    began: Instant,
}

/// Why a pod was not bound.
#[derive(Debug)]
pub(crate) struct Unbound {
    /// The plugin that turned it down; `None`: something failed.
    plugin: Option<&'static str>,
    message: String,
}

/// A job that ended.
pub(crate) struct Bound {
    pub(crate) job: Box<BindJob>,
    pub(crate) result: Result<(), Unbound>,
}

impl BindJob {
    pub(crate) fn pod(&self) -> &Arc<PodInfo> {
        &self.queued.pod
    }

    /// Waits until the pod is permitted, prepares, binds. `slot` is taken while the API server is asked, so that not too
    /// many ask at once.
    pub(crate) async fn run(mut self: Box<Self>, slots: &tokio::sync::Semaphore, metrics: &Metrics) -> Bound {
        let result = self.bind(slots, metrics).await;
        self.waiting_pods.remove(&self.queued.pod.uid);
        Bound { job: self, result }
    }

    async fn bind(&mut self, slots: &tokio::sync::Semaphore, metrics: &Metrics) -> Result<(), Unbound> {
        if let Some(wait) = self.wait.take() {
            let began = Instant::now();
            let verdict = wait.verdict().await;
            metrics.permit_waited(verdict.is_ok(), began.elapsed());
            verdict.map_err(|(plugin, rejection)| Unbound::by(plugin, &rejection))?;
        }
        let pod = &*self.queued.pod;
        for plugin in &self.pre_binds {
            let held = self.held.iter().find(|(own, _)| own.name() == plugin.name()).map(|(_, held)| held);
            let done = plugin.prebind(held, pod, &self.node).await;
            done.map_err(|rejection| Unbound::by(plugin.name(), &rejection))?;
        }
        // The semaphore is never closed.
        let _slot = slots.acquire().await;
        let began = Instant::now();
        if let Some(extender) = &self.extender {
            return extender.bind(pod, &self.node).await.map_err(|message| Unbound { plugin: None, message });
        }
        for plugin in &self.binds {
            match plugin.bind(pod, &self.node).await {
                BindStatus::Skip => {}
                BindStatus::Bound => {
                    metrics.point("Bind", "Success", &self.scheduler_name, began.elapsed());
                    for plugin in &self.post_binds {
                        plugin.postbind(pod, &self.node);
                    }
                    return Ok(());
                }
                BindStatus::Error(error) => {
                    metrics.point("Bind", "Error", &self.scheduler_name, began.elapsed());
                    return Err(Unbound {
                        plugin: None,
                        message: format!("running Bind plugin {:?}: {error}", plugin.name()),
                    });
                }
            }
        }
        Err(Unbound { plugin: None, message: "no Bind plugin was for the pod".to_owned() })
    }
}

impl Unbound {
    fn by(plugin: &'static str, rejection: &Rejection) -> Self {
        let plugin = (!matches!(rejection, Rejection::Error(_))).then_some(plugin);
        Self { plugin, message: rejection.message() }
    }
}

impl Scheduler {
    /// Assumes the pod on the node, and asks the plugins that have a say in it.
    pub(super) fn reserve(
        &mut self,
        profile: &Profile,
        queued: QueuedPod,
        choice: Choice,
        began: Instant,
        now: Instant,
    ) -> Step {
        let pod = queued.pod.clone();
        let Some(node) = self.cluster.nodes().get(choice.node).map(|node| node.name().clone()) else {
            self.queue.put_failed(queued, now);
            return Step::Done;
        };
        tracing::debug!(pod = %pod.key, node = &*node, feasible = choice.feasible, "a node was chosen");
        self.cluster.assume(pod.clone(), choice.node);
        self.cluster.nominations.remove(&pod.uid);
        let mut job = Box::new(BindJob {
            queued,
            node,
            scheduler_name: profile.scheduler_name.clone(),
            held: Vec::new(),
            wait: None,
            pre_binds: profile.pre_binds.clone(),
            binds: profile.binds.clone(),
            post_binds: profile.post_binds.clone(),
            extender: self.extenders.iter().find(|own| own.binds() && own.is_interested(&pod)).cloned(),
            waiting_pods: self.context.waiting_pods.clone(),
            began,
        });
        match self.permit(profile, &mut job) {
            Ok(()) => Step::Bind(job),
            Err(unbound) => {
                self.failed_in_pass(&unbound.message);
                match self.finish(Bound { job, result: Err(unbound) }, now) {
                    Some(report) => Step::Failed(Box::new(report)),
                    None => Step::Done,
                }
            }
        }
    }

    fn permit(&mut self, profile: &Profile, job: &mut BindJob) -> Result<(), Unbound> {
        let pod = job.queued.pod.clone();
        for plugin in &profile.reserves {
            let Some(node) = self.cluster.nodes().find(&job.node) else { break };
            let held = plugin.reserve(&pod, node).map_err(|rejection| Unbound::by(plugin.name(), &rejection))?;
            job.held.push((plugin.clone(), held));
        }
        let mut waits: Vec<(&'static str, Duration)> = Vec::new();
        for plugin in &profile.permits {
            match plugin.permit(&pod, &job.node) {
                PermitStatus::Allow => {}
                PermitStatus::Wait(at_most) => waits.push((plugin.name(), at_most)),
                PermitStatus::Reject(rejection) => return Err(Unbound::by(plugin.name(), &rejection)),
            }
        }
        if !waits.is_empty() {
            job.wait = Some(self.context.waiting_pods.add(pod, &job.node, waits));
        }
        Ok(())
    }

    /// Takes over what became of a job, and says what is told of it.
    pub(crate) fn finish(&mut self, bound: Bound, now: Instant) -> Option<Report> {
        let Bound { job, result } = bound;
        let took = job.began.elapsed();
        let unbound = match result {
            Ok(()) => {
                self.metrics.attempt(AttemptResult::Scheduled, &job.scheduler_name, took);
                let waited = now.saturating_duration_since(job.queued.first_tried.unwrap_or(now));
                self.metrics.bound(job.queued.attempts, waited, job.queued.flushed);
                return None;
            }
            Err(unbound) => unbound,
        };
        for (plugin, held) in job.held.iter().rev() {
            plugin.unreserve(held, &job.queued.pod, &job.node);
        }
        let mut queued = job.queued;
        if let Some(gone) = self.cluster.forget(&queued.pod.uid) {
            // Others may fit now where it was to go.
            let event = ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE);
            self.queue.move_on(event, &Change::AssignedPod { old: Some(&gone), new: None }, now);
        }
        let result = if unbound.plugin.is_some() { AttemptResult::Unschedulable } else { AttemptResult::Error };
        self.metrics.attempt(result, &job.scheduler_name, took);
        // A pod that is gone or on a node by now is nobody's business any more.
        queued.pod = self.pending.get(&queued.pod.uid)?.clone();
        if let Some(plugin) = unbound.plugin {
            let plugins = BTreeSet::from([plugin]);
            return Some(self.put_back(queued, plugins, unbound.message, Nomination::Keep, now));
        }
        tracing::warn!(pod = %queued.pod.key, node = &*job.node, error = unbound.message, "a pod could not be bound");
        let (pod, message) = (queued.pod.clone(), unbound.message);
        self.queue.put_failed(queued, now);
        Some(Report { pod, reason: SCHEDULER_ERROR, message, nomination: Nomination::Keep, displaced: Vec::new() })
    }
}
