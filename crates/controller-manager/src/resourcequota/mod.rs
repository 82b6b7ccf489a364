//! Keeps what a namespace uses of each of its quotas.

mod counts;
mod usage;

use std::{sync::OnceLock, time::Duration};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Event, Kind, Lister, NAMESPACE_INDEX, SharedInformer},
    workqueue::Queue,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service},
        resource::v1::ResourceClaim,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Api, Client, api::PostParams};

use self::{
    counts::Counts,
    usage::{claim_matches, counted_resource, in_scopes, is_native, pod_matches},
};
use crate::{
    context::Context,
    endpointslice::index_by_namespace,
    error::SyncError,
    pod_resources::{Amounts, add, quantity},
};

pub(crate) struct ResourceQuotaController {
    client: Client,
    quotas: SharedInformer<ResourceQuota>,
    quota_lister: Lister<ResourceQuota>,
    pods: SharedInformer<Pod>,
    services: SharedInformer<Service>,
    claims: SharedInformer<PersistentVolumeClaim>,
    resource_claims: SharedInformer<ResourceClaim>,
    counts: Counts,
    resync: Duration,
    queue: OnceLock<Queue<ObjectKey>>,
}

impl ResourceQuotaController {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let quotas = informers.informer::<ResourceQuota>();
        quotas.add_index(NAMESPACE_INDEX, index_by_namespace);
        let (pods, services) = (informers.informer::<Pod>(), informers.informer::<Service>());
        pods.add_index(NAMESPACE_INDEX, index_by_namespace);
        services.add_index(NAMESPACE_INDEX, index_by_namespace);
        let (claims, resource_claims) = (informers.informer(), informers.informer());
        claims.add_index(NAMESPACE_INDEX, index_by_namespace);
        resource_claims.add_index(NAMESPACE_INDEX, index_by_namespace);
        Self {
            client: context.client.clone(),
            quota_lister: quotas.lister(),
            counts: Counts::new(context.client.clone(), quotas.lister(), context.stop.clone()),
            quotas,
            pods,
            services,
            claims,
            resource_claims,
            resync: context.config.resource_quota_sync_period,
            queue: OnceLock::new(),
        }
    }

    /// Everything that the namespace has within the quota's scopes.
    async fn usage(&self, spec: &ResourceQuotaSpec, namespace: &str) -> Result<Amounts, SyncError> {
        let mut used = Amounts::new();
        let now = Timestamp::now();
        for pod in self.pods.lister().in_namespace(namespace) {
            if in_scopes(spec, |scope| pod_matches(&pod, scope)) {
                add(&mut used, &usage::of_pod(&pod, now));
            }
        }
        for claim in self.claims.lister().in_namespace(namespace) {
            if in_scopes(spec, |scope| claim_matches(&claim, scope)) {
                add(&mut used, &usage::of_claim(&claim));
            }
        }
        // No other object is in any scope.
        if !in_scopes(spec, |_| false) {
            return Ok(used);
        }
        for service in self.services.lister().in_namespace(namespace) {
            add(&mut used, &usage::of_service(&service));
        }
        for claim in self.resource_claims.lister().in_namespace(namespace) {
            add(&mut used, &usage::of_resource_claim(&claim));
        }
        let Some(queue) = self.queue.get() else { return Ok(used) };
        for name in spec.hard.iter().flatten().map(|(name, _)| name).filter(|name| !is_native(name)) {
            let Some((resource, group)) = counted_resource(name) else { continue };
            if let Some(number) = self.counts.count(resource, group, namespace, queue).await? {
                used.insert(name.clone(), usage::count(number));
            }
        }
        Ok(used)
    }
}

/// The status to write; `None` if it is that already. What nothing is known of keeps the last value.
fn plan(quota: &ResourceQuota, used: &Amounts) -> Option<ResourceQuotaStatus> {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let old = quota.status.clone().unwrap_or_default();
    let old_used = old.used.clone().unwrap_or_default();
    let now_used = hard.keys().filter_map(|name| {
        let known = used.get(name).map(|amount| Quantity(amount.to_string()));
        let zero = (is_native(name) || counted_resource(name).is_some()).then(|| Quantity("0".to_owned()));
        Some((name.clone(), known.or_else(|| old_used.get(name).cloned().filter(|_| !is_native(name))).or(zero)?))
    });
    let now_used: std::collections::BTreeMap<_, _> = now_used.collect();
    let is_same = old.hard.as_ref() == Some(&hard)
        && old_used.len() == now_used.len()
        && now_used
            .iter()
            .all(|(name, amount)| old_used.get(name).is_some_and(|old| quantity(old) == quantity(amount)));
    (!is_same).then_some(ResourceQuotaStatus { hard: Some(hard), used: Some(now_used) })
}

