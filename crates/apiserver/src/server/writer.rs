//! The server's own writes: through the registry, as the server itself.

use std::sync::{Arc, Weak};

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{ApiServer, Inner};
use crate::attributes::UserInfo;
use crate::objects::ObjectWriter;
use crate::registry::{DeleteOptions, FieldValidation, Part, Preconditions, Write, WriteOptions};
use crate::resources::Resource;

/// Holds the server weakly: the server's plugins hold this.
pub(crate) struct OwnWriter {
    server: Weak<Inner>,
    user: Arc<UserInfo>,
}

impl OwnWriter {
    pub(crate) fn new(server: &ApiServer) -> Self {
        let user = UserInfo {
            name: "system:apiserver".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..UserInfo::default()
        };
        OwnWriter { server: Arc::downgrade(&server.0), user: Arc::new(user) }
    }

    pub(crate) fn write(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<(Arc<Inner>, Write), Status> {
        let stopping = || Status::service_unavailable("the server is shutting down");
        let server = self.server.upgrade().ok_or_else(stopping)?;
        let resource = server.resources.get(gvr).ok_or_else(Status::no_such_path)?;
        Ok((server, self.write_to(resource, namespace, name)))
    }

    /// A write to a resource that need not be served any more.
    pub(crate) fn write_to(&self, resource: Resource, namespace: &str, name: &str) -> Write {
        let options = WriteOptions {
            dry_run: false,
            field_manager: "kube-apiserver".to_owned(),
            field_validation: FieldValidation::Ignore,
            force: false,
            sent: Value::Null,
        };
        Write {
            resource,
            namespace: namespace.into(),
            name: name.into(),
            subresource: String::new(),
            user: Arc::clone(&self.user),
            options,
            applies: false,
            warnings: Vec::new(),
        }
    }
}

#[async_trait]
impl ObjectWriter for OwnWriter {
    async fn create(&self, gvr: &Gvr, object: Value) -> Result<(), Status> {
        let (server, mut write) = self.write(gvr, object.namespace(), object.name())?;
        server.registry.create(&mut write, object).await.map(drop)
    }

    async fn update(&self, gvr: &Gvr, object: Value) -> Result<(), Status> {
        let (server, mut write) = self.write(gvr, object.namespace(), object.name())?;
        let change = |_: &Value| Ok(object.clone());
        server.registry.update(&mut write, Part::Main, &Preconditions::default(), false, &change).await.map(drop)
    }

    async fn delete(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<(), Status> {
        let (server, mut write) = self.write(gvr, namespace, name)?;
        server.registry.delete(&mut write, &DeleteOptions::default()).await.map(drop)
    }

    async fn get(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<Value, Status> {
        let (server, write) = self.write(gvr, namespace, name)?;
        Ok((*server.registry.get(&write.resource, namespace, name, "").await?.decoded()).clone())
    }

    async fn update_status(&self, gvr: &Gvr, object: Value) -> Result<Value, Status> {
        let (server, mut write) = self.write(gvr, object.namespace(), object.name())?;
        "status".clone_into(&mut write.subresource);
        let change = |_: &Value| Ok(object.clone());
        let preconditions = Preconditions::default();
        let updated = server.registry.update(&mut write, Part::Status, &preconditions, false, &change).await?;
        let mut stored: Value =
            serde_json::from_slice(&updated.stored.body).map_err(|error| Status::internal(error.to_string()))?;
        if let Some(revision) = updated.stored.revision {
            stored.set(&["metadata", "resourceVersion"], revision.0.to_string());
        }
        Ok(stored)
    }
}
