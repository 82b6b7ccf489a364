//! The extension points without the plugins' own types, so that a profile can hold a list of them.

use std::any::Any;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::event::{Change, ClusterEvent, Hint};
use super::points::{
    Bind, BindStatus, Filter, Permit, PermitStatus, Plugin, PostBind, PostFilter, PreBind, PreEnqueue, QueueSort,
    Reserve, Score,
};
use super::signature::{Reuse, Signature};
use super::status::{FilterStatus, Normalize, PreFilter, PreScore, Rejection};
use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::cycle::{Attempt, PostFilterOutcome};
use crate::pod::PodInfo;
use crate::queue::QueuedPod;

pub(crate) trait AnyPlugin: Send + Sync {
    fn name(&self) -> &'static str;
    fn requeue_on(&self) -> &'static [ClusterEvent];
    fn hint(&self, pod: &PodInfo, event: ClusterEvent, change: &Change<'_>) -> Hint;
}

impl<P: Plugin> AnyPlugin for P {
    fn name(&self) -> &'static str {
        P::NAME
    }
    fn requeue_on(&self) -> &'static [ClusterEvent] {
        P::REQUEUE_ON
    }
    fn hint(&self, pod: &PodInfo, event: ClusterEvent, change: &Change<'_>) -> Hint {
        Plugin::hint(self, pod, event, change)
    }
}

// === Filter ===

pub(crate) trait AnyFilter: AnyPlugin {
    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse;
    fn prefilter(self: Arc<Self>, pod: &PodInfo, cluster: &mut Cluster) -> PreFilter<Box<dyn RunningFilter>>;
}

/// A filter with what it worked out of one pod.
pub(crate) trait RunningFilter: Send + Sync {
    fn filter(&self, pod: &PodInfo, node: NodeRef<'_>) -> FilterStatus;
    fn add_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>);
    fn remove_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>);
    fn fork(&self) -> Box<dyn RunningFilter>;
}

struct Filtering<P: Filter> {
    plugin: Arc<P>,
    state: P::State,
}

impl<P: Filter> AnyFilter for P {
    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        Filter::sign(self, pod, signature)
    }
    fn prefilter(self: Arc<Self>, pod: &PodInfo, cluster: &mut Cluster) -> PreFilter<Box<dyn RunningFilter>> {
        let running = |plugin, state| Box::new(Filtering::<P> { plugin, state }) as Box<dyn RunningFilter>;
        match Filter::prefilter(&*self, pod, cluster) {
            PreFilter::Skip => PreFilter::Skip,
            PreFilter::Run(state) => PreFilter::Run(running(self, state)),
            PreFilter::RunOn(state, nodes) => PreFilter::RunOn(running(self, state), nodes),
            PreFilter::Reject(rejection) => PreFilter::Reject(rejection),
        }
    }
}

impl<P: Filter> RunningFilter for Filtering<P> {
    fn filter(&self, pod: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        self.plugin.filter(&self.state, pod, node)
    }
    fn add_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>) {
        self.plugin.add_pod(&mut self.state, pod, other, node);
    }
    fn remove_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: NodeRef<'_>) {
        self.plugin.remove_pod(&mut self.state, pod, other, node);
    }
    fn fork(&self) -> Box<dyn RunningFilter> {
        Box::new(Filtering { plugin: self.plugin.clone(), state: self.state.clone() })
    }
}

// === Score ===

pub(crate) trait AnyScore: AnyPlugin {
    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse;
    fn normalizes(&self) -> Normalize;
    fn concerns(&self, pod: &PodInfo, cluster: &Cluster) -> bool;
    fn prescore(
        self: Arc<Self>,
        pod: &PodInfo,
        cluster: &mut Cluster,
        feasible: &[NodeIdx],
    ) -> PreScore<Box<dyn RunningScore>>;
}

