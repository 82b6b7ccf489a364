//! A pod as the scheduler sees it: the object, and what is worked out of it once.

mod affinity;
mod ports;

use std::sync::Arc;

use client::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};

pub use affinity::{AffinityTerm, PodAffinityTerms, PodSelection, WeightedTerm};
pub use ports::{HostPort, Protocol};

use crate::resources::{PodRequests, ScalarNames};
use crate::selector::{Labels, labels_of};

/// What tells two pods of the same name apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(Arc<str>);

impl From<&str> for Uid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

impl Uid {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Never changes: a pod that changed is another `PodInfo`.
#[derive(Debug)]
pub struct PodInfo {
    /// Without what only the kubelet reads ([`client::informer::trim_pod`]), unless there are extenders.
    pub object: Arc<Pod>,
    pub key: ObjectKey,
    pub uid: Uid,
    pub priority: i32,
    pub requests: PodRequests,
    /// Ports of the host, of application containers and sidecars.
    pub ports: Box<[HostPort]>,
    pub affinity: Option<Box<PodAffinityTerms>>,
}

impl PodInfo {
    #[must_use]
    pub fn new(object: Arc<Pod>, names: &mut ScalarNames) -> Self {
        let requests = PodRequests::of(&object, names);
        let spec = object.spec.as_ref();
        Self {
            key: ObjectKey::of(&*object),
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            priority: spec.and_then(|spec| spec.priority).unwrap_or_default(),
            requests,
            ports: spec.map(ports::host_ports_of).unwrap_or_default(),
            affinity: PodAffinityTerms::of(&object).map(Box::new),
            object,
        }
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        self.key.namespace()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.key.name()
    }

    #[must_use]
    pub fn labels(&self) -> &Labels {
        labels_of(self.object.metadata.labels.as_ref())
    }

    #[must_use]
    pub fn spec(&self) -> Option<&PodSpec> {
        self.object.spec.as_ref()
    }

    /// The node that the pod is bound to.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        node_name_of(&self.object)
    }

    /// The node that preemption made room on.
    #[must_use]
    pub fn nominated_node(&self) -> Option<&str> {
        let name = self.object.status.as_ref()?.nominated_node_name.as_deref()?;
        (!name.is_empty()).then_some(name)
    }

    #[must_use]
    pub fn scheduler_name(&self) -> &str {
        self.spec().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler")
    }

    #[must_use]
    pub fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
    }

    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// Whether the pod has ended and takes up nothing any more.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        is_terminal(&self.object)
    }

    /// Whether the pod may evict others.
    #[must_use]
    pub fn may_preempt(&self) -> bool {
        self.spec().and_then(|spec| spec.preemption_policy.as_deref()) != Some("Never")
    }

    /// When the pod was started, for choosing whom to evict; a pod that was not started yet counts as started now.
    #[must_use]
    pub fn started(&self, now: Timestamp) -> Timestamp {
        self.object.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(now, |time| time.0)
    }
}

/// The node that a pod is bound to.
#[must_use]
pub fn node_name_of(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

/// Whether the pod's phase is `Succeeded` or `Failed`.
#[must_use]
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
