//! Admission: what a write must look like besides being valid. Mutating plugins run first, then the object is validated,
//! then validating plugins run, each in upstream's order.

mod always;
mod always_pull_images;
mod certificate_subject_restriction;
mod chain;
mod config;
mod default_classes;
mod default_toleration_seconds;
mod deny_service_external_ips;
mod dynamic;
mod event_rate_limit;
mod extended_resource_toleration;
mod image_policy_webhook;
mod limit_pod_hard_anti_affinity_topology;
mod limit_ranger;
mod namespace_lifecycle;
mod namespaces;
mod node_restriction;
mod own;
mod owner_references_permission_enforcement;
mod persistent_volume_claim_resize;
mod pod;
mod pod_images;
mod pod_node_selector;
mod pod_resize_validator;
mod pod_security;
mod pod_toleration_restriction;
mod pod_topology_labels;
mod policy;
mod priority;
mod quota;
mod runtime_class;
mod service_account;
mod signers;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
mod tolerations;
mod webhook;

pub use chain::{PluginError, Settings, Tools, plugins};
pub use config::{PluginConfigs, load as load_config};
pub use own::OwnObjects;
pub(crate) use policy::{check_policy, check_webhooks};

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
    /// A webhook changed the object: the mutating plugins want to see it once more.
    pub reinvoke: bool,
    /// They are seeing it once more.
    pub again: bool,
    /// The webhooks that were asked, each with the object as it left it.
    pub asked: Vec<(String, Value)>,
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
    /// Is it about this resource, without a subresource?
    #[must_use]
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.gvr.group == group && self.gvr.resource == resource && self.subresource.is_empty()
    }

    /// Is it about this resource of the core group, without a subresource?
    #[must_use]
    pub fn is_core(&self, resource: &str) -> bool {
        self.is("", resource)
    }

    /// Is it about this subresource of a resource of the core group?
    #[must_use]
    pub fn is_core_part(&self, resource: &str, subresource: &str) -> bool {
        self.gvr.group.is_empty() && self.gvr.resource == resource && self.subresource == subresource
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

/// Requests for tests of plugins.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A request of nobody about an object of the core group in the namespace `ns`.
    pub(crate) fn request(operation: Operation, resource: &str, object: &str) -> Request {
        let object: Value = serde_json::from_str(object).unwrap();
        Request {
            operation,
            gvr: Gvr::new("", "v1", resource),
            gvk: Gvk::new("", "v1", object.kind()),
            subresource: String::new(),
            namespace: "ns".to_owned(),
            name: object.name().to_owned(),
            user: Arc::default(),
            dry_run: false,
            options: Value::Null,
            object,
            old_object: Value::Null,
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
            reinvoke: false,
            again: false,
            asked: Vec::new(),
        }
    }
}
