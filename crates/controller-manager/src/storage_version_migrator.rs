//! Lets the API server write all objects of a resource anew, so that they are stored as it stores them now.
//!
//! `status.resourceVersion` is where the migration began: whatever was written after it is stored in the new way already.
//! So a migration that was interrupted goes on with what is left of it, by looking at all objects again.

use std::time::Duration;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Lister, SharedInformer},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::storagemigration::v1beta1::StorageVersionMigration,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ObjectMeta, PartialObjectMeta},
};
use serde_json::json;

use crate::{
    context::Context,
    discovery::{Resource, discover},
    error::SyncError,
    pod_control::said,
};

const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";
/// The manager of the empty patches.
const MANAGER: &str = "storage-version-migrator-controller";
/// For how long a resource that is not served may still appear: its definition may have been made just now.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Objects of one list.
const CHUNK: u32 = 500;

pub(crate) struct StorageVersionMigrator {
    client: Client,
    migrations: SharedInformer<StorageVersionMigration>,
    lister: Lister<StorageVersionMigration>,
}

impl StorageVersionMigrator {
    pub(crate) fn new(context: &Context) -> Self {
        let migrations = context.informers.informer::<StorageVersionMigration>();
        Self { client: context.client.clone(), lister: migrations.lister(), migrations }
    }

    async fn find(&self, migration: &StorageVersionMigration) -> Result<Option<Resource>, SyncError> {
        let Some(wanted) = migration.spec.as_ref().map(|spec| &spec.resource) else { return Ok(None) };
        let all = discover(&self.client).await?.resources;
        let is_it = |resource: &Resource| resource.api.group == wanted.group && resource.api.plural == wanted.resource;
        Ok(all.into_iter().find(|resource| is_it(resource) && resource.can("list") && resource.can("patch")))
    }

    /// Writes the migration's new status. A conflict leaves the rest to the next look.
    async fn write(&self, migration: &StorageVersionMigration) -> Result<StorageVersionMigration, SyncError> {
        let api = Api::<StorageVersionMigration>::all(self.client.clone());
        let name = migration.metadata.name.as_deref().unwrap_or_default();
        Ok(api.replace_status(name, &PostParams::default(), migration).await?)
    }

    async fn say(
        &self,
        migration: StorageVersionMigration,
        condition: &str,
        reason: &str,
        message: &str,
    ) -> Result<StorageVersionMigration, SyncError> {
        let mut said = migration;
        set_condition(&mut said, condition, reason, message, Timestamp::now());
        self.write(&said).await
    }

    /// Writes each object anew that was last written before the migration began. The failure of one that the server will
    /// never take ends it.
    async fn migrate(&self, resource: &Resource, began: u64) -> Result<(), kube::Error> {
        let all = Api::<DynamicObject>::all_with(self.client.clone(), &resource.api);
        let mut params = ListParams::default().limit(CHUNK);
        loop {
            let list = all.list_metadata(&params).await?;
            for object in list.items.iter().filter(|object| is_older(&object.metadata, began)) {
                self.touch(resource, object).await?;
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    /// An empty patch: what is stored is read and written again.
    async fn touch(&self, resource: &Resource, object: &PartialObjectMeta<DynamicObject>) -> Result<(), kube::Error> {
        let metadata = &object.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let api: Api<DynamicObject> = match metadata.namespace.as_deref().filter(|_| resource.is_namespaced) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource.api),
            None => Api::all_with(self.client.clone(), &resource.api),
        };
        // With both, an object that was replaced or written meanwhile gives a conflict: it is stored in the new way.
        let patch = json!({
            "apiVersion": resource.api.api_version,
            "kind": resource.api.kind,
            "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version },
        });
        match api.patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(patch)).await {
            Err(err) if !(err.is_conflict() || err.is_not_found()) => Err(err),
            _ => Ok(()),
        }
    }
}

fn has(migration: &StorageVersionMigration, condition: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|known| known.type_ == condition && known.status == "True")
}

