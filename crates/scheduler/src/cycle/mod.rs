//! One pod's scheduling cycle: which nodes can take it, and which of them is best. Nothing here does I/O.

mod attempt;
mod class;
mod diagnosis;
#[cfg(test)]
mod oracle;
mod trial;

use std::collections::HashMap;
use std::sync::Arc;

pub use attempt::{Attempt, NodeTrial, PostFilterOutcome};
pub(crate) use class::Classes;
pub use diagnosis::Diagnosis;

use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::extender::{self, Extender};
use crate::framework::erased::RunningFilter;
use crate::framework::{FilterStatus, Normalize, PreFilter, PreScore, Profile, Rejection};
use crate::pod::PodInfo;
use class::{Class, INFEASIBLE};
use trial::Trial;

/// Why a cycle ended early.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    NoNodes,
    /// A plugin failed.
    Error(String),
}

/// A node for the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) node: NodeIdx,
    /// How many nodes could take the pod.
    pub(crate) feasible: usize,
}

/// One pod's way through filters and scores.
pub(crate) struct Cycle<'a> {
    profile: &'a Profile,
    pod: &'a Arc<PodInfo>,
    cluster: &'a mut Cluster,
    class: &'a mut Class,
    /// Filters that the class does not answer for, by their places in the profile.
    fresh: Vec<(usize, Box<dyn RunningFilter>)>,
    /// A plugin turned the pod down before nodes were looked at.
    rejected: Option<Rejected>,
    /// The only nodes that can do, if plugins said so, and which plugins did.
    only: Option<Only>,
    /// Nodes that the class has for feasible and that were turned down nevertheless.
    turned_down: HashMap<NodeIdx, (&'static str, FilterStatus)>,
}

struct Rejected {
    plugins: Vec<&'static str>,
    message: String,
    /// What that says of each node.
    status: FilterStatus,
    /// The plugins after this one in the profile were not asked.
    last_asked: Option<&'static str>,
}

struct Only {
    plugins: Vec<&'static str>,
    nodes: Vec<NodeIdx>,
}

/// The nodes that can take the pod.
pub(crate) enum Feasible {
    /// All that the class says.
    Class,
    These(Vec<NodeIdx>),
}

impl<'a> Cycle<'a> {
    /// Runs everything that comes before nodes are looked at one by one.
    pub(crate) fn start(
        profile_at: usize,
        profile: &'a Profile,
        pod: &'a Arc<PodInfo>,
        cluster: &'a mut Cluster,
        classes: &'a mut Classes,
    ) -> Result<Self, Failure> {
        if cluster.nodes().is_empty() {
            return Err(Failure::NoNodes);
        }
        let class = classes.of(profile_at, profile, pod, cluster);
        if let Some(error) = &class.failed {
            return Err(Failure::Error(error.clone()));
        }
        let mut lists = class.only.clone();
        let rejected = class.rejected.clone();
        let (fresh, only) = (Vec::new(), None);
        let mut cycle = Self { profile, pod, cluster, class, fresh, rejected: None, only, turned_down: HashMap::new() };
        if let Some((plugin, rejection)) = rejected {
            cycle.reject(plugin, rejection)?;
            return Ok(cycle);
        }
        for (at, filter) in profile.filters.iter().enumerate() {
            if cycle.class.kept_filters[at] {
                continue;
            }
            match filter.clone().prefilter(pod, cycle.cluster) {
                PreFilter::Skip => {}
                PreFilter::Run(running) => cycle.fresh.push((at, running)),
                PreFilter::RunOn(running, names) => {
                    cycle.fresh.push((at, running));
                    lists.push((filter.name(), names));
                }
                PreFilter::Reject(rejection) => {
                    cycle.reject(filter.name(), rejection)?;
                    return Ok(cycle);
                }
            }
        }
        cycle.keep_to(lists);
        Ok(cycle)
    }

    fn reject(&mut self, plugin: &'static str, rejection: Rejection) -> Result<(), Failure> {
        let message = rejection.message();
        let status = match rejection {
            Rejection::Unschedulable(reasons) => FilterStatus::Unschedulable(reasons),
            Rejection::UnschedulableAndUnresolvable(reasons) => FilterStatus::UnschedulableAndUnresolvable(reasons),
            Rejection::Error(error) => return Err(Failure::Error(error)),
        };
        self.rejected = Some(Rejected { plugins: vec![plugin], message, status, last_asked: Some(plugin) });
        Ok(())
    }

