//! Admission: what a write must look like besides being valid. Mutating plugins run first, then the object is validated,
//! then validating plugins run, each in upstream's order.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::{Gvk, Gvr};
use apimachinery::status::Status;
use async_trait::async_trait;

use crate::attributes::UserInfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write (or connect) on its way to the registry.
pub struct Request {
    pub operation: Operation,
    pub gvr: Gvr,
    pub gvk: Gvk,
    pub subresource: String,
    pub namespace: String,
    /// Empty for a create with `generateName` until the registry has chosen one.
    pub name: String,
    pub user: Arc<UserInfo>,
    pub dry_run: bool,
    /// `CreateOptions`, `UpdateOptions` … as sent.
    pub options: Value,
    /// What is to be stored; `Null` for a deletion.
    pub object: Value,
    /// What is stored; `Null` for a create.
    pub old_object: Value,
    /// Warnings for the client, in order.
    pub warnings: Vec<String>,
    pub audit_annotations: BTreeMap<String, String>,
}

/// A plugin of the chain. Plugins that match nothing of a request cost one comparison: say what is wanted in `handles`.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// Upstream's name, as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    fn handles(&self, request: &Request) -> bool;

    /// May change `request.object`.
    async fn admit(&self, _request: &mut Request) -> Result<(), Status> {
        Ok(())
    }

    /// Must not change the object. (`&mut` for warnings and audit annotations.)
    async fn validate(&self, _request: &mut Request) -> Result<(), Status> {
        Ok(())
    }
}
