//! Takes API servers that are gone out of StorageVersions: their identity leases are.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ignore_not_found,
    informer::{Event, Lister, Selection, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apiserverinternal::v1alpha1::{StorageVersion, StorageVersionCondition, StorageVersionStatus},
        coordination::v1::Lease,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};

use crate::{context::Context, error::SyncError};

/// Where API servers say that they live, and by which label.
const NAMESPACE: &str = "kube-system";
const IDENTITY: &str = "apiserver.kubernetes.io/identity=kube-apiserver";
const EQUAL: &str = "AllEncodingVersionsEqual";

pub(crate) struct StorageVersionGarbageCollector {
    client: Client,
    versions: SharedInformer<StorageVersion>,
    version_lister: Lister<StorageVersion>,
    leases: SharedInformer<Lease>,
    lease_lister: Lister<Lease>,
}

impl StorageVersionGarbageCollector {
    pub(crate) fn new(context: &Context) -> Self {
        let versions = context.informers.informer::<StorageVersion>();
        let leases = context.informers.namespaced::<Lease>(NAMESPACE, Selection::labels(IDENTITY));
        Self {
            client: context.client.clone(),
            version_lister: versions.lister(),
            versions,
            lease_lister: leases.lister(),
            leases,
        }
    }
}

#[derive(Debug, PartialEq)]
enum Plan {
    Leave,
    Delete,
    Write(StorageVersionStatus),
}

fn plan(version: &StorageVersion, lives: impl Fn(&str) -> bool, now: Timestamp) -> Plan {
    let mut status = version.status.clone().unwrap_or_default();
    let servers = status.storage_versions.get_or_insert_default();
    let before = servers.len();
    servers.retain(|server| lives(&server.api_server_id));
    if servers.len() == before {
        return Plan::Leave;
    }
    let Some(first) = servers.first() else { return Plan::Delete };
    let common = servers.iter().all(|server| server.encoding_version == first.encoding_version);
    status.common_encoding_version = common.then(|| first.encoding_version.clone());
    let (value, reason, message) = if common {
        ("True", "CommonEncodingVersionSet", "Common encoding version set")
    } else {
        ("False", "CommonEncodingVersionUnset", "Common encoding version unset")
    };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().find(|condition| condition.type_ == EQUAL);
    let since = known.filter(|known| known.status == value).and_then(|known| known.last_transition_time.clone());
    conditions.retain(|condition| condition.type_ != EQUAL);
    conditions.push(StorageVersionCondition {
        type_: EQUAL.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: version.metadata.generation,
        last_transition_time: since.or(Some(Time(now))),
    });
    Plan::Write(status)
}

impl Controller for StorageVersionGarbageCollector {
    const NAME: &'static str = "storage_version_garbage_collector";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.versions);
        let versions = self.version_lister.clone();
        watches.map(&self.leases, move |event| match event {
            Event::Deleted(_) => versions.list().iter().map(|version| ObjectKey::of(&**version)).collect(),
            Event::Added(_) | Event::Updated { .. } => Vec::new(),
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(version) = self.version_lister.get(key) else { return Ok(Action::await_change()) };
        // A server's lease is older than what it writes, but our watch of leases may be behind: the API server is asked.
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let mut gone = Vec::new();
        for server in version.status.iter().flat_map(|status| status.storage_versions.iter().flatten()) {
            let id = &server.api_server_id;
            let is_known = self.lease_lister.get(&ObjectKey::new(NAMESPACE, id)).is_some();
            if !is_known && leases.get_opt(id).await?.is_none() {
                gone.push(id.clone());
            }
        }
        let api = Api::<StorageVersion>::all(self.client.clone());
        match plan(&version, |id| !gone.iter().any(|gone| gone == id), Timestamp::now()) {
            Plan::Leave => {}
            Plan::Delete => {
                let preconditions = Preconditions {
                    uid: version.metadata.uid.clone(),
                    resource_version: version.metadata.resource_version.clone(),
                };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                ignore_not_found(api.delete(key.name(), &params).await)?;
            }
            Plan::Write(status) => {
                let written = StorageVersion { status: Some(status), ..(*version).clone() };
                ignore_not_found(api.replace_status(key.name(), &PostParams::default(), &written).await)?;
            }
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apiserverinternal::v1alpha1::ServerStorageVersion;

    use super::*;

    /// `server=version …`; the servers in capitals are gone.
    #[track_caller]
    fn check(servers: &str, want: &str) {
        let server = |word: &str| {
            let (id, version) = word.split_once('=').unwrap();
            ServerStorageVersion {
                api_server_id: id.to_owned(),
                encoding_version: version.to_owned(),
                ..ServerStorageVersion::default()
            }
        };
        let status = StorageVersionStatus {
            storage_versions: Some(servers.split(' ').map(server).collect()),
            ..StorageVersionStatus::default()
        };
        let version = StorageVersion { status: Some(status), ..StorageVersion::default() };
        let got = match plan(&version, |id| id.chars().all(char::is_lowercase), Timestamp::UNIX_EPOCH) {
            Plan::Leave => "leave".to_owned(),
            Plan::Delete => "delete".to_owned(),
            Plan::Write(status) => {
                let ids: Vec<_> = status.storage_versions.iter().flatten().map(|s| s.api_server_id.clone()).collect();
                let reason = &status.conditions.unwrap()[0].reason;
                format!("{} {} {reason}", ids.join(","), status.common_encoding_version.as_deref().unwrap_or("-"))
            }
        };
        assert_eq!(got, want, "{servers}");
    }

    #[test]
    fn servers_that_are_gone_are_forgotten() {
        check("a=v1 b=v1", "leave");
        check("A=v1 B=v1", "delete");
        check("a=v1 B=v2", "a v1 CommonEncodingVersionSet");
        check("a=v1 b=v2 C=v2", "a,b - CommonEncodingVersionUnset");
    }
}
