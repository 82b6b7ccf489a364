//! The scheduler itself: what is known, what is queued, and the step from one to a decision. It does no I/O: it is told of
//! changes and of what became of its decisions, and says what is to be done.
//!
//! Invariants:
//! - A pod that this scheduler is responsible for is in the queue, or assumed on a node while it is bound, or on a node.
//! - A decision is made from everything that was told before it.

mod binding;
mod changes;
mod groups;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

pub(crate) use binding::{BindJob, Bound};
pub(crate) use changes::Changed;
pub(crate) use groups::{GroupReport, POD_GROUP_SCHEDULED};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::cycle::{Attempt, Choice, Classes, Cycle, Diagnosis, Failure, PostFilterOutcome};
use crate::extender::Extender;
use crate::framework::{PluginContext, Profile, Rejection};
use crate::metrics::{AttemptResult, Metrics};
use crate::pod::{PodInfo, Uid};
use crate::profiles::Profiles;
use crate::queue::{Queue, QueuedPod};

/// What is to be done after a step.
pub(crate) enum Step {
    /// No pod is to be tried now.
    Idle,
    /// Bind the pod, and tell what became of it with [`Scheduler::finish`].
    Bind(Box<BindJob>),
    /// Tell the pod's users.
    Failed(Box<Report>),
    /// Tell the users of a group of pods.
    Group(Box<GroupReport>),
    /// The pod needs nothing more.
    Done,
}

/// What users are told of a pod that was not scheduled.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) pod: Arc<PodInfo>,
    /// [`UNSCHEDULABLE`] or [`SCHEDULER_ERROR`].
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) nomination: Nomination,
    /// Less important pods whose nomination for the same node is void now.
    pub(crate) displaced: Vec<Arc<PodInfo>>,
}

/// What becomes of the pod's nominated node.
#[derive(Debug)]
pub(crate) enum Nomination {
    Keep,
    Clear,
    /// These pods have to make room on the node.
    Node {
        node: String,
        victims: Vec<Arc<PodInfo>>,
    },
}

pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";
pub(crate) const SCHEDULER_ERROR: &str = "SchedulerError";

/// Why there is no decision.
enum Undecided {
    /// No node can take the pod now.
    Unfit(Box<Diagnosis>, Nomination),
    Error(String),
}

impl From<Failure> for Undecided {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoNodes => Self::Unfit(Box::default(), Nomination::Clear),
            Failure::Error(error) => Self::Error(error),
        }
    }
}

pub(crate) struct Scheduler {
    cluster: Cluster,
    queue: Queue,
    profiles: Arc<Profiles>,
    extenders: Vec<Extender>,
    classes: Classes,
    /// Unscheduled pods that we are responsible for, as they are now.
    pending: HashMap<Uid, Arc<PodInfo>>,
    context: PluginContext,
    metrics: Arc<Metrics>,
    /// Where to begin when not all nodes are wanted.
    rotation: usize,
    /// The gang whose pods are being tried, if that is so.
    pass: Option<groups::Pass>,
}

impl Scheduler {
    /// Makes the plugins that the configuration enables.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration of plugins.
    pub(crate) fn new(
        config: &Config,
        context: PluginContext,
        metrics: Arc<Metrics>,
        now: Instant,
    ) -> Result<Self, Vec<String>> {
        let profiles = Arc::new(Profiles::build(&config.profiles, &config.registry, &context)?);
        let extenders = config.extenders.iter().map(Extender::start).collect::<Result<Vec<_>, _>>();
        let extenders = extenders.map_err(|error| vec![format!("an extender cannot be asked: {error}")])?;
        let queue = Queue::new(config.queue.clone(), profiles.clone(), metrics.clone(), now);
        Ok(Self {
            cluster: Cluster::default(),
            queue,
            profiles,
            extenders,
            classes: Classes::default(),
            pending: HashMap::new(),
            context,
            metrics,
            rotation: 0,
            pass: None,
        })
    }

    pub(crate) fn profiles(&self) -> &Arc<Profiles> {
        &self.profiles
    }

    #[must_use]
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    #[must_use]
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Moves on the pods that have waited long enough.
    pub(crate) fn flush(&mut self, now: Instant) {
        self.queue.flush(now);
    }

