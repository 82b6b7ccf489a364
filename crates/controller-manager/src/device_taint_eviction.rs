//! Deletes pods that use devices with NoExecute taints, once their claims do not tolerate them any longer.

use std::{collections::HashMap, sync::Arc};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    events::{Recorder, reference},
    informer::{Event, Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Pod, Taint, Toleration},
    resource::v1::{DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice},
};
use kube::Client;
use parking_lot::Mutex;

use crate::{
    context::Context,
    error::SyncError,
    pod::is_leaving,
    taint_eviction::{Plan, evict, plan},
};

/// Finds claims by the pods that use them, and slices by their pool.
const USER_INDEX: &str = "user";
const POOL_INDEX: &str = "pool";

pub(crate) struct DeviceTaintEvictionController {
    client: Client,
    recorder: Recorder,
    slices: SharedInformer<ResourceSlice>,
    slice_lister: Lister<ResourceSlice>,
    claims: SharedInformer<ResourceClaim>,
    claim_lister: Lister<ResourceClaim>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    /// Pods that wait for their time, and since when.
    waiting: Mutex<HashMap<ObjectKey, Timestamp>>,
}

impl DeviceTaintEvictionController {
    pub(crate) fn new(context: &Context) -> Self {
        let slices = context.informers.informer::<ResourceSlice>();
        let claims = context.informers.informer::<ResourceClaim>();
        let pods = context.informers.informer::<Pod>();
        claims.add_index(USER_INDEX, |claim| users(claim).iter().map(ToString::to_string).collect());
        slices.add_index(POOL_INDEX, |slice| vec![pool(&slice.spec.driver, &slice.spec.pool.name)]);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            slice_lister: slices.lister(),
            slices,
            claim_lister: claims.lister(),
            claims,
            pod_lister: pods.lister(),
            pods,
            waiting: Mutex::default(),
        }
    }

    /// What the pod's devices are tainted with, and what is tolerated of each.
    fn taints_of(&self, key: &ObjectKey) -> Vec<(Vec<Taint>, Vec<Toleration>)> {
        let claims = self.claim_lister.by_index(USER_INDEX, key.as_str());
        let results = claims.iter().flat_map(|claim| results(claim));
        let of_result = |result: &DeviceRequestAllocationResult| {
            let slices = self.slice_lister.by_index(POOL_INDEX, &pool(&result.driver, &result.pool));
            (taints_in(&slices, &result.device), result.tolerations.iter().flatten().map(toleration).collect())
        };
        results.map(of_result).filter(|(taints, _): &(Vec<_>, _)| !taints.is_empty()).collect()
    }
}

fn pool(driver: &str, name: &str) -> String {
    format!("{driver}/{name}")
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.iter().filter_map(|status| status.allocation.as_ref());
    allocation.filter_map(|allocation| allocation.devices.as_ref()).flat_map(|devices| devices.results.iter().flatten())
}

fn users(claim: &ResourceClaim) -> Vec<ObjectKey> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let users = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    users.filter(|user| user.resource == "pods").map(|user| ObjectKey::new(namespace, &user.name)).collect()
}

/// Only the newest generation of a pool counts.
fn taints_in(slices: &[Arc<ResourceSlice>], device: &str) -> Vec<Taint> {
    let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
    let current = slices.iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
    let devices = current.flat_map(|slice| slice.spec.devices.iter().flatten()).filter(|known| known.name == device);
    devices.flat_map(|device| device.taints.iter().flatten()).filter(|t| t.effect == "NoExecute").map(taint).collect()
}

fn taint(of_device: &DeviceTaint) -> Taint {
    Taint {
        key: of_device.key.clone(),
        effect: of_device.effect.clone(),
        value: of_device.value.clone(),
        time_added: of_device.time_added.clone(),
    }
}

fn toleration(of_device: &DeviceToleration) -> Toleration {
    Toleration {
        key: of_device.key.clone(),
        effect: of_device.effect.clone(),
        operator: of_device.operator.clone(),
        value: of_device.value.clone(),
        toleration_seconds: of_device.toleration_seconds,
    }
}

/// Each device is judged by its own tolerations; the worst counts.
fn worst(devices: &[(Vec<Taint>, Vec<Toleration>)], since: Timestamp, now: Timestamp) -> Plan {
    let mut worst = Plan::Stay;
    for (taints, tolerations) in devices {
        let taints: Vec<_> = taints.iter().collect();
        worst = match (worst, plan(&taints, tolerations, since, now)) {
            (Plan::Evict, _) | (_, Plan::Evict) => Plan::Evict,
            (Plan::Wait(a), Plan::Wait(b)) => Plan::Wait(a.min(b)),
            (Plan::Wait(left), Plan::Stay) | (Plan::Stay, Plan::Wait(left)) => Plan::Wait(left),
            (Plan::Stay, Plan::Stay) => Plan::Stay,
        };
    }
    worst
}

