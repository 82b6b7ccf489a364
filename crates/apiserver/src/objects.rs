//! Writing objects from inside the server: what bootstrap and the allocators make goes through the registry like anybody
//! else's writes, without admission.

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use async_trait::async_trait;

/// Implemented by the registry; tests hand in a map.
#[async_trait]
pub trait ObjectWriter: Send + Sync {
    /// # Errors
    /// 409 `AlreadyExists` when it is there; whatever the store says.
    async fn create(&self, gvr: &Gvr, object: Value) -> Result<(), Status>;

    /// Replaces an object; its `resourceVersion` is the precondition.
    ///
    /// # Errors
    /// 409 `Conflict` when it has changed; 404 when it is gone.
    async fn update(&self, gvr: &Gvr, object: Value) -> Result<(), Status>;

    /// # Errors
    /// 404 when it is gone.
    async fn delete(&self, gvr: &Gvr, namespace: &str, name: &str) -> Result<(), Status>;

    /// The object as the store has it now.
    ///
    /// # Errors
    /// 404 when it is not there; 405 from a writer that only writes.
    async fn get(&self, gvr: &Gvr, _namespace: &str, _name: &str) -> Result<Value, Status> {
        Err(Status::method_not_supported(gvr, "get"))
    }

    /// Replaces the status of an object; its `resourceVersion` is the precondition. Gives the object as it is then.
    ///
    /// # Errors
    /// 409 `Conflict` when it has changed; 404 when it is gone; 405 from a writer of whole objects.
    async fn update_status(&self, gvr: &Gvr, _object: Value) -> Result<Value, Status> {
        Err(Status::method_not_supported(gvr, "update"))
    }
}