/// Whether a change of a quota is a reason to count. Its status is not: admission, which raises it before it lets an object
/// pass, would have its charge taken back by a count that does not know of the object yet.
fn is_asked_anew(event: &Event<ResourceQuota>) -> bool {
    match event {
        Event::Added(_) => true,
        Event::Updated { old, new } => old.spec != new.spec,
        Event::Deleted(_) => false,
    }
}

/// The quotas of a namespace are looked at again when `matters` says so of a change in it: one that frees something, since
/// what takes something has been charged by admission.
fn replenish<K: Kind>(
    watches: &mut Watches,
    informer: &SharedInformer<K>,
    quotas: &Lister<ResourceQuota>,
    matters: impl Fn(&Event<K>) -> bool + Send + Sync + 'static,
) {
    let quotas = quotas.clone();
    watches.map(informer, move |event| {
        if !matters(event) {
            return Vec::new();
        }
        quotas.in_namespace(event.key().namespace()).iter().map(|quota| ObjectKey::of(&**quota)).collect()
    });
}

impl Controller for ResourceQuotaController {
    const NAME: &'static str = "resource_quota_controller_resource_changes";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        // Set once, before any key is worked on.
        let _ = self.queue.set(watches.queue());
        watches.map(&self.quotas, |event| is_asked_anew(event).then(|| event.key()));
        let quotas = &self.quota_lister;
        replenish(watches, &self.pods, quotas, |event| match event {
            Event::Added(_) => false,
            Event::Deleted(_) => true,
            Event::Updated { old, new } => usage::of_pod(old, Timestamp::MIN) != usage::of_pod(new, Timestamp::MIN),
        });
        replenish(watches, &self.services, quotas, |event| match event {
            Event::Added(_) => false,
            Event::Deleted(_) => true,
            Event::Updated { old, new } => usage::of_service(old) != usage::of_service(new),
        });
        replenish(watches, &self.claims, quotas, |event| match event {
            Event::Added(_) => false,
            Event::Deleted(_) => true,
            Event::Updated { old, new } => old.spec != new.spec || old.status != new.status,
        });
        replenish(watches, &self.resource_claims, quotas, |event| matches!(event, Event::Deleted(_)));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(quota) = self.quota_lister.get(key) else { return Ok(Action::await_change()) };
        let spec = quota.spec.clone().unwrap_or_default();
        let used = self.usage(&spec, key.namespace()).await?;
        if let Some(status) = plan(&quota, &used) {
            let mut written = (*quota).clone();
            written.status = Some(status);
            let api = Api::<ResourceQuota>::namespaced(self.client.clone(), key.namespace());
            api.replace_status(key.name(), &PostParams::default(), &written).await?;
        }
        Ok(if self.resync.is_zero() { Action::await_change() } else { Action::requeue(self.resync) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(quota: Value, used: &[(&str, i64)], want: Value) {
        let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
        let used = used.iter().map(|(name, number)| ((*name).to_owned(), usage::count(*number))).collect();
        let used = plan(&quota, &used).map(|status| status.used);
        assert_eq!(serde_json::to_value(used).unwrap(), want);
    }

    #[test]
    fn a_charge_by_admission_is_no_reason_to_count() {
        let quota = |hard: &str, used: &str| {
            let quota = json!({ "spec": { "hard": { "pods": hard } }, "status": { "hard": { "pods": hard }, "used": { "pods": used } } });
            Arc::new(serde_json::from_value::<ResourceQuota>(quota).unwrap())
        };
        assert!(is_asked_anew(&Event::Added(quota("2", "0"))));
        assert!(is_asked_anew(&Event::Updated { old: quota("2", "1"), new: quota("3", "1") }));
        assert!(!is_asked_anew(&Event::Updated { old: quota("2", "1"), new: quota("2", "2") }));
    }

    #[test]
    fn the_status_has_what_the_quota_names_and_is_written_once() {
        let spec = json!({ "hard": { "pods": "10", "secrets": "5" } });
        check(json!({ "spec": spec }), &[("pods", 2), ("cpu", 1)], json!({ "pods": "2", "secrets": "0" }));
        let status = json!({ "hard": spec["hard"], "used": { "pods": "2", "secrets": "7" } });
        check(json!({ "spec": spec, "status": status }), &[("pods", 2)], Value::Null);
        check(json!({ "spec": spec, "status": status }), &[], json!({ "pods": "0", "secrets": "7" }));
    }
}
