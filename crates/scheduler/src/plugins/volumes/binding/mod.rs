//! VolumeBinding: claims that wait for their first consumer get a volume that its node can reach; a volume that is there
//! already is chosen here, one that is to be provisioned is asked for.

mod bind;
mod fit;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::ObjectKey;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use parking_lot::Mutex;
use serde::Deserialize;

use super::{WAIT_FOR_CONSUMER, claim_names, class_of, hint_by_claim, volume_name};
use crate::cluster::{Cluster, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreBind, PreFilter, Rejection,
    Reserve, Reuse, Signature,
};
use crate::listers::Listers;
use crate::pod::PodInfo;
use fit::Choice;

const REASON_IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in super::super) struct Args {
    bind_timeout_seconds: i64,
    /// Taken for a gate that is off: nodes are not scored by their storage.
    shape: Option<serde_json::Value>,
}

impl Default for Args {
    fn default() -> Self {
        Self { bind_timeout_seconds: 600, shape: None }
    }
}

pub(in super::super) struct VolumeBinding {
    client: Option<kube::Client>,
    listers: Listers,
    timeout: Duration,
    assumed: Mutex<Assumed>,
}

/// What was decided and the API server does not tell of yet.
#[derive(Default)]
struct Assumed {
    /// By volume: the claim that it is for.
    volumes: HashMap<String, ObjectKey>,
    /// Nodes that were selected for claims.
    nodes: HashMap<ObjectKey, String>,
}

/// A pod's claims, by how far they are.
#[derive(Clone, Default)]
pub(crate) struct Claims {
    bound: Vec<Arc<PersistentVolumeClaim>>,
    /// Those that this pod is the first consumer of, the smallest first.
    waiting: Vec<Arc<PersistentVolumeClaim>>,
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    !volume_name(claim).is_empty() && annotations.is_some_and(|own| own.contains_key(BIND_COMPLETED))
}

impl VolumeBinding {
    /// # Errors
    /// When the time that it may take is negative.
    pub(in super::super) fn new(args: &Args, client: Option<kube::Client>, listers: &Listers) -> Result<Self, String> {
        let _ = &args.shape;
        let timeout = u64::try_from(args.bind_timeout_seconds).map(Duration::from_secs).map_err(|_| {
            let value = args.bind_timeout_seconds;
            format!(
                "bindTimeoutSeconds: Invalid value: {value}: invalid BindTimeoutSeconds, should not be a negative value"
            )
        })?;
        Ok(Self { client, listers: listers.clone(), timeout, assumed: Mutex::default() })
    }

    /// The pod's claims, or why it cannot have them now.
    fn claims(&self, pod: &PodInfo) -> Result<Claims, Rejection> {
        let mut claims = Claims::default();
        let mut immediate = false;
        for (name, own) in claim_names(&pod.object) {
            let claim = self.checked(pod, &name, own)?;
            if is_bound(&claim) {
                claims.bound.push(claim);
                continue;
            }
            let class = class_of(&claim);
            let waits = !class.is_empty() && {
                let found = self.listers.storage_classes.get(&ObjectKey::cluster(class));
                let missing = || Rejection::unresolvable(format!("storageclass.storage.k8s.io {class:?} not found"));
                let mode = found.ok_or_else(missing)?.volume_binding_mode.clone();
                let unset = || Rejection::Error(format!("VolumeBindingMode not set for StorageClass {class:?}"));
                mode.ok_or_else(unset)? == WAIT_FOR_CONSUMER
            };
            if waits && volume_name(&claim).is_empty() {
                claims.waiting.push(claim);
            } else {
                immediate = true;
            }
        }
        if immediate {
            return Err(Rejection::unresolvable(REASON_IMMEDIATE));
        }
        claims.waiting.sort_by_key(|claim| fit::requested(claim));
        Ok(claims)
    }