    /// Tries the next pod of the queue.
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        let queued = match self.next_of_pass(now) {
            Some(groups::Next::Pod(queued)) => queued,
            Some(groups::Next::Over(report)) => {
                return report.map_or(Step::Done, |report| Step::Group(Box::new(report)));
            }
            None => {
                let Some(queued) = self.queue.pop(now) else { return Step::Idle };
                self.begin_pass(&queued.pod);
                queued
            }
        };
        let profiles = self.profiles.clone();
        let Some((profile_at, profile)) = profiles.find(queued.pod.scheduler_name()) else { return Step::Done };
        if queued.pod.is_terminating() {
            // Nothing but its deletion is to come.
            tracing::debug!(pod = %queued.pod.key, "a pod that is being deleted is not scheduled");
            return Step::Done;
        }
        let began = Instant::now();
        let decision = self.decide(profile_at, profile, &queued.pod);
        self.metrics.decided(began.elapsed());
        match decision {
            Ok(choice) => self.reserve(profile, queued, choice, began, now),
            Err(Undecided::Error(error)) => {
                tracing::error!(pod = %queued.pod.key, error, "a pod could not be scheduled because something failed");
                self.metrics.attempt(AttemptResult::Error, &profile.scheduler_name, began.elapsed());
                let pod = queued.pod.clone();
                self.queue.put_failed(queued, now);
                let nomination = Nomination::Keep;
                Step::Failed(Box::new(Report {
                    pod,
                    reason: SCHEDULER_ERROR,
                    message: error,
                    nomination,
                    displaced: Vec::new(),
                }))
            }
            Err(Undecided::Unfit(diagnosis, nomination)) => {
                tracing::debug!(pod = %queued.pod.key, %diagnosis, "no node can take a pod");
                self.metrics.attempt(AttemptResult::Unschedulable, &profile.scheduler_name, began.elapsed());
                let message = diagnosis.to_string();
                self.failed_in_pass(&message);
                Step::Failed(Box::new(self.put_back(queued, diagnosis.plugins, message, nomination, now)))
            }
        }
    }

    /// Which node the pod is to go to.
    fn decide(&mut self, profile_at: usize, profile: &Profile, pod: &Arc<PodInfo>) -> Result<Choice, Undecided> {
        let mut cycle = Cycle::start(profile_at, profile, pod, &mut self.cluster, &mut self.classes)?;
        let mut feasible = cycle.filter(&mut self.rotation)?;
        let extenders = self.extenders.iter().filter(|extender| extender.is_interested(pod));
        let extenders: Vec<Extender> = extenders.cloned().collect();
        if !cycle.is_empty(&feasible) && !extenders.is_empty() {
            feasible = cycle.filter_by(&extenders, feasible)?;
        }
        if !cycle.is_empty(&feasible) {
            let mut random = |bound: usize| rand::random_range(0..bound);
            let extra = cycle.scores_of(&extenders, &feasible);
            let choice = cycle.choose(&feasible, extra.as_deref(), &mut random)?;
            return choice.ok_or_else(|| Undecided::Error("none of the nodes that can do was chosen".to_owned()));
        }
        let mut diagnosis = cycle.diagnose();
        let mut attempt = Attempt::new(cycle, &self.extenders);
        let mut nomination = Nomination::Keep;
        if !profile.post_filters.is_empty() {
            self.metrics.preemption_tried();
        }
        for plugin in &profile.post_filters {
            let began = Instant::now();
            let outcome = plugin.post_filter(&mut attempt);
            self.metrics.point("PostFilter", "Success", &profile.scheduler_name, began.elapsed());
            match outcome {
                PostFilterOutcome::Nominate { node, victims } => {
                    self.metrics.preempted(victims.len());
                    diagnosis.after_filters.clear();
                    nomination = Nomination::Node { node, victims };
                    break;
                }
                PostFilterOutcome::Unschedulable(message) => {
                    diagnosis.after_filters.push(message);
                    nomination = Nomination::Clear;
                }
                PostFilterOutcome::Nothing(message) => diagnosis.after_filters.push(message),
                PostFilterOutcome::Error(error) => {
                    tracing::error!(pod = %pod.key, error, "room could not be made for a pod");
                    diagnosis.after_filters = vec![error];
                    break;
                }
            }
        }
        Err(Undecided::Unfit(Box::new(diagnosis), nomination))
    }

    /// Puts a pod that plugins turned down back into the queue, and says what is told of it.
    fn put_back(
        &mut self,
        queued: QueuedPod,
        plugins: BTreeSet<&'static str>,
        message: String,
        nomination: Nomination,
        now: Instant,
    ) -> Report {
        let pod = queued.pod.clone();
        let (mut nomination, mut displaced) = (nomination, Vec::new());
        match &mut nomination {
            Nomination::Keep => {}
            Nomination::Clear => drop(self.cluster.nominations.remove(&pod.uid)),
            Nomination::Node { node, victims } => {
                let others = self.cluster.nominations.on(node).iter();
                displaced.extend(others.filter(|other| other.priority < pod.priority).cloned());
                for other in &displaced {
                    self.cluster.nominations.remove(&other.uid);
                }
                // A pod that only waits for its binding is turned away; nothing of it runs yet.
                let preempted = || Rejection::unschedulable("preempted");
                let waiting = &self.context.waiting_pods;
                victims.retain(|victim| !waiting.reject(&victim.uid, "DefaultPreemption", preempted()));
                self.cluster.nominate(pod.clone(), node);
            }
        }
        self.queue.put_unschedulable(queued, plugins, now);
        Report { pod, reason: UNSCHEDULABLE, message, nomination, displaced }
    }

    /// Takes over the sizes of queue and cache into the metrics.
    pub(crate) fn measure(&self) {
        let (pods, assumed) = self.cluster.pods();
        self.metrics.sizes(self.queue.depths(), self.cluster.nodes().len(), pods, assumed);
        for profile in self.profiles.iter() {
            let none = profile.plugins.keys().map(|plugin| (*plugin, 0));
            let counts: HashMap<_, _> = none.chain(self.queue.turned_down(&profile.scheduler_name)).collect();
            self.metrics.turned_down(&profile.scheduler_name, counts);
        }
    }
}
