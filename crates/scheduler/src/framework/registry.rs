//! Plugins by name: how each is made, and which extension points it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use component_base::feature_gates::FeatureGates;

use super::erased::{
    AnyBind, AnyFilter, AnyPermit, AnyPlugin, AnyPostBind, AnyPostFilter, AnyPreBind, AnyPreEnqueue, AnyQueueSort,
    AnyReserve, AnyScore,
};
use super::points::{
    Bind, Filter, Permit, Plugin, PostBind, PostFilter, PreBind, PreEnqueue, QueueSort, Reserve, Score,
};
use super::waiting::WaitingPods;
use crate::gangs::Gangs;
use crate::listers::Listers;

/// What a plugin is made from besides its arguments.
#[derive(Clone)]
pub struct PluginContext {
    /// `None` where nothing is ever bound, as in simulations.
    pub client: Option<kube::Client>,
    pub listers: Listers,
    pub waiting_pods: WaitingPods,
    /// The pods of groups.
    pub gangs: Gangs,
    pub feature_gates: FeatureGates,
}

/// Makes a plugin from its `pluginConfig` arguments (`null` if there are none). `Err` names what is wrong with them.
pub type Build = Arc<dyn Fn(&serde_json::Value, &PluginContext) -> Result<Points, String> + Send + Sync>;

/// The plugins that profiles can enable.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Build>);

impl Registry {
    /// Adds a plugin under its name, replacing one of the same name.
    #[must_use]
    pub fn with(
        mut self,
        name: &'static str,
        build: impl Fn(&serde_json::Value, &PluginContext) -> Result<Points, String> + Send + Sync + 'static,
    ) -> Self {
        self.0.insert(name, Arc::new(build));
        self
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Build> {
        self.0.get(name)
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// A plugin, and the extension points at which it can be enabled.
#[derive(Clone)]
pub struct Points {
    pub(crate) plugin: Arc<dyn AnyPlugin>,
    pub(crate) pre_enqueue: Option<Arc<dyn AnyPreEnqueue>>,
    pub(crate) queue_sort: Option<Arc<dyn AnyQueueSort>>,
    pub(crate) filter: Option<Arc<dyn AnyFilter>>,
    pub(crate) post_filter: Option<Arc<dyn AnyPostFilter>>,
    pub(crate) score: Option<Arc<dyn AnyScore>>,
    pub(crate) reserve: Option<Arc<dyn AnyReserve>>,
    pub(crate) permit: Option<Arc<dyn AnyPermit>>,
    pub(crate) pre_bind: Option<Arc<dyn AnyPreBind>>,
    pub(crate) bind: Option<Arc<dyn AnyBind>>,
    pub(crate) post_bind: Option<Arc<dyn AnyPostBind>>,
}

/// Lists a plugin's extension points: `PointsOf::new(plugin).filter().score().points()`.
pub struct PointsOf<P> {
    plugin: Arc<P>,
    points: Points,
}

impl<P: Plugin> PointsOf<P> {
    #[must_use]
    pub fn new(plugin: P) -> Self {
        let plugin = Arc::new(plugin);
        let points = Points {
            plugin: plugin.clone(),
            pre_enqueue: None,
            queue_sort: None,
            filter: None,
            post_filter: None,
            score: None,
            reserve: None,
            permit: None,
            pre_bind: None,
            bind: None,
            post_bind: None,
        };
        Self { plugin, points }
    }

    #[must_use]
    pub fn points(self) -> Points {
        self.points
    }
}

/// One method for each extension point.
macro_rules! points {
    ($($method:ident: $point:ident as $any:ident,)*) => {
        impl<P: Plugin> PointsOf<P> {
            $(
                #[must_use]
                pub fn $method(mut self) -> Self where P: $point {
                    self.points.$method = Some(self.plugin.clone() as Arc<dyn $any>);
                    self
                }
            )*
        }
    };
}

points! {
    pre_enqueue: PreEnqueue as AnyPreEnqueue,
    queue_sort: QueueSort as AnyQueueSort,
    filter: Filter as AnyFilter,
    post_filter: PostFilter as AnyPostFilter,
    score: Score as AnyScore,
    reserve: Reserve as AnyReserve,
    permit: Permit as AnyPermit,
    pre_bind: PreBind as AnyPreBind,
    bind: Bind as AnyBind,
    post_bind: PostBind as AnyPostBind,
}