impl Controller for DeviceTaintEvictionController {
    const NAME: &'static str = "device_taint_eviction";
    type Error = SyncError;

    /// Keys are pods.
    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.claims, |event| {
            let mut keys = event.old().map(|claim| users(claim)).unwrap_or_default();
            keys.extend(event.now().map(|claim| users(claim)).unwrap_or_default());
            keys.sort();
            keys.dedup();
            keys
        });
        let claims = self.claim_lister.clone();
        watches.map(&self.slices, move |event| {
            let spec = &event.object().spec;
            let changed = match event {
                Event::Updated { old, new } => old.spec != new.spec,
                Event::Added(_) | Event::Deleted(_) => true,
            };
            if !changed {
                return Vec::new();
            }
            let uses = |claim: &ResourceClaim| {
                results(claim).any(|result| result.driver == spec.driver && result.pool == spec.pool.name)
            };
            claims.filter(uses).iter().flat_map(|claim| users(claim)).collect()
        });
        watches.map(&self.pods, |event| {
            let claims = event.object().spec.as_ref().and_then(|spec| spec.resource_claims.as_ref());
            let has_claims = claims.is_some_and(|claims| !claims.is_empty());
            (has_claims && !matches!(event, Event::Updated { .. })).then(|| event.key())
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(pod) = self.pod_lister.get(key).filter(|pod| !is_leaving(pod)) else {
            self.waiting.lock().remove(key);
            return Ok(Action::await_change());
        };
        let now = Timestamp::now();
        let since = self.waiting.lock().get(key).copied();
        match worst(&self.taints_of(key), since.unwrap_or(now), now) {
            Plan::Stay => {
                if self.waiting.lock().remove(key).is_some() {
                    let about = reference(&*pod);
                    self.recorder.normal(&about, "DeviceTaintManagerEviction", "Cancelling deletion");
                }
                Ok(Action::await_change())
            }
            Plan::Wait(left) => {
                self.waiting.lock().entry(key.clone()).or_insert(now);
                Ok(Action::requeue(left))
            }
            Plan::Evict => {
                self.recorder.normal(&reference(&*pod), "DeviceTaintManagerEviction", "Marking for deletion");
                let message = "Device Taint manager: deleting due to NoExecute taint";
                evict(&self.client, &pod, "DeletionByDeviceTaintManager", message).await?;
                self.waiting.lock().remove(key);
                Ok(Action::await_change())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn slice(generation: i64, taints: Value) -> Arc<ResourceSlice> {
        Arc::new(
            serde_json::from_value(json!({ "spec": {
                "driver": "d", "pool": { "name": "p", "generation": generation, "resourceSliceCount": 1 },
                "devices": [{ "name": "gpu0", "taints": taints }],
            } }))
            .unwrap(),
        )
    }

    #[test]
    fn the_newest_generation_tells_the_taints() {
        let broken = json!([{ "key": "broken", "effect": "NoExecute" }, { "key": "old", "effect": "NoSchedule" }]);
        let slices = [slice(1, json!([])), slice(2, broken.clone())];
        assert_eq!(taints_in(&slices, "gpu0").len(), 1);
        assert_eq!(taints_in(&slices, "gpu1").len(), 0);
        assert_eq!(taints_in(&[slice(1, broken), slice(2, json!([]))], "gpu0").len(), 0);
    }

    #[track_caller]
    fn check(devices: &[(i64, Option<i64>)], want: Plan) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let taint = |added| Taint {
            key: "broken".into(),
            effect: "NoExecute".into(),
            time_added: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(added))),
            value: None,
        };
        let toleration = |seconds| Toleration {
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        let devices: Vec<_> = devices.iter().map(|(added, s)| (vec![taint(*added)], vec![toleration(*s)])).collect();
        assert_eq!(worst(&devices, at(100), at(100)), want);
    }

    #[test]
    fn the_shortest_toleration_of_all_devices_counts() {
        check(&[], Plan::Stay);
        check(&[(90, None)], Plan::Stay);
        check(&[(90, None), (90, Some(60)), (90, Some(30))], Plan::Wait(Duration::from_secs(20)));
        check(&[(90, Some(60)), (90, Some(5))], Plan::Evict);
    }
}
