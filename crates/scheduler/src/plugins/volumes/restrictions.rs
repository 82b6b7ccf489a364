//! VolumeRestrictions: disks that cannot be used twice, and claims that only one pod may use.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Volume};

use super::{claim_names, claim_of, hint_by_claim, volumes_of};
use crate::cluster::{Cluster, NodeRef};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreFilter, Reuse, Signature,
};
use crate::listers::Listers;
use crate::pod::PodInfo;

const REASON_DISK: &str = "node(s) had no available disk";
const REASON_ONE_POD: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

pub(in super::super) struct VolumeRestrictions {
    listers: Listers,
}

impl VolumeRestrictions {
    pub(in super::super) fn new(listers: &Listers) -> Self {
        Self { listers: listers.clone() }
    }
}

/// Claims of the pod that only one pod may use, and how many others do.
#[derive(Clone)]
pub(crate) struct OnePodClaims {
    names: Vec<String>,
    users: usize,
}

impl OnePodClaims {
    fn used_by(&self, other: &PodInfo) -> usize {
        claim_names(&other.object).filter(|(name, _)| self.names.contains(name)).count()
    }
}

fn is_for_one_pod(claim: &PersistentVolumeClaim) -> bool {
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.iter().any(|mode| mode == "ReadWriteOncePod")
}

fn is_disk(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.rbd.is_some()
        || volume.iscsi.is_some()
}

/// Whether the two cannot be on one node. Most kinds of disks can be shared by readers.
fn conflict(a: &Volume, b: &Volume) -> bool {
    let readers = |a: Option<bool>, b: Option<bool>| a == Some(true) && b == Some(true);
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk)
        && a.pd_name == b.pd_name
        && !readers(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store)
        && a.volume_id == b.volume_id
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi)
        && a.iqn == b.iqn
        && !readers(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        let pool = |pool: &Option<String>| pool.clone().unwrap_or_else(|| "rbd".to_owned());
        return a.monitors.iter().any(|own| b.monitors.contains(own))
            && pool(&a.pool) == pool(&b.pool)
            && a.image == b.image
            && !readers(a.read_only, b.read_only);
    }
    false
}

impl Plugin for VolumeRestrictions {
    const NAME: &'static str = "VolumeRestrictions";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE),
        ClusterEvent::new(EventResource::Node, Actions::ADD),
        ClusterEvent::new(EventResource::PersistentVolumeClaim, Actions::ADD.or(Actions::UPDATE)),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        let Change::AssignedPod { old: Some(gone), .. } = change else { return hint_by_claim(pod, change) };
        let shares_claim = gone.namespace() == pod.namespace()
            && claim_names(&pod.object).any(|own| claim_names(&gone.object).any(|other| other == own));
        let shares_disk = || {
            let theirs = volumes_of(&gone.object);
            volumes_of(&pod.object).iter().any(|own| theirs.iter().any(|other| conflict(own, other)))
        };
        Hint::queue_if(shares_claim || shares_disk())
    }
}

impl Filter for VolumeRestrictions {
    type State = OnePodClaims;

    fn sign(&self, pod: &PodInfo, _: &mut Signature) -> Reuse {
        if volumes_of(&pod.object).iter().any(is_disk) { Reuse::Never } else { super::reuse(pod) }
    }

    fn prefilter(&self, pod: &PodInfo, cluster: &mut Cluster) -> PreFilter<OnePodClaims> {
        let mut names = Vec::new();
        for claim in volumes_of(&pod.object).iter().filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
            match claim_of(&self.listers, pod, &claim.claim_name) {
                Ok(found) if is_for_one_pod(&found) => names.push(claim.claim_name.clone()),
                Ok(_) => {}
                Err(rejection) => return PreFilter::Reject(rejection),
            }
        }
        if names.is_empty() && !volumes_of(&pod.object).iter().any(is_disk) {
            return PreFilter::Skip;
        }
        let mut state = OnePodClaims { names, users: 0 };
        if !state.names.is_empty() {
            let pods = cluster.nodes().iter().flat_map(NodeRef::pods);
            let here = pods.filter(|other| other.namespace() == pod.namespace());
            state.users = here.map(|other| state.used_by(other)).sum();
        }
        PreFilter::Run(state)
    }

    fn filter(&self, state: &OnePodClaims, pod: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        for own in volumes_of(&pod.object).iter().filter(|volume| is_disk(volume)) {
            let there = node.pods().iter().flat_map(|other| volumes_of(&other.object));
            if there.into_iter().any(|other| conflict(own, other)) {
                return FilterStatus::unschedulable(REASON_DISK);
            }
        }
        if state.users > 0 { FilterStatus::unschedulable(REASON_ONE_POD) } else { FilterStatus::Success }
    }

    fn add_pod(&self, state: &mut OnePodClaims, pod: &PodInfo, other: &PodInfo, _: NodeRef<'_>) {
        if other.namespace() == pod.namespace() {
            state.users += state.used_by(other);
        }
    }

    fn remove_pod(&self, state: &mut OnePodClaims, pod: &PodInfo, other: &PodInfo, _: NodeRef<'_>) {
        if other.namespace() == pod.namespace() {
            state.users = state.users.saturating_sub(state.used_by(other));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(a: serde_json::Value, b: serde_json::Value, want: bool) {
        let volume = |mut value: serde_json::Value| -> Volume {
            value["name"] = json!("v");
            serde_json::from_value(value).unwrap()
        };
        assert_eq!(conflict(&volume(a.clone()), &volume(b.clone())), want, "{a} {b}");
    }

    #[test]
    fn disks_are_shared_by_readers_only() {
        let gce = |name: &str, read_only: bool| json!({"gcePersistentDisk": {"pdName": name, "readOnly": read_only}});
        check(gce("a", false), gce("a", true), true);
        check(gce("a", true), gce("a", true), false);
        check(gce("a", false), gce("b", false), false);
        let aws = json!({"awsElasticBlockStore": {"volumeID": "x", "readOnly": true}});
        check(aws.clone(), aws, true);
        let rbd = |monitor: &str| json!({"rbd": {"monitors": [monitor, "m"], "image": "i", "pool": "p"}});
        check(rbd("1"), rbd("2"), true);
        check(rbd("1"), json!({"rbd": {"monitors": ["m"], "image": "i"}}), false);
        check(json!({"emptyDir": {}}), json!({"emptyDir": {}}), false);
    }
}
