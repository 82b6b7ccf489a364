//! Marks and then deletes secrets with tokens of old that nobody has used for a long time.

use std::time::Duration;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    informer::{Lister, Selection, SharedInformer},
};
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};

use crate::{context::Context, error::SyncError};

const NAMESPACE: &str = "kube-system";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The only key: a look at everything.
const SWEEP: &str = "sweep";

pub(crate) struct LegacyTokenCleaner {
    client: Client,
    period: Duration,
    accounts: SharedInformer<ServiceAccount>,
    account_lister: Lister<ServiceAccount>,
    secrets: SharedInformer<Secret>,
    secret_lister: Lister<Secret>,
    /// May list pods. The cache does not keep which secrets they mount, and this is asked for seldom.
    reader: Client,
}

impl LegacyTokenCleaner {
    pub(crate) fn new(context: &Context) -> Self {
        let accounts = context.informers.informer::<ServiceAccount>();
        let secrets =
            context.informers.selected::<Secret>(Selection::fields("type=kubernetes.io/service-account-token"));
        Self {
            client: context.client.clone(),
            period: context.config.legacy_token_clean_up_period,
            account_lister: accounts.lister(),
            accounts,
            secret_lister: secrets.lister(),
            secrets,
            reader: context.informers.client().clone(),
        }
    }

    /// Since when uses are tracked; only then "never used" means something.
    async fn tracked_since(&self) -> Result<Option<Timestamp>, SyncError> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), NAMESPACE);
        let map = api.get_opt(TRACKING).await?;
        let since = map.and_then(|map| map.data).and_then(|data| data.get("since").cloned());
        Ok(since.and_then(|text| end_of_day(&text)))
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), SyncError> {
        let Ok(horizon) = SignedDuration::try_from(self.period).map(|period| now - period) else { return Ok(()) };
        if self.tracked_since().await?.is_none_or(|since| since > horizon) {
            return Ok(());
        }
        for account in self.account_lister.list() {
            let namespace = account.metadata.namespace.as_deref().unwrap_or_default();
            for named in account.secrets.iter().flatten() {
                let key = ObjectKey::new(namespace, named.name.as_deref().unwrap_or_default());
                let Some(secret) = self.secret_lister.get(&key) else { continue };
                let uid = secret.metadata.annotations.as_ref().and_then(|all| all.get(ACCOUNT_UID));
                let plan = plan(&secret, horizon);
                if uid != account.metadata.uid.as_ref() || plan == Plan::Leave || self.is_mounted(&key).await? {
                    continue;
                }
                self.act(&key, &secret, plan, now).await?;
            }
        }
        Ok(())
    }

    async fn is_mounted(&self, secret: &ObjectKey) -> Result<bool, SyncError> {
        let api = Api::<Pod>::namespaced(self.reader.clone(), secret.namespace());
        let pods = api.list(&ListParams::default()).await?;
        Ok(pods.items.iter().any(|pod| mounts(pod, secret.name())))
    }

    async fn act(&self, key: &ObjectKey, secret: &Secret, plan: Plan, now: Timestamp) -> Result<(), SyncError> {
        let api = Api::<Secret>::namespaced(self.client.clone(), key.namespace());
        let outcome = match plan {
            Plan::Leave => return Ok(()),
            Plan::Mark => {
                let mut marked = secret.clone();
                let today = now.strftime("%Y-%m-%d").to_string();
                marked.metadata.labels.get_or_insert_default().insert(INVALID_SINCE.to_owned(), today);
                ignore_not_found(api.replace(key.name(), &PostParams::default(), &marked).await).map(drop)
            }
            Plan::Delete => {
                let same = Preconditions {
                    uid: secret.metadata.uid.clone(),
                    resource_version: secret.metadata.resource_version.clone(),
                };
                let params = DeleteParams::default().preconditions(same);
                ignore_not_found(api.delete(key.name(), &params).await).map(drop)
            }
        };
        match outcome {
            // It was used or changed just now; the next look will see.
            Err(err) if !err.is_conflict() => Err(err.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn mounts(pod: &Pod, secret: &str) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref()).any(|name| name == secret)
}

/// Dates have no time: the latest that is meant.
fn end_of_day(text: &str) -> Option<Timestamp> {
    let day: Date = text.parse().ok()?;
    Some(day.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Leave,
    Mark,
    Delete,
}

/// `horizon`: what was used, made or marked after it stays as it is.
fn plan(secret: &Secret, horizon: Timestamp) -> Plan {
    let label = |name: &str| secret.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let is_recent = |name: &str| label(name).and_then(|text| end_of_day(text)).is_some_and(|end| end > horizon);
    let created = secret.metadata.creation_timestamp.as_ref();
    if created.is_some_and(|created| created.0 > horizon) || is_recent(LAST_USED) {
        return Plan::Leave;
    }
    match label(INVALID_SINCE) {
        None => Plan::Mark,
        Some(_) if is_recent(INVALID_SINCE) => Plan::Leave,
        Some(text) if end_of_day(text).is_none() => Plan::Mark,
        Some(_) => Plan::Delete,
    }
}

impl Controller for LegacyTokenCleaner {
    const NAME: &'static str = "legacy_service_account_token_cleaner";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.read(&self.accounts);
        watches.read(&self.secrets);
        watches.queue().add(ObjectKey::cluster(SWEEP));
    }

    async fn reconcile(&self, _: &ObjectKey) -> Result<Action, SyncError> {
        self.sweep(Timestamp::now()).await?;
        Ok(Action::requeue(self.period.min(DAY)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(labels: Value, want: Plan) {
        let meta = json!({ "creationTimestamp": "2020-01-01T00:00:00Z", "labels": labels });
        let secret = serde_json::from_value(json!({ "metadata": meta })).unwrap();
        assert_eq!(plan(&secret, "2026-01-01T00:00:00Z".parse().unwrap()), want);
    }

    #[test]
    fn what_nobody_uses_is_marked_and_a_period_later_deleted() {
        check(json!({}), Plan::Mark);
        check(json!({ LAST_USED: "2026-02-01" }), Plan::Leave);
        check(json!({ LAST_USED: "2025-02-01" }), Plan::Mark);
        check(json!({ INVALID_SINCE: "2026-02-01" }), Plan::Leave);
        check(json!({ INVALID_SINCE: "2025-02-01" }), Plan::Delete);
        check(json!({ INVALID_SINCE: "nonsense" }), Plan::Mark);
    }
}
