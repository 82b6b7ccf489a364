//! The scheduling queue: pods that are to be tried now, pods that have to wait a little after a failure, and pods that
//! wait until something changes that may help them.
//!
//! It does not know the time: it is told. Invariants:
//! - A pod is in at most one of the parts, or with whoever popped it.
//! - A pod that plugins turned down is tried again only when one of these plugins says that a change may help, or after
//!   [`QueueConfig::max_in_unschedulable`].

mod heap;
mod hints;
mod parts;

pub(crate) use hints::is_scaled_down;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::framework::{Change, ClusterEvent};
use crate::metrics::Metrics;
use crate::pod::{PodInfo, Uid};
use crate::profiles::Profiles;
use heap::Keyed;
use parts::{Backoff, Waiting};

#[derive(Clone, Debug)]
pub struct QueueConfig {
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// After this long a pod is tried again though nothing happened that may help it.
    pub max_in_unschedulable: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        let (initial_backoff, max_backoff) = (Duration::from_secs(1), Duration::from_secs(10));
        Self { initial_backoff, max_backoff, max_in_unschedulable: Duration::from_secs(5 * 60) }
    }
}

/// A pod in the queue, with what happened to it so far.
#[derive(Clone, Debug)]
pub struct QueuedPod {
    pub pod: Arc<PodInfo>,
    /// When it entered the part of the queue that it is in.
    pub since: Instant,
    /// When it was first put among the pods to be tried.
    pub first_tried: Option<Instant>,
    /// How often it was tried.
    pub attempts: u32,
    /// How often it was found unschedulable, for the back-off.
    pub unschedulable_count: u32,
    /// How often in a row trying it failed, for the back-off.
    pub errors_in_a_row: u32,
    /// The plugins that turned it down when it was tried last.
    pub turned_down_by: BTreeSet<&'static str>,
    /// The plugin that keeps it out of the queue.
    pub gated_by: Option<&'static str>,
    /// It is tried only because its time among the unschedulable was over.
    pub flushed: bool,
    /// Events that the queue had seen when the pod was popped.
    events_seen: u64,
}

impl QueuedPod {
    fn new(pod: Arc<PodInfo>, now: Instant) -> Self {
        Self {
            pod,
            since: now,
            first_tried: None,
            attempts: 0,
            unschedulable_count: 0,
            errors_in_a_row: 0,
            turned_down_by: BTreeSet::new(),
            gated_by: None,
            flushed: false,
            events_seen: 0,
        }
    }
}

impl Keyed for QueuedPod {
    fn key(&self) -> &Uid {
        &self.pod.uid
    }
}

/// Where a pod was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Active,
    Backoff,
    Unschedulable,
    Gated,
}

impl Place {
    fn label(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Backoff => "backoff",
            Self::Unschedulable => "unschedulable",
            Self::Gated => "gated",
        }
    }
}

/// How many pods are in each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
    pub gated: usize,
}

pub struct Queue {
    config: QueueConfig,
    profiles: Arc<Profiles>,
    metrics: Arc<Metrics>,
    active: heap::Heap<QueuedPod>,
    backoff: Backoff,
    waiting: Waiting,
    /// Counts the changes that were told to [`Self::move_on`].
    events: u64,
}

const POD_ADD: &str = "PodAdd";
const POD_UPDATE: &str = "PodUpdate";
const ATTEMPT_FAILED: &str = "ScheduleAttemptFailure";
const BACKOFF_COMPLETE: &str = "BackoffComplete";
const TIMEOUT: &str = "UnschedulableTimeout";

impl Queue {
    pub(crate) fn new(config: QueueConfig, profiles: Arc<Profiles>, metrics: Arc<Metrics>, now: Instant) -> Self {
        let (backoff, waiting) = (Backoff::new(now), Waiting::default());
        Self { config, profiles, metrics, active: heap::Heap::default(), backoff, waiting, events: 0 }
    }

