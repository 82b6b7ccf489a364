//! Admission: what a write must look like besides being valid. Mutating plugins run first, then the object is validated,
//! then validating plugins run, each in upstream's order.

mod chain;
mod default_toleration_seconds;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod service_account;
mod taint_nodes_by_condition;

pub use chain::{Settings, UnknownPlugin, plugins};

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

    /// Wants to know what became of the request: it holds something that must be given back if nothing did.
    fn follows(&self, _request: &Request) -> bool {
        false
    }

    /// The request has been stored, or has failed after [`Plugin::admit`].
    async fn finish(&self, _request: &Request, _stored: bool) {}
}

impl Request {
    /// Is it about this resource of the core group, without a subresource?
    #[must_use]
    pub fn is_core(&self, resource: &str) -> bool {
        self.gvr.group.is_empty() && self.gvr.resource == resource && self.subresource.is_empty()
    }

    /// A 403 about this object, in upstream's words.
    #[must_use]
    pub fn forbidden(&self, why: impl AsRef<str>) -> Status {
        Status::forbidden(&self.gvr, &self.name_or_prefix(), why.as_ref())
    }

    fn name_or_prefix(&self) -> String {
        if self.name.is_empty() {
            self.object.str_at(&["metadata", "generateName"]).to_owned()
        } else {
            self.name.clone()
        }
    }
}
