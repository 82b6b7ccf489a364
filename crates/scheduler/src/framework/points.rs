//! The extension points: a trait each. A plugin is one type that implements those it needs.
//!
//! Order of travel of a pod: [`PreEnqueue`] and [`QueueSort`] in the queue; [`Filter`] (pre-filter, then every node), if no
//! node can do [`PostFilter`]; [`Score`] (pre-score, every feasible node, normalize); [`Reserve`], [`Permit`]; then, beside
//! the next pods' decisions, [`PreBind`], [`Bind`], [`PostBind`].

use std::time::Duration;

use futures::future::BoxFuture;

use super::event::{Change, ClusterEvent, Hint};
use super::signature::{Reuse, Signature};
use super::status::{FilterStatus, Normalize, PreFilter, PreScore, Rejection};
use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::cycle::{Attempt, PostFilterOutcome};
use crate::pod::PodInfo;
use crate::queue::QueuedPod;

/// What every plugin has.
pub trait Plugin: Send + Sync + 'static {
    /// As configuration, metrics and events name it.
    const NAME: &'static str;
    /// What may let a pod be scheduled that this plugin turned down.
    const REQUEUE_ON: &'static [ClusterEvent] = &[];

    /// Whether this very change may. Asked only for changes that `REQUEUE_ON` lists.
    fn hint(&self, _pod: &PodInfo, _event: ClusterEvent, _change: &Change<'_>) -> Hint {
        Hint::Queue
    }
}

/// Keeps pods out of the queue until they may be scheduled at all.
pub trait PreEnqueue: Plugin {
    /// # Errors
    /// When the pod has to stay out.
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection>;
}

/// Orders the queue. All profiles share one.
pub trait QueueSort: Plugin {
    /// Whether `a` is to be scheduled before `b`.
    fn before(&self, a: &QueuedPod, b: &QueuedPod) -> bool;
}

/// Says which nodes can take a pod.
pub trait Filter: Plugin {
    /// What is worked out of the pod once, before nodes are looked at.
    type State: Clone + Send + Sync + 'static;

    /// Signs what of the pod the answers depend on. The default is that no answer is kept.
    fn sign(&self, _pod: &PodInfo, _signature: &mut Signature) -> Reuse {
        Reuse::Never
    }

    /// `cluster` is for reading and for asking for columns.
    fn prefilter(&self, pod: &PodInfo, cluster: &mut Cluster) -> PreFilter<Self::State>;

    fn filter(&self, state: &Self::State, pod: &PodInfo, node: NodeRef<'_>) -> FilterStatus;

    /// Changes the state as if `other` were on the node, for trying what preemption would give.
    fn add_pod(&self, _state: &mut Self::State, _pod: &PodInfo, _other: &PodInfo, _node: NodeRef<'_>) {}

    /// Changes the state as if `other` were not on the node.
    fn remove_pod(&self, _state: &mut Self::State, _pod: &PodInfo, _other: &PodInfo, _node: NodeRef<'_>) {}
}

/// Tries to make room when no node can take a pod.
pub trait PostFilter: Plugin {
    fn post_filter(&self, attempt: &mut Attempt<'_>) -> PostFilterOutcome;
}

/// Says which of the nodes that can take a pod is best.
pub trait Score: Plugin {
    type State: Send + Sync + 'static;
    const NORMALIZE: Normalize = Normalize::Keep;

    /// Signs what of the pod the answers depend on. The default is that no answer is kept.
    fn sign(&self, _pod: &PodInfo, _signature: &mut Signature) -> Reuse {
        Reuse::Never
    }

    /// Whether there is anything to score for this pod. Asked before the feasible nodes are listed, which is most of the
    /// work for a pod that nobody has an opinion on.
    fn concerns(&self, _pod: &PodInfo, _cluster: &Cluster) -> bool {
        true
    }

    /// `feasible` is empty where answers are kept: they must not depend on it.
    fn prescore(&self, pod: &PodInfo, cluster: &mut Cluster, feasible: &[NodeIdx]) -> PreScore<Self::State>;

    /// Not negative.
    fn score(&self, state: &Self::State, pod: &PodInfo, node: NodeRef<'_>) -> i64;

    /// Brings the scores of `nodes` to 0 to 100, if [`Normalize::ByPlugin`] says so.
    fn normalize(&self, _state: &Self::State, _cluster: &Cluster, _nodes: &[NodeIdx], _scores: &mut [i64]) {}
}

/// Sets something of a plugin's own aside for a pod on the node that was chosen.
pub trait Reserve: Plugin {
    /// What was set aside.
    type Held: Send + Sync + 'static;

    /// # Errors
    /// When it cannot be had after all; the pod is tried again.
    fn reserve(&self, pod: &PodInfo, node: NodeRef<'_>) -> Result<Self::Held, Rejection>;

    /// The pod does not go there after all. Also called when a later plugin's `reserve` failed.
    fn unreserve(&self, _held: &Self::Held, _pod: &PodInfo, _node: &str) {}
}

/// Whether a pod may be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PermitStatus {
    Allow,
    /// Not yet: it waits at most this long for [`WaitingPods::allow`](super::WaitingPods::allow), and is turned down then.
    Wait(Duration),
    Reject(Rejection),
}

/// Delays or prevents the binding of a pod.
pub trait Permit: Plugin {
    fn permit(&self, pod: &PodInfo, node: &str) -> PermitStatus;
}

/// Does what has to be done before a pod is bound, with what was reserved for it.
pub trait PreBind: Reserve {
    fn prebind<'a>(
        &'a self,
        held: &'a Self::Held,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), Rejection>>;
}

/// How a binding went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindStatus {
    Bound,
    /// Not this plugin's: the next one binds.
    Skip,
    Error(String),
}

/// Binds pods to nodes.
pub trait Bind: Plugin {
    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, BindStatus>;
}

/// Hears of bound pods.
pub trait PostBind: Plugin {
    fn postbind(&self, pod: &PodInfo, node: &str);
}