    fn checked(&self, pod: &PodInfo, name: &str, own: bool) -> Result<Arc<PersistentVolumeClaim>, Rejection> {
        let Some(claim) = self.listers.claims.get(&ObjectKey::new(pod.namespace(), name)) else {
            return Err(Rejection::unresolvable(if own {
                format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
            } else {
                format!("persistentvolumeclaim {name:?} not found")
            }));
        };
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = volume_name(&claim);
            let why = format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}");
            return Err(Rejection::unresolvable(why));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(Rejection::unresolvable(format!("persistentvolumeclaim {name:?} is being deleted")));
        }
        let owners = claim.metadata.owner_references.iter().flatten();
        if own && !owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == pod.uid.as_str()) {
            let key = ObjectKey::of(&*claim);
            let why = format!("PVC {} was not created for pod {} (pod is not owner)", key.as_str(), pod.key.as_str());
            return Err(Rejection::unresolvable(why));
        }
        Ok(claim)
    }
}

impl Plugin for VolumeBinding {
    const NAME: &'static str = "VolumeBinding";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::StorageClass, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::PersistentVolumeClaim, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::PersistentVolume, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_LABEL)),
        ClusterEvent::new(EventResource::CsiNode, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::CsiDriver, Actions::UPDATE),
        ClusterEvent::new(EventResource::CsiStorageCapacity, Actions::ADD.or(Actions::UPDATE)),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        // Besides a class itself only its topologies change.
        if let (Some(old), Some(new)) = change.object::<StorageClass>() {
            return Hint::queue_if(old.allowed_topologies != new.allowed_topologies);
        }
        hint_by_claim(pod, change)
    }
}

impl Filter for VolumeBinding {
    type State = Claims;

    fn sign(&self, pod: &PodInfo, _: &mut Signature) -> Reuse {
        super::reuse(pod)
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<Claims> {
        if claim_names(&pod.object).next().is_none() {
            return PreFilter::Skip;
        }
        match self.claims(pod) {
            Ok(claims) => PreFilter::Run(claims),
            Err(rejection) => PreFilter::Reject(rejection),
        }
    }

    fn filter(&self, claims: &Claims, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        match self.find(claims, node) {
            Ok(_) => FilterStatus::Success,
            Err(status) => status,
        }
    }
}

impl Reserve for VolumeBinding {
    type Held = Choice;

    fn reserve(&self, pod: &PodInfo, node: NodeRef<'_>) -> Result<Choice, Rejection> {
        if claim_names(&pod.object).next().is_none() {
            return Ok(Choice::default());
        }
        let claims = self.claims(pod)?;
        let choice = self.find(&claims, node).map_err(|status| match status {
            FilterStatus::Unschedulable(reasons) | FilterStatus::UnschedulableAndUnresolvable(reasons) => {
                Rejection::Unschedulable(reasons)
            }
            FilterStatus::Error(error) => Rejection::Error(error),
            FilterStatus::Success => Rejection::Error("no volumes were found".to_owned()),
        })?;
        let mut assumed = self.assumed.lock();
        for (volume, claim) in &choice.bind {
            assumed.volumes.insert(volume.metadata.name.clone().unwrap_or_default(), ObjectKey::of(&**claim));
        }
        for claim in &choice.provision {
            assumed.nodes.insert(ObjectKey::of(&**claim), node.name().to_string());
        }
        Ok(choice)
    }

    fn unreserve(&self, choice: &Choice, _: &PodInfo, _: &str) {
        self.forget(choice);
    }
}

impl PreBind for VolumeBinding {
    fn prebind<'a>(
        &'a self,
        choice: &'a Choice,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), Rejection>> {
        async move {
            let Some(client) = self.client.clone().filter(|_| !choice.is_empty()) else { return Ok(()) };
            self.bind(&client, choice, pod, node).await.map_err(Rejection::Error)?;
            // The cache tells of it by now.
            self.forget(choice);
            Ok(())
        }
        .boxed()
    }
}
