//! Which plugins a profile enables at which extension point.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExtensionPoint {
    PreEnqueue,
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

impl ExtensionPoint {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PreEnqueue => "PreEnqueue",
            Self::QueueSort => "QueueSort",
            Self::PreFilter => "PreFilter",
            Self::Filter => "Filter",
            Self::PostFilter => "PostFilter",
            Self::PreScore => "PreScore",
            Self::Score => "Score",
            Self::Reserve => "Reserve",
            Self::Permit => "Permit",
            Self::PreBind => "PreBind",
            Self::Bind => "Bind",
            Self::PostBind => "PostBind",
        }
    }
}

/// A plugin that is enabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enabled {
    pub name: String,
    /// For scores; 0 means the default.
    pub weight: i32,
    /// Enabled for this very point, not for all that it has.
    pub named_at_point: bool,
}

/// Plugins that are enabled, in order, and disabled; `*` disables all that are enabled elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginSet {
    pub enabled: Vec<(String, i32)>,
    pub disabled: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProfileConfig {
    pub scheduler_name: String,
    /// In percent; `None` for all.
    pub percentage_of_nodes_to_score: Option<u32>,
    /// Plugins enabled at every extension point that they have. The defaults are part of it.
    pub multi_point: PluginSet,
    pub points: BTreeMap<ExtensionPoint, PluginSet>,
    /// By plugin.
    pub args: BTreeMap<String, serde_json::Value>,
}

impl ProfileConfig {
    /// The profile with the default plugins, for pods of `scheduler_name`.
    #[must_use]
    pub fn new(scheduler_name: &str) -> Self {
        let enabled = crate::plugins::DEFAULTS.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        Self {
            scheduler_name: scheduler_name.to_owned(),
            multi_point: PluginSet { enabled, ..PluginSet::default() },
            ..Self::default()
        }
    }

    /// The plugins of a point, in order: first those that are enabled both here and for all points, as they are listed
    /// here; then those of all points; then those that are enabled only here.
    #[must_use]
    pub fn enabled_at(&self, point: ExtensionPoint) -> Vec<Enabled> {
        static NONE: PluginSet = PluginSet { enabled: Vec::new(), disabled: BTreeSet::new() };
        let here = self.points.get(&point).unwrap_or(&NONE);
        let everywhere = |name: &String| self.multi_point.enabled.iter().any(|(own, _)| own == name);
        let named =
            |(name, weight): &(String, i32)| Enabled { name: name.clone(), weight: *weight, named_at_point: true };
        let overridden = here.enabled.iter().filter(|(name, _)| everywhere(name)).map(named);
        let rest = self.multi_point.enabled.iter().filter(|(name, _)| {
            !here.disabled.contains("*")
                && !here.disabled.contains(name)
                && !here.enabled.iter().any(|(own, _)| own == name)
        });
        let rest = rest.map(|(name, weight)| Enabled { name: name.clone(), weight: *weight, named_at_point: false });
        let only_here = here.enabled.iter().filter(|(name, _)| !everywhere(name)).map(named);
        overridden.chain(rest).chain(only_here).collect()
    }

    /// Whether a plugin is disabled at a point, and by which word.
    #[must_use]
    pub fn disabled_at(&self, point: ExtensionPoint, name: &str) -> Option<&str> {
        let disabled = &self.points.get(&point)?.disabled;
        disabled.get(name).or_else(|| disabled.get("*")).map(String::as_str)
    }

    /// Every plugin that is enabled somewhere.
    pub(crate) fn enabled_anywhere(&self) -> BTreeSet<&str> {
        let sets = std::iter::once(&self.multi_point).chain(self.points.values());
        sets.flat_map(|set| set.enabled.iter().map(|(name, _)| name.as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(enabled: &[&str], disabled: &[&str]) -> PluginSet {
        PluginSet {
            enabled: enabled.iter().map(|name| ((*name).to_owned(), 0)).collect(),
            disabled: disabled.iter().map(ToString::to_string).collect(),
        }
    }

    #[track_caller]
    fn check(multi_point: PluginSet, filter: PluginSet, want: &[&str]) {
        let points = [(ExtensionPoint::Filter, filter)].into();
        let config = ProfileConfig { multi_point, points, ..ProfileConfig::default() };
        let names: Vec<_> = config.enabled_at(ExtensionPoint::Filter).into_iter().map(|plugin| plugin.name).collect();
        assert_eq!(names, want);
    }

    #[test]
    fn plugins_of_a_point_are_ordered_as_upstream_orders_them() {
        check(set(&["a", "b", "c"], &[]), set(&[], &[]), &["a", "b", "c"]);
        check(set(&["a", "b", "c"], &[]), set(&[], &["b"]), &["a", "c"]);
        check(set(&["a", "b", "c"], &[]), set(&["d"], &["*"]), &["d"]);
        check(set(&["a", "b", "c"], &[]), set(&["x", "c"], &[]), &["c", "a", "b", "x"]);
        check(set(&["a", "b", "c"], &[]), set(&["b"], &["*"]), &["b"]);
    }
}