/// The condition becomes true; one that ends the migration ends its running.
fn set_condition(
    migration: &mut StorageVersionMigration,
    condition: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let generation = migration.metadata.generation;
    let conditions = migration.status.get_or_insert_default().conditions.get_or_insert_default();
    if condition != RUNNING
        && let Some(running) = conditions.iter_mut().find(|known| known.type_ == RUNNING && known.status == "True")
    {
        running.status = "False".to_owned();
        running.last_transition_time = Time(now);
    }
    conditions.retain(|known| known.type_ != condition);
    conditions.push(Condition {
        type_: condition.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: Time(now),
    });
}

/// Was it last written before that? What cannot be told is written again.
fn is_older(metadata: &ObjectMeta, began: u64) -> bool {
    let version = metadata.resource_version.as_deref().and_then(|version| version.parse::<u64>().ok());
    version.is_none_or(|version| version <= began)
}

/// Will the same request be refused again?
fn is_final(err: &kube::Error) -> bool {
    err.status().is_some_and(|status| (400..500).contains(&status.code) && ![401, 408, 410, 429].contains(&status.code))
}

impl Controller for StorageVersionMigrator {
    const NAME: &'static str = "storage-version-migrator-controller";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.migrations);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(migration) = self.lister.get(key) else { return Ok(Action::await_change()) };
        if migration.metadata.deletion_timestamp.is_some() || has(&migration, SUCCEEDED) || has(&migration, FAILED) {
            return Ok(Action::await_change());
        }
        let mut migration = (*migration).clone();
        let Some(resource) = self.find(&migration).await? else {
            let made = migration.metadata.creation_timestamp.as_ref().map(|time| time.0);
            if made.is_some_and(|made| Timestamp::now().duration_since(made) < PATIENCE) {
                return Ok(Action::requeue(LOOK_AGAIN));
            }
            self.say(migration, FAILED, "StorageVersionMigrationFailed", "resource not found").await?;
            return Ok(Action::await_change());
        };
        if migration.status.as_ref().and_then(|status| status.resource_version.as_deref()).is_none_or(str::is_empty) {
            let all = Api::<DynamicObject>::all_with(self.client.clone(), &resource.api);
            let now = all.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version;
            migration.status.get_or_insert_default().resource_version = now;
            migration = self.write(&migration).await?;
        }
        let began = migration.status.as_ref().and_then(|status| status.resource_version.as_deref()?.parse().ok());
        let Some(began) = began else {
            let message = "resource version is not a number";
            self.say(migration, FAILED, "StorageVersionMigrationFailed", message).await?;
            return Ok(Action::await_change());
        };
        if !has(&migration, RUNNING) {
            migration = self.say(migration, RUNNING, "StorageVersionMigrationInProgress", "").await?;
        }
        match self.migrate(&resource, began).await {
            Ok(()) => self.say(migration, SUCCEEDED, "StorageVersionMigrationSucceeded", "").await?,
            Err(err) if is_final(&err) => {
                tracing::error!(migration = %key, error = said(&err), "an object cannot be migrated");
                let message = "migration encountered unhandled error";
                self.say(migration, FAILED, "StorageVersionMigrationFailed", message).await?
            }
            Err(err) => return Err(err.into()),
        };
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_migration_ends_its_running() {
        let mut migration = StorageVersionMigration::default();
        let now = Timestamp::UNIX_EPOCH;
        set_condition(&mut migration, RUNNING, "StorageVersionMigrationInProgress", "", now);
        assert!(has(&migration, RUNNING));
        set_condition(&mut migration, SUCCEEDED, "StorageVersionMigrationSucceeded", "", now);
        assert!(has(&migration, SUCCEEDED) && !has(&migration, RUNNING));
        let types: Vec<_> = migration.status.unwrap().conditions.unwrap().into_iter().map(|c| c.type_).collect();
        assert_eq!(types, [RUNNING, SUCCEEDED]);
    }

    #[test]
    fn what_was_written_since_is_left_alone() {
        let at = |version: &str| ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() };
        assert!(is_older(&at("7"), 7));
        assert!(!is_older(&at("8"), 7));
        assert!(is_older(&at("x"), 7));
    }
}
