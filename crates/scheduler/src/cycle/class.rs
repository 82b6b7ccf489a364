//! Classes of pods: pods that are the same to every plugin that signs them share verdicts and scores, one column over the
//! nodes each. When a pod of a class is to be scheduled, only the nodes that changed since the last one are looked at
//! again, so that identical pods cost the same however many nodes there are to evaluate.

use std::collections::HashMap;

use crate::cluster::{Cluster, Mark, NodeIdx, NodeRef};
use crate::framework::erased::{RunningFilter, RunningScore};
use crate::framework::{FilterStatus, Normalize, PreFilter, PreScore, Profile, Rejection, Reuse, Signature};
use crate::pod::PodInfo;

/// The classes of all profiles.
#[derive(Default)]
pub(crate) struct Classes {
    classes: HashMap<Box<[u8]>, Class>,
    clock: u64,
    scratch: Signature,
}

/// Classes that are kept; beyond, the half that was not used for longest goes. A class over 5,000 nodes takes some
/// 300 KiB.
const KEPT: usize = 64;

pub(crate) struct Class {
    used: u64,
    seen: Mark,
    epoch: u64,
    pub(super) rejected: Option<(&'static str, Rejection)>,
    /// By the filters' places in the profile.
    pub(super) filters: Vec<(usize, Box<dyn RunningFilter>)>,
    /// Which of the profile's filters and scores the class answers for.
    pub(super) kept_filters: Vec<bool>,
    pub(super) kept_scores: Vec<bool>,
    /// The only nodes that can do, by name.
    pub(super) only: Vec<(&'static str, Vec<String>)>,
    pub(super) verdicts: Verdicts,
    pub(super) scores: Vec<ScoreColumn>,
    /// The weighted sum of the scores, over all feasible nodes; [`INFEASIBLE`] for the others.
    pub(super) totals: Vec<i64>,
    /// A plugin failed while the class was worked out.
    pub(super) failed: Option<String>,
}

pub(super) const INFEASIBLE: i64 = -1;

/// One plugin's scores before they are normalized.
pub(super) struct ScoreColumn {
    pub(super) weight: i64,
    pub(super) normalize: Normalize,
    running: Box<dyn RunningScore>,
    pub(super) raw: Vec<i64>,
    /// The highest of the feasible nodes, as of the last time that `totals` was worked out.
    highest: i64,
    /// How many feasible nodes have a score that is not zero: when none has, the highest is known.
    not_zero: usize,
}

/// What the filters of a class say about each node.
#[derive(Default)]
pub(super) struct Verdicts {
    /// [`ABSENT`], [`FEASIBLE`], or a place in `rejections` from [`FIRST_REJECTION`] on.
    of: Vec<u32>,
    rejections: Vec<NodeRejection>,
    places: HashMap<(usize, FilterStatus), u32>,
    pub(super) feasible: usize,
}

/// A way in which nodes are turned down.
pub(super) struct NodeRejection {
    /// The filter's place in the profile.
    pub(super) filter: usize,
    pub(super) status: FilterStatus,
    /// How many nodes are turned down like this.
    pub(super) nodes: usize,
}

const ABSENT: u32 = 0;
const FEASIBLE: u32 = 1;
const FIRST_REJECTION: u32 = 2;

impl Classes {
    /// The pod's class, up to date with the cluster.
    pub(crate) fn of(
        &mut self,
        profile_at: usize,
        profile: &Profile,
        pod: &PodInfo,
        cluster: &mut Cluster,
    ) -> &mut Class {
        let (kept_filters, kept_scores) = sign(profile_at, profile, pod, &mut self.scratch);
        self.clock += 1;
        if self.classes.get(self.scratch.bytes()).is_some_and(|class| class.failed.is_some()) {
            // What failed may work this time.
            self.classes.remove(self.scratch.bytes());
        }
        if !self.classes.contains_key(self.scratch.bytes()) {
            if self.classes.len() >= KEPT {
                self.forget_half();
            }
            let class = Class::new(profile, pod, cluster, kept_filters, kept_scores);
            self.classes.insert(self.scratch.bytes().into(), class);
        }
        let class = self.classes.get_mut(self.scratch.bytes());
        let class = class.expect("the class was put in if it was missing");
        class.used = self.clock;
        class.catch_up(pod, cluster);
        class
    }

    fn forget_half(&mut self) {
        let mut used: Vec<u64> = self.classes.values().map(|class| class.used).collect();
        let half = used.len() / 2;
        let (_, middle, _) = used.select_nth_unstable(half);
        let middle = *middle;
        self.classes.retain(|_, class| class.used >= middle);
    }
}

/// Signs the pod for every plugin; which filters and which scores may keep their answers.
fn sign(profile_at: usize, profile: &Profile, pod: &PodInfo, signature: &mut Signature) -> (Vec<bool>, Vec<bool>) {
    signature.clear();
    signature.add(&profile_at);
    let signed = |keeps: Reuse, signature: &mut Signature| {
        let keeps = keeps == Reuse::PerNode;
        signature.add(&keeps);
        keeps
    };
    let mut filters = Vec::with_capacity(profile.filters.len());
    for filter in &profile.filters {
        let keeps = filter.sign(pod, signature);
        filters.push(signed(keeps, signature));
    }
    let mut scores = Vec::with_capacity(profile.scores.len());
    for (score, _) in &profile.scores {
        let keeps = score.sign(pod, signature);
        scores.push(signed(keeps, signature));
    }
    (filters, scores)
}

impl Class {
    fn new(
        profile: &Profile,
        pod: &PodInfo,
        cluster: &mut Cluster,
        kept_filters: Vec<bool>,
        kept_scores: Vec<bool>,
    ) -> Self {
        let mut class = Self {
            used: 0,
            seen: Mark::default(),
            // Not the cluster's, so that everything is worked out when the class is first brought up to date.
            epoch: u64::MAX,
            rejected: None,
            filters: Vec::new(),
            kept_filters,
            kept_scores,
            only: Vec::new(),
            verdicts: Verdicts::default(),
            scores: Vec::new(),
            totals: Vec::new(),
            failed: None,
        };
        let kept = profile.filters.iter().enumerate().filter(|(at, _)| class.kept_filters[*at]);
        for (at, filter) in kept {
            match filter.clone().prefilter(pod, cluster) {
                PreFilter::Skip => {}
                PreFilter::Run(running) => class.filters.push((at, running)),
                PreFilter::RunOn(running, nodes) => {
                    class.filters.push((at, running));
                    class.only.push((filter.name(), nodes));
                }
                PreFilter::Reject(rejection) => {
                    class.rejected = Some((filter.name(), rejection));
                    return class;
                }
            }
        }
        let kept = profile.scores.iter().enumerate().filter(|(at, _)| class.kept_scores[*at]);
        for (_, (score, weight)) in kept {
            match score.clone().prescore(pod, cluster, &[]) {
                PreScore::Skip => {}
                PreScore::Run(running) => class.scores.push(ScoreColumn {
                    weight: *weight,
                    normalize: score.normalizes(),
                    running,
                    raw: Vec::new(),
                    highest: 0,
                    not_zero: 0,
                }),
                PreScore::Error(error) => class.failed = Some(error),
            }
        }
        class
    }

    fn catch_up(&mut self, pod: &PodInfo, cluster: &Cluster) {
        if self.rejected.is_some() {
            return;
        }
        let nodes = cluster.nodes();
        if self.epoch == nodes.epoch()
            && let Some(changed) = nodes.changed_since(self.seen)
        {
            let changed: Vec<NodeIdx> = changed.collect();
            self.seen = nodes.mark();
            for at in &changed {
                self.look_at(*at, nodes.get(*at), pod);
            }
            if !self.highest_moved() {
                for at in changed {
                    self.totals[at.at()] = self.total(at);
                }
                return;
            }
        } else {
            self.seen = nodes.mark();
            self.epoch = nodes.epoch();
            let length = nodes.capacity();
            self.verdicts.start_over(length);
            self.totals = vec![INFEASIBLE; length];
            for column in &mut self.scores {
                column.raw = vec![0; length];
                column.not_zero = 0;
            }
            for at in (0..length).map(NodeIdx::new) {
                self.look_at(at, nodes.get(at), pod);
            }
            self.highest_moved();
        }
        for at in (0..self.totals.len()).map(NodeIdx::new) {
            self.totals[at.at()] = self.total(at);
        }
    }

    /// Runs the filters on one node, and the scores if it is feasible.
    fn look_at(&mut self, at: NodeIdx, node: Option<NodeRef<'_>>, pod: &PodInfo) {
        if at.at() >= self.totals.len() {
            self.verdicts.grow(at.at() + 1);
            self.totals.resize(at.at() + 1, INFEASIBLE);
            for column in &mut self.scores {
                column.raw.resize(at.at() + 1, 0);
            }
        }
        let Some(node) = node else {
            self.verdicts.set_absent(at);
            self.clear_scores(at);
            return;
        };
        let turned_down = self.filters.iter().find_map(|(place, filter)| match filter.filter(pod, node) {
            FilterStatus::Success => None,
            status => Some((*place, status)),
        });
        match turned_down {
            Some((_, FilterStatus::Error(error))) => self.failed = Some(error),
            Some((place, status)) => {
                self.verdicts.set_rejected(at, place, status);
                self.clear_scores(at);
            }
            None => {
                self.verdicts.set_feasible(at);
                for column in &mut self.scores {
                    let score = column.running.score(pod, node).max(0);
                    column.set(at, score);
                }
            }
        }
    }

    fn clear_scores(&mut self, at: NodeIdx) {
        for column in &mut self.scores {
            column.set(at, 0);
        }
    }

    /// Works out each column's highest score anew; whether one is different, so that every total is.
    fn highest_moved(&mut self) -> bool {
        let mut moved = false;
        for column in &mut self.scores {
            if matches!(column.normalize, Normalize::Keep) {
                continue;
            }
            // Nodes that are not feasible have a zero.
            let highest = if column.not_zero == 0 { 0 } else { column.raw.iter().copied().max().unwrap_or(0) };
            moved |= highest != std::mem::replace(&mut column.highest, highest);
        }
        moved
    }

    fn total(&self, at: NodeIdx) -> i64 {
        if !self.verdicts.is_feasible(at) {
            return INFEASIBLE;
        }
        self.scores.iter().map(|c| c.weight * c.normalize.apply(c.raw[at.at()], c.highest)).sum()
    }
}

impl ScoreColumn {
    fn set(&mut self, at: NodeIdx, score: i64) {
        let old = std::mem::replace(&mut self.raw[at.at()], score);
        self.not_zero = self.not_zero + usize::from(score != 0) - usize::from(old != 0);
    }

    /// The normalized, weighted scores of some of the feasible nodes, added to `sums`.
    pub(super) fn add_to(&self, nodes: &[NodeIdx], sums: &mut [i64]) {
        let highest = nodes.iter().map(|at| self.raw[at.at()]).max().unwrap_or(0);
        for (at, sum) in nodes.iter().zip(sums) {
            *sum += self.weight * self.normalize.apply(self.raw[at.at()], highest);
        }
    }
}

impl Verdicts {
    fn start_over(&mut self, length: usize) {
        *self = Self { of: vec![ABSENT; length], ..Self::default() };
    }

    fn grow(&mut self, length: usize) {
        self.of.resize(length, ABSENT);
    }

    pub(super) fn is_feasible(&self, at: NodeIdx) -> bool {
        self.of.get(at.at()) == Some(&FEASIBLE)
    }

    /// Why the node is turned down.
    pub(super) fn rejection(&self, at: NodeIdx) -> Option<&NodeRejection> {
        let place = self.of.get(at.at())?.checked_sub(FIRST_REJECTION)?;
        self.rejections.get(place as usize)
    }

    pub(super) fn rejections(&self) -> impl Iterator<Item = &NodeRejection> {
        self.rejections.iter().filter(|rejection| rejection.nodes > 0)
    }

    /// The nodes that no filter of the class turns down.
    pub(super) fn feasible(&self) -> impl Iterator<Item = NodeIdx> + '_ {
        let feasible = self.of.iter().enumerate().filter(|(_, verdict)| **verdict == FEASIBLE);
        feasible.map(|(at, _)| NodeIdx::new(at))
    }

    fn set_absent(&mut self, at: NodeIdx) {
        self.set(at, ABSENT);
    }

    fn set_feasible(&mut self, at: NodeIdx) {
        self.set(at, FEASIBLE);
    }

    fn set_rejected(&mut self, at: NodeIdx, filter: usize, status: FilterStatus) {
        let next = u32::try_from(self.rejections.len()).unwrap_or(u32::MAX - FIRST_REJECTION) + FIRST_REJECTION;
        let rejections = &mut self.rejections;
        let place = *self.places.entry((filter, status)).or_insert_with_key(|(filter, status)| {
            rejections.push(NodeRejection { filter: *filter, status: status.clone(), nodes: 0 });
            next
        });
        self.set(at, place);
    }

    fn set(&mut self, at: NodeIdx, verdict: u32) {
        let old = std::mem::replace(&mut self.of[at.at()], verdict);
        for (verdict, came) in [(old, false), (verdict, true)] {
            let count = match verdict {
                ABSENT => continue,
                FEASIBLE => &mut self.feasible,
                place => &mut self.rejections[(place - FIRST_REJECTION) as usize].nodes,
            };
            *count = if came { *count + 1 } else { *count - 1 };
        }
    }
}
