//! NamespaceExists and NamespaceAutoProvision: the older ways to see to it that a namespace is there.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::own::OwnObjects;
use super::{Operation, Plugin, Request};
use crate::lister::Lister;

fn namespaces() -> Gvr {
    Gvr::new("", "v1", "namespaces")
}

pub(super) struct NamespaceExists {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation != Operation::Connect && !request.namespace.is_empty() && !request.is_core("namespaces")
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        match self.lister.find("namespaces", "", &request.namespace).await? {
            Some(_) => Ok(()),
            None => Err(Status::not_found(&namespaces(), &request.namespace)),
        }
    }
}

pub(super) struct NamespaceAutoProvision {
    pub lister: Arc<dyn Lister>,
    pub own: Arc<OwnObjects>,
}

#[async_trait]
impl Plugin for NamespaceAutoProvision {
    fn name(&self) -> &'static str {
        "NamespaceAutoProvision"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && !request.namespace.is_empty() && !request.is_core("namespaces")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        if request.dry_run || self.lister.find("namespaces", "", &request.namespace).await?.is_some() {
            return Ok(());
        }
        let mut namespace = Value::from([("apiVersion", "v1".into()), ("kind", "Namespace".into())]);
        namespace.set(&["metadata", "name"], request.namespace.as_str());
        match self.own.get()?.create(&namespaces(), namespace).await {
            Err(status) if status.reason != "AlreadyExists" => Err(status),
            _ => Ok(()),
        }
    }
}