    /// Only the nodes that all of the lists name can do.
    fn keep_to(&mut self, lists: Vec<(&'static str, Vec<String>)>) {
        let plugins: Vec<&'static str> = lists.iter().map(|(plugin, _)| *plugin).collect();
        let names = lists.into_iter().map(|(_, names)| names).reduce(|mut all, names| {
            all.retain(|name| names.contains(name));
            all
        });
        let Some(names) = names else { return };
        if names.is_empty() {
            let message = match &*plugins {
                [one] => format!("node(s) didn't satisfy plugin {one}"),
                several => format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", several.join(" ")),
            };
            let status = FilterStatus::unresolvable(message.clone());
            self.rejected = Some(Rejected { plugins, message, status, last_asked: None });
            return;
        }
        let nodes = self.cluster.nodes();
        let nodes = names.iter().filter_map(|name| nodes.find(name).map(NodeRef::idx)).collect();
        self.only = Some(Only { plugins, nodes });
    }

    /// The nodes that can take the pod; none is no error here. `rotation` is where to begin when not all are wanted, and
    /// moves on.
    pub(crate) fn filter(&mut self, rotation: &mut usize) -> Result<Feasible, Failure> {
        if self.rejected.is_some() {
            return Ok(Feasible::These(Vec::new()));
        }
        let wanted = self.wanted();
        let nominated = self.nominated_elsewhere();
        if self.fresh.is_empty() && self.only.is_none() && nominated.is_empty() && wanted.is_none() {
            return Ok(Feasible::Class);
        }
        let candidates: Vec<NodeIdx> = match &self.only {
            Some(only) => only.nodes.iter().copied().filter(|at| self.class.verdicts.is_feasible(*at)).collect(),
            None => self.class.verdicts.feasible().collect(),
        };
        let mut feasible = Vec::with_capacity(wanted.unwrap_or(candidates.len()).min(candidates.len()));
        let start = if wanted.is_some() && !candidates.is_empty() { *rotation % candidates.len() } else { 0 };
        let mut looked_at = 0;
        for at in candidates[start..].iter().chain(&candidates[..start]) {
            looked_at += 1;
            let mut turned_down = self.run_fresh(*at);
            if turned_down.is_none() && nominated.contains(at) {
                turned_down = self.run_with_nominated(*at);
            }
            match turned_down {
                None => feasible.push(*at),
                Some((_, FilterStatus::Error(error))) => return Err(Failure::Error(error)),
                Some(rejection) => {
                    self.turned_down.insert(*at, rejection);
                }
            }
            if wanted.is_some_and(|wanted| feasible.len() >= wanted) {
                break;
            }
        }
        if wanted.is_some() {
            *rotation = start + looked_at;
        }
        Ok(Feasible::These(feasible))
    }

    /// What extenders leave of the feasible nodes.
    pub(crate) fn filter_by(&mut self, extenders: &[Extender], feasible: Feasible) -> Result<Feasible, Failure> {
        let mut nodes: Vec<NodeIdx> = match feasible {
            Feasible::Class => self.class.verdicts.feasible().collect(),
            Feasible::These(nodes) => nodes,
        };
        for extender in extenders {
            if nodes.is_empty() {
                break;
            }
            match extender.filter(self.pod, self.cluster, &nodes) {
                Ok(filtered) => {
                    nodes = filtered.nodes;
                    let turned_down = filtered.turned_down.into_iter();
                    self.turned_down.extend(turned_down.map(|(at, status)| (at, (extender::NAME, status))));
                }
                Err(error) if extender.is_ignorable() => {
                    tracing::warn!(pod = %self.pod.key, error, "an extender that may be ignored was");
                }
                Err(error) => return Err(Failure::Error(error)),
            }
        }
        Ok(Feasible::These(nodes))
    }

    /// What extenders think of the feasible nodes.
    pub(crate) fn scores_of(&self, extenders: &[Extender], feasible: &Feasible) -> Option<Vec<i64>> {
        let Feasible::These(nodes) = feasible else { return None };
        if extenders.is_empty() || nodes.len() < 2 {
            return None;
        }
        let mut scores = vec![0; nodes.len()];
        for extender in extenders {
            extender.prioritize(self.pod, self.cluster, nodes, &mut scores);
        }
        Some(scores)
    }

    /// How many feasible nodes are enough; `None`: all are wanted.
    fn wanted(&self) -> Option<usize> {
        /// Fewer nodes than this are never too many to look at.
        const AT_LEAST: usize = 100;
        let percentage = self.profile.percentage_of_nodes_to_score? as usize;
        let nodes = self.cluster.nodes().len();
        (percentage < 100 && nodes >= AT_LEAST).then(|| (nodes * percentage / 100).max(AT_LEAST))
    }

    fn run_fresh(&self, at: NodeIdx) -> Option<(&'static str, FilterStatus)> {
        if self.fresh.is_empty() {
            return None;
        }
        let node = self.cluster.nodes().get(at)?;
        self.fresh.iter().find_map(|(place, filter)| match filter.filter(self.pod, node) {
            FilterStatus::Success => None,
            status => Some((self.profile.filters[*place].name(), status)),
        })
    }

    /// Nodes for which other pods, not less important, are nominated.
    fn nominated_elsewhere(&self) -> Vec<NodeIdx> {
        let nominations = &self.cluster.nominations;
        let nodes = nominations.nodes().filter(|node| nominations.on(node).iter().any(|other| self.counts(other)));
        nodes.filter_map(|node| self.cluster.nodes().find(node).map(NodeRef::idx)).collect()
    }

    fn counts(&self, other: &PodInfo) -> bool {
        other.uid != self.pod.uid && other.priority >= self.pod.priority
    }

    /// Whether the node can take the pod also when the pods that are nominated for it are there.
    fn run_with_nominated(&mut self, at: NodeIdx) -> Option<(&'static str, FilterStatus)> {
        let node = self.cluster.nodes().get(at)?.name().clone();
        let nominated: Vec<_> =
            self.cluster.nominations.on(&node).iter().filter(|other| self.counts(other)).cloned().collect();
        let mut filters = self.forks();
        let mut trial = Trial::on(self.cluster, at);
        for other in nominated {
            trial.add(&mut filters, self.pod, other);
        }
        trial.run(&filters, self.profile, self.pod)
    }

    /// All filters that run for this pod, in the profile's order, to be changed at will.
    fn forks(&self) -> Vec<(usize, Box<dyn RunningFilter>)> {
        let mut forks: Vec<_> =
            self.class.filters.iter().chain(&self.fresh).map(|(at, filter)| (*at, filter.fork())).collect();
        forks.sort_by_key(|(at, _)| *at);
        forks
    }

    /// The best of the feasible nodes; `extra` is added to the scores of `Feasible::These` nodes. `None` if there is none.
    pub(crate) fn choose(
        &mut self,
        feasible: &Feasible,
        extra: Option<&[i64]>,
        random: &mut impl FnMut(usize) -> usize,
    ) -> Result<Option<Choice>, Failure> {
        match feasible {
            Feasible::Class if extra.is_none() && self.opinions().is_empty() => {
                let count = self.class.verdicts.feasible;
                let best = best_of(&self.class.totals, random);
                Ok(best.map(|at| Choice { node: NodeIdx::new(at), feasible: count }))
            }
            Feasible::Class => {
                let nodes: Vec<NodeIdx> = self.class.verdicts.feasible().collect();
                // The class has them summed up over exactly these nodes.
                let totals = nodes.iter().map(|at| self.class.totals[at.at()]).collect();
                self.choose_of(&nodes, totals, extra, random)
            }
            Feasible::These(nodes) => {
                let mut totals = vec![0; nodes.len()];
                if nodes.len() > 1 {
                    for column in &self.class.scores {
                        column.add_to(nodes, &mut totals);
                    }
                }
                self.choose_of(nodes, totals, extra, random)
            }
        }
    }

    /// Scores that the class does not answer for and that say something about this pod, by their places in the profile.
    fn opinions(&self) -> Vec<usize> {
        let fresh = self.profile.scores.iter().enumerate().filter(|(at, _)| !self.class.kept_scores[*at]);
        fresh.filter(|(_, (score, _))| score.concerns(self.pod, self.cluster)).map(|(at, _)| at).collect()
    }

    fn choose_of(
        &mut self,
        nodes: &[NodeIdx],
        mut totals: Vec<i64>,
        extra: Option<&[i64]>,
        random: &mut impl FnMut(usize) -> usize,
    ) -> Result<Option<Choice>, Failure> {
        if let [] | [_] = nodes {
            return Ok(nodes.first().map(|at| Choice { node: *at, feasible: 1 }));
        }
        self.add_opinions(nodes, &mut totals)?;
        for (total, extra) in totals.iter_mut().zip(extra.into_iter().flatten()) {
            *total += extra;
        }
        Ok(best_of(&totals, random).map(|at| Choice { node: nodes[at], feasible: nodes.len() }))
    }

    /// The final scores of these nodes, which are the feasible ones.
    #[cfg(test)]
    pub(crate) fn scores(&mut self, nodes: &[NodeIdx]) -> Result<Vec<i64>, Failure> {
        let mut totals = vec![0; nodes.len()];
        for column in &self.class.scores {
            column.add_to(nodes, &mut totals);
        }
        self.add_opinions(nodes, &mut totals)?;
        Ok(totals)
    }

    fn add_opinions(&mut self, nodes: &[NodeIdx], totals: &mut [i64]) -> Result<(), Failure> {
        for at in self.opinions() {
            let (score, weight) = &self.profile.scores[at];
            let running = match score.clone().prescore(self.pod, self.cluster, nodes) {
                PreScore::Skip => continue,
                PreScore::Run(running) => running,
                PreScore::Error(error) => return Err(Failure::Error(error)),
            };
            let columns = self.cluster.nodes();
            let each = nodes.iter().map(|at| columns.get(*at).map_or(0, |node| running.score(self.pod, node)));
            let mut scores: Vec<i64> = each.collect();
            match score.normalizes() {
                Normalize::ByPlugin => running.normalize(self.cluster, nodes, &mut scores),
                normalize => {
                    let highest = scores.iter().copied().max().unwrap_or(0);
                    scores.iter_mut().for_each(|score| *score = normalize.apply(*score, highest));
                }
            }
            totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self, feasible: &Feasible) -> bool {
        match feasible {
            Feasible::Class => self.class.verdicts.feasible == 0,
            Feasible::These(nodes) => nodes.is_empty(),
        }
    }

    /// Why no node can take the pod.
    pub(crate) fn diagnose(&self) -> Diagnosis {
        let mut diagnosis = Diagnosis { nodes: self.cluster.nodes().len(), ..Diagnosis::default() };
        if let Some(rejected) = &self.rejected {
            diagnosis.before_nodes = Some(rejected.message.clone());
            diagnosis.plugins.extend(&rejected.plugins);
            return diagnosis;
        }
        let name = |place: usize| self.profile.filters[place].name();
        if let Some(only) = &self.only {
            for at in &only.nodes {
                if let Some(rejection) = self.class.verdicts.rejection(*at) {
                    diagnosis.add(&rejection.status, 1);
                    diagnosis.plugins.insert(name(rejection.filter));
                }
            }
            let plugins = format!("node(s) didn't satisfy plugin(s) [{}]", only.plugins.join(" "));
            diagnosis.add_reason(&plugins, diagnosis.nodes - only.nodes.len());
            diagnosis.plugins.extend(&only.plugins);
        } else {
            for rejection in self.class.verdicts.rejections() {
                diagnosis.add(&rejection.status, rejection.nodes);
                diagnosis.plugins.insert(name(rejection.filter));
            }
        }
        for (plugin, status) in self.turned_down.values() {
            diagnosis.add(status, 1);
            diagnosis.plugins.insert(plugin);
        }
        diagnosis
    }

    /// Whether the plugin was asked about the pod before nodes were looked at.
    fn was_asked(&self, plugin: &str) -> bool {
        let Some(last) = self.rejected.as_ref().and_then(|rejected| rejected.last_asked) else { return true };
        let place = |name: &str| self.profile.filters.iter().position(|filter| filter.name() == name);
        place(plugin) <= place(last)
    }

    /// What a node was turned down for.
    fn status_of(&self, at: NodeIdx) -> Option<&FilterStatus> {
        if let Some(rejected) = &self.rejected {
            return Some(&rejected.status);
        }
        if self.only.as_ref().is_some_and(|only| !only.nodes.contains(&at)) {
            return None;
        }
        let of_class = self.class.verdicts.rejection(at).map(|rejection| &rejection.status);
        of_class.or_else(|| self.turned_down.get(&at).map(|(_, status)| status))
    }
}

/// The place of the highest total, one of them at random if there are several; `None` if all are [`INFEASIBLE`].
fn best_of(totals: &[i64], random: &mut impl FnMut(usize) -> usize) -> Option<usize> {
    let highest = totals.iter().copied().max().filter(|highest| *highest > INFEASIBLE)?;
    let ties = totals.iter().filter(|total| **total == highest).count();
    let nth = if ties == 1 { 0 } else { random(ties) };
    totals.iter().enumerate().filter(|(_, total)| **total == highest).nth(nth).map(|(at, _)| at)
}
