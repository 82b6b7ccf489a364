//! A profile: the plugins that are enabled at each extension point, in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::erased::{
    AnyBind, AnyFilter, AnyPermit, AnyPlugin, AnyPostBind, AnyPostFilter, AnyPreBind, AnyPreEnqueue, AnyQueueSort,
    AnyReserve, AnyScore,
};
use super::registry::{PluginContext, Points, Registry};
use crate::config::{ExtensionPoint, ProfileConfig};

pub(crate) struct Profile {
    /// What pods name as their scheduler.
    pub(crate) scheduler_name: String,
    /// In percent; `None`: all.
    pub(crate) percentage_of_nodes_to_score: Option<u32>,
    pub(crate) pre_enqueue: Vec<Arc<dyn AnyPreEnqueue>>,
    pub(crate) queue_sort: Arc<dyn AnyQueueSort>,
    pub(crate) filters: Vec<Arc<dyn AnyFilter>>,
    pub(crate) post_filters: Vec<Arc<dyn AnyPostFilter>>,
    pub(crate) scores: Vec<(Arc<dyn AnyScore>, i64)>,
    pub(crate) reserves: Vec<Arc<dyn AnyReserve>>,
    pub(crate) permits: Vec<Arc<dyn AnyPermit>>,
    pub(crate) pre_binds: Vec<Arc<dyn AnyPreBind>>,
    pub(crate) binds: Vec<Arc<dyn AnyBind>>,
    pub(crate) post_binds: Vec<Arc<dyn AnyPostBind>>,
    /// Every enabled plugin, for its events and hints.
    pub(crate) plugins: HashMap<&'static str, Arc<dyn AnyPlugin>>,
}

impl Profile {
    /// Makes the plugins that the configuration enables. `Err` holds everything that is wrong with it.
    pub(crate) fn build(
        config: &ProfileConfig,
        registry: &Registry,
        context: &PluginContext,
    ) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut made: BTreeMap<&str, Points> = BTreeMap::new();
        for name in config.enabled_anywhere() {
            let Some(build) = registry.get(name) else {
                mistakes.push(format!("{name} does not exist"));
                continue;
            };
            let args = config.args.get(name).unwrap_or(&serde_json::Value::Null);
            match build(args, context) {
                Ok(points) => {
                    made.insert(name, points);
                }
                Err(why) => mistakes.push(format!("initializing plugin {name:?}: {why}")),
            }
        }
        let mut profile = Chosen { config, made: &made, mistakes: &mut mistakes };
        let pre_enqueue = profile.at(ExtensionPoint::PreEnqueue, |points| points.pre_enqueue.clone());
        let queue_sort = profile.at(ExtensionPoint::QueueSort, |points| points.queue_sort.clone());
        let filters = profile.filters();
        let post_filters = profile.at(ExtensionPoint::PostFilter, |points| points.post_filter.clone());
        let scores = profile.scores();
        let reserves = profile.at(ExtensionPoint::Reserve, |points| points.reserve.clone());
        let permits = profile.at(ExtensionPoint::Permit, |points| points.permit.clone());
        let pre_binds = profile.at(ExtensionPoint::PreBind, |points| points.pre_bind.clone());
        let binds = profile.at(ExtensionPoint::Bind, |points| points.bind.clone());
        let post_binds = profile.at(ExtensionPoint::PostBind, |points| points.post_bind.clone());
        if binds.is_empty() {
            mistakes.push("at least one bind plugin is needed".to_owned());
        }
        let queue_sort = match <[_; 1]>::try_from(queue_sort) {
            Ok([one]) if mistakes.is_empty() => one,
            Ok(_) => return Err(mistakes),
            Err(several) => {
                mistakes.push(if several.is_empty() {
                    "no queue sort plugin is enabled".to_owned()
                } else {
                    "only one queue sort plugin can be enabled".to_owned()
                });
                return Err(mistakes);
            }
        };
        Ok(Self {
            scheduler_name: config.scheduler_name.clone(),
            percentage_of_nodes_to_score: config.percentage_of_nodes_to_score,
            pre_enqueue,
            queue_sort,
            filters,
            post_filters,
            scores,
            reserves,
            permits,
            pre_binds,
            binds,
            post_binds,
            plugins: made.into_values().map(|points| (points.plugin.name(), points.plugin)).collect(),
        })
    }
}

struct Chosen<'a> {
    config: &'a ProfileConfig,
    made: &'a BTreeMap<&'a str, Points>,
    mistakes: &'a mut Vec<String>,
}

impl Chosen<'_> {
    /// The plugins that are enabled at a point, in order.
    fn at<T>(&mut self, point: ExtensionPoint, pick: impl Fn(&Points) -> Option<T>) -> Vec<T> {
        let mut chosen = Vec::new();
        for plugin in self.config.enabled_at(point) {
            let Some(points) = self.made.get(&*plugin.name) else { continue };
            match pick(points) {
                Some(implementation) => chosen.push(implementation),
                // What is enabled for all points is enabled for those that it has.
                None if plugin.named_at_point => {
                    self.mistakes.push(format!("plugin {:?} does not extend {} plugin", plugin.name, point.name()));
                }
                None => {}
            }
        }
        chosen
    }

    /// Pre-filter and filter are one implementation here: a plugin that is enabled for either runs, and one whose Filter
    /// is disabled does not.
    fn filters(&mut self) -> Vec<Arc<dyn AnyFilter>> {
        let mut filters = self.at(ExtensionPoint::Filter, |points| points.filter.clone());
        let names: Vec<_> = filters.iter().map(|filter| filter.name()).collect();
        let before = self.at(ExtensionPoint::PreFilter, |points| points.filter.clone());
        filters.extend(before.into_iter().filter(|filter| {
            !names.contains(&filter.name()) && self.config.disabled_at(ExtensionPoint::Filter, filter.name()).is_none()
        }));
        filters
    }

    fn scores(&mut self) -> Vec<(Arc<dyn AnyScore>, i64)> {
        let scores = self.at(ExtensionPoint::Score, |points| points.score.clone());
        let weight = |name: &str| {
            let enabled = self.config.enabled_at(ExtensionPoint::Score).into_iter();
            enabled.filter(|plugin| plugin.name == name).map(|plugin| plugin.weight).find(|weight| *weight != 0)
        };
        scores
            .into_iter()
            .map(|score| {
                let weight = weight(score.name()).unwrap_or(1);
                (score, i64::from(weight))
            })
            .collect()
    }
}
