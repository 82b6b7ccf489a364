//! Adding and taking away one finalizer of an object.

use client::{
    error::{ApiError, ignore_not_found},
    informer::Kind,
};
use kube::{Api, api::PostParams};

use crate::error::SyncError;

pub(crate) fn has_finalizer<K: Kind>(object: &K, name: &str) -> bool {
    object.meta().finalizers.iter().flatten().any(|known| known == name)
}

pub(crate) async fn add_finalizer<K: Kind + serde::Serialize>(
    api: &Api<K>,
    object: &K,
    name: &str,
) -> Result<(), SyncError> {
    let mut written = object.clone();
    written.meta_mut().finalizers.get_or_insert_default().push(name.to_owned());
    write(api, &written).await
}

pub(crate) async fn remove_finalizer<K: Kind + serde::Serialize>(
    api: &Api<K>,
    object: &K,
    name: &str,
) -> Result<(), SyncError> {
    let mut written = object.clone();
    if let Some(finalizers) = &mut written.meta_mut().finalizers {
        finalizers.retain(|known| known != name);
    }
    write(api, &written).await
}

/// Writes the object as it was seen: whoever changed it meanwhile leads to another look.
async fn write<K: Kind + serde::Serialize>(api: &Api<K>, object: &K) -> Result<(), SyncError> {
    let name = object.meta().name.as_deref().unwrap_or_default();
    match ignore_not_found(api.replace(name, &PostParams::default(), object).await) {
        Ok(_) => Ok(()),
        Err(err) if err.is_invalid() && object.meta().deletion_timestamp.is_some() => Ok(()),
        Err(err) => Err(err.into()),
    }
}
