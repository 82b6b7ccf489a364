//! NamespaceLifecycle: nothing is made in a namespace that does not exist or is being deleted, and the namespaces that the
//! system needs stay.

use std::sync::Arc;

use apimachinery::meta::Gvr;
use apimachinery::status::{Cause, Details, Status};
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, request: &Request) -> bool {
        match request.operation {
            Operation::Delete => request.is_core("namespaces"),
            Operation::Create | Operation::Update => !request.namespace.is_empty() && !request.is_core("namespaces"),
            Operation::Connect => false,
        }
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        if request.operation == Operation::Delete {
            return if IMMORTAL.contains(&request.name.as_str()) {
                Err(request.forbidden("this namespace may not be deleted"))
            } else {
                Ok(())
            };
        }
        // Access reviews are questions, not objects: they may be about namespaces that are not there.
        if request.gvr.group == "authorization.k8s.io" {
            return Ok(());
        }
        let Some(namespace) = self.lister.find("namespaces", "", &request.namespace).await? else {
            let gvr = Gvr::new("", "v1", "namespaces");
            return Err(Status::not_found(&gvr, &request.namespace));
        };
        if request.operation == Operation::Create && namespace.str_at(&["status", "phase"]) == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                request.namespace
            );
            let mut status = request.forbidden(why);
            let cause = Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {} is being terminated", request.namespace),
                field: "metadata.namespace".into(),
            };
            let details = status.details.take().map(|d| *d).unwrap_or_default();
            return Err(status.with_details(Details { causes: vec![cause], ..details }));
        }
        Ok(())
    }
}