pub(crate) trait RunningScore: Send + Sync {
    fn score(&self, pod: &PodInfo, node: NodeRef<'_>) -> i64;
    fn normalize(&self, cluster: &Cluster, nodes: &[NodeIdx], scores: &mut [i64]);
}

struct Scoring<P: Score> {
    plugin: Arc<P>,
    state: P::State,
}

impl<P: Score> AnyScore for P {
    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        Score::sign(self, pod, signature)
    }
    fn normalizes(&self) -> Normalize {
        P::NORMALIZE
    }
    fn concerns(&self, pod: &PodInfo, cluster: &Cluster) -> bool {
        Score::concerns(self, pod, cluster)
    }
    fn prescore(
        self: Arc<Self>,
        pod: &PodInfo,
        cluster: &mut Cluster,
        feasible: &[NodeIdx],
    ) -> PreScore<Box<dyn RunningScore>> {
        match Score::prescore(&*self, pod, cluster, feasible) {
            PreScore::Skip => PreScore::Skip,
            PreScore::Run(state) => PreScore::Run(Box::new(Scoring { plugin: self, state })),
            PreScore::Error(error) => PreScore::Error(error),
        }
    }
}

impl<P: Score> RunningScore for Scoring<P> {
    fn score(&self, pod: &PodInfo, node: NodeRef<'_>) -> i64 {
        self.plugin.score(&self.state, pod, node)
    }
    fn normalize(&self, cluster: &Cluster, nodes: &[NodeIdx], scores: &mut [i64]) {
        self.plugin.normalize(&self.state, cluster, nodes, scores);
    }
}

// === Reserve and PreBind ===

/// What a plugin holds for a pod; only the plugin knows its type.
pub(crate) type Held = Arc<dyn Any + Send + Sync>;

pub(crate) trait AnyReserve: AnyPlugin {
    fn reserve(&self, pod: &PodInfo, node: NodeRef<'_>) -> Result<Held, Rejection>;
    fn unreserve(&self, held: &Held, pod: &PodInfo, node: &str);
}

impl<P: Reserve> AnyReserve for P {
    fn reserve(&self, pod: &PodInfo, node: NodeRef<'_>) -> Result<Held, Rejection> {
        Reserve::reserve(self, pod, node).map(|held| Arc::new(held) as Held)
    }
    fn unreserve(&self, held: &Held, pod: &PodInfo, node: &str) {
        if let Some(held) = held.downcast_ref::<P::Held>() {
            Reserve::unreserve(self, held, pod, node);
        }
    }
}

pub(crate) trait AnyPreBind: AnyPlugin {
    /// Does nothing if nothing was reserved, which is so if the plugin is not enabled for Reserve.
    fn prebind<'a>(
        &'a self,
        held: Option<&'a Held>,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), Rejection>>;
}

impl<P: PreBind> AnyPreBind for P {
    fn prebind<'a>(
        &'a self,
        held: Option<&'a Held>,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), Rejection>> {
        match held.and_then(|held| held.downcast_ref::<P::Held>()) {
            Some(held) => PreBind::prebind(self, held, pod, node),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }
}

// === The points without state ===

pub(crate) trait AnyPreEnqueue: AnyPlugin {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection>;
}

impl<P: PreEnqueue> AnyPreEnqueue for P {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection> {
        PreEnqueue::pre_enqueue(self, pod)
    }
}

pub(crate) trait AnyQueueSort: AnyPlugin {
    fn before(&self, a: &QueuedPod, b: &QueuedPod) -> bool;
}

impl<P: QueueSort> AnyQueueSort for P {
    fn before(&self, a: &QueuedPod, b: &QueuedPod) -> bool {
        QueueSort::before(self, a, b)
    }
}

pub(crate) trait AnyPostFilter: AnyPlugin {
    fn post_filter(&self, attempt: &mut Attempt<'_>) -> PostFilterOutcome;
}

impl<P: PostFilter> AnyPostFilter for P {
    fn post_filter(&self, attempt: &mut Attempt<'_>) -> PostFilterOutcome {
        PostFilter::post_filter(self, attempt)
    }
}

pub(crate) trait AnyPermit: AnyPlugin {
    fn permit(&self, pod: &PodInfo, node: &str) -> PermitStatus;
}

impl<P: Permit> AnyPermit for P {
    fn permit(&self, pod: &PodInfo, node: &str) -> PermitStatus {
        Permit::permit(self, pod, node)
    }
}

pub(crate) trait AnyBind: AnyPlugin {
    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, BindStatus>;
}

impl<P: Bind> AnyBind for P {
    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, BindStatus> {
        Bind::bind(self, pod, node)
    }
}

pub(crate) trait AnyPostBind: AnyPlugin {
    fn postbind(&self, pod: &PodInfo, node: &str);
}

impl<P: PostBind> AnyPostBind for P {
    fn postbind(&self, pod: &PodInfo, node: &str) {
        PostBind::postbind(self, pod, node);
    }
}