    /// A new pod.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        self.enter(QueuedPod::new(pod, now), POD_ADD, now);
    }

    /// The pod changed while it was in the queue; a pod that is not in it is added.
    pub fn update(&mut self, new: Arc<PodInfo>, now: Instant) {
        let uid = &new.uid;
        if let Some(queued) = self.active.get_mut(uid) {
            queued.pod = new;
        } else if let Some(queued) = self.backoff.get_mut(uid) {
            queued.pod = new;
        } else if let Some(mut queued) = self.waiting.remove(uid) {
            let old = std::mem::replace(&mut queued.pod, new.clone());
            let events = hints::events_of_update(&old, &new);
            let change = Change::UnscheduledPod { old: &old, new: &new };
            let helps = hints::any_helps(&self.profiles, &queued, &events, &change);
            if queued.gated_by.is_some() && self.is_gated(&queued.pod).is_some() {
                self.waiting.insert(queued);
            } else if queued.gated_by.is_some() || helps {
                self.leave_waiting(queued, POD_UPDATE, now);
            } else {
                self.waiting.insert(queued);
            }
        } else {
            self.add(new, now);
        }
    }

    /// The pod is gone, or on a node.
    pub fn remove(&mut self, uid: &Uid) -> Option<QueuedPod> {
        let sort = &*self.profiles.queue_sort;
        let active = self.active.remove(uid, |a, b| sort.before(a, b));
        active.or_else(|| self.backoff.remove(uid, sort)).or_else(|| self.waiting.remove(uid))
    }

    #[must_use]
    pub fn contains(&mut self, uid: &Uid) -> bool {
        self.active.get_mut(uid).is_some() || self.backoff.get_mut(uid).is_some() || self.waiting.contains(uid)
    }

    /// The pod to be tried next. When nothing else is to be done, a pod is not left to wait out its back-off.
    pub fn pop(&mut self, now: Instant) -> Option<QueuedPod> {
        self.flush(now);
        let sort = &*self.profiles.queue_sort;
        let queued = self.active.pop(|a, b| sort.before(a, b)).or_else(|| self.backoff.pop_early(sort))?;
        Some(self.popped(queued, now))
    }

    /// Takes this pod out of turn, wherever it waits; not one that is gated.
    pub fn take(&mut self, uid: &Uid, now: Instant) -> Option<QueuedPod> {
        let queued = self.remove(uid)?;
        if queued.gated_by.is_some() {
            self.waiting.insert(queued);
            return None;
        }
        Some(self.popped(queued, now))
    }

    fn popped(&self, mut queued: QueuedPod, now: Instant) -> QueuedPod {
        queued.first_tried.get_or_insert(now);
        queued.attempts += 1;
        queued.events_seen = self.events;
        queued
    }

    /// A popped pod that plugins turned down. It waits for a change that may help, or for its back-off if there were
    /// changes since it was popped.
    pub fn put_unschedulable(&mut self, mut queued: QueuedPod, by: BTreeSet<&'static str>, now: Instant) -> Place {
        queued.turned_down_by = by;
        queued.since = now;
        queued.flushed = false;
        queued.unschedulable_count += 1;
        queued.errors_in_a_row = 0;
        if queued.events_seen != self.events {
            return self.put_backoff(queued, ATTEMPT_FAILED, now);
        }
        self.count_entry(Place::Unschedulable, ATTEMPT_FAILED);
        self.waiting.insert(queued);
        Place::Unschedulable
    }

    /// A popped pod that could not be tried because something failed. It waits for its back-off.
    pub fn put_failed(&mut self, mut queued: QueuedPod, now: Instant) -> Place {
        queued.turned_down_by.clear();
        queued.since = now;
        queued.flushed = false;
        queued.errors_in_a_row += 1;
        self.put_backoff(queued, ATTEMPT_FAILED, now)
    }

    /// Something happened in the cluster: pods that it may help are tried again.
    pub fn move_on(&mut self, event: ClusterEvent, change: &Change<'_>, now: Instant) {
        self.events += 1;
        let helped = self.waiting.helped(&self.profiles, event, change);
        if helped.is_empty() {
            return;
        }
        let label = event.label();
        for uid in helped {
            if let Some(queued) = self.waiting.remove(&uid) {
                self.leave_waiting(queued, &label, now);
            }
        }
    }

    /// Moves on what has waited long enough.
    pub fn flush(&mut self, now: Instant) {
        let profiles = self.profiles.clone();
        while let Some(queued) = self.backoff.pop_complete(now, &*profiles.queue_sort) {
            self.put_active(queued, BACKOFF_COMPLETE, now);
        }
        for uid in self.waiting.overdue(now, self.config.max_in_unschedulable) {
            if let Some(mut queued) = self.waiting.remove(&uid) {
                queued.flushed = true;
                self.leave_waiting(queued, TIMEOUT, now);
            }
        }
    }

    /// When [`Self::flush`] has something to do next.
    #[must_use]
    pub fn next_flush(&self) -> Option<Instant> {
        let overdue = self.waiting.oldest().map(|since| since + self.config.max_in_unschedulable);
        [self.backoff.next_complete(), overdue].into_iter().flatten().min()
    }

    #[must_use]
    pub fn depths(&self) -> Depths {
        let (unschedulable, gated) = self.waiting.len();
        Depths { active: self.active.len(), backoff: self.backoff.len(), unschedulable, gated }
    }

    /// How many pods of a profile wait because of each plugin.
    pub(crate) fn turned_down(&self, scheduler_name: &str) -> impl Iterator<Item = (&'static str, usize)> {
        self.waiting.by_plugin(scheduler_name)
    }

    /// Tries a pod that waits for a change again, after its back-off.
    pub fn retry(&mut self, uid: &Uid, now: Instant) {
        if let Some(queued) = self.waiting.remove(uid) {
            self.leave_waiting(queued, ATTEMPT_FAILED, now);
        }
    }

    fn is_gated(&self, pod: &PodInfo) -> Option<&'static str> {
        let profile = self.profiles.of(pod)?;
        profile.pre_enqueue.iter().find(|plugin| plugin.pre_enqueue(pod).is_err()).map(|plugin| plugin.name())
    }

    fn enter(&mut self, mut queued: QueuedPod, event: &str, now: Instant) -> Place {
        queued.gated_by = self.is_gated(&queued.pod);
        queued.since = now;
        if let Some(plugin) = queued.gated_by {
            queued.turned_down_by = BTreeSet::from([plugin]);
            self.count_entry(Place::Gated, event);
            self.waiting.insert(queued);
            return Place::Gated;
        }
        self.put_active(queued, event, now)
    }

    fn leave_waiting(&mut self, queued: QueuedPod, event: &str, now: Instant) -> Place {
        if queued.gated_by.is_some() || self.backoff_end(&queued) <= now {
            self.enter(queued, event, now)
        } else {
            self.put_backoff(queued, event, now)
        }
    }

    fn put_active(&mut self, queued: QueuedPod, event: &str, now: Instant) -> Place {
        let mut queued = QueuedPod { gated_by: None, since: now, ..queued };
        queued.first_tried.get_or_insert(now);
        self.count_entry(Place::Active, event);
        let sort = &*self.profiles.queue_sort;
        self.active.push(queued, |a, b| sort.before(a, b));
        Place::Active
    }

    fn put_backoff(&mut self, queued: QueuedPod, event: &str, now: Instant) -> Place {
        let end = self.backoff_end(&queued);
        if end <= now {
            return self.enter(queued, event, now);
        }
        self.count_entry(Place::Backoff, event);
        self.backoff.push(queued, end, &*self.profiles.queue_sort);
        Place::Backoff
    }

    /// The back-off doubles with every failure, counted from when the pod failed last.
    fn backoff_end(&self, queued: &QueuedPod) -> Instant {
        let failures = if queued.errors_in_a_row > 0 { queued.errors_in_a_row } else { queued.unschedulable_count };
        let Some(doublings) = failures.checked_sub(1) else { return queued.since };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        queued.since + self.config.initial_backoff.saturating_mul(factor).min(self.config.max_backoff)
    }

    fn count_entry(&self, place: Place, event: &str) {
        self.metrics.queued(place.label(), event);
    }
}
