//! What plugins write themselves.

use std::sync::{Arc, OnceLock};

use apimachinery::status::Status;

use crate::objects::ObjectWriter;

/// The server's own access to objects. It is set once the registry exists, which the plugins are themselves a part of.
#[derive(Default)]
pub struct OwnObjects(OnceLock<Arc<dyn ObjectWriter>>);

impl OwnObjects {
    pub fn set(&self, writer: Arc<dyn ObjectWriter>) {
        // A second call would be a mistake in the wiring; the first one stays.
        let _ = self.0.set(writer);
    }

    /// # Errors
    /// While the server is not put together yet.
    pub fn get(&self) -> Result<&Arc<dyn ObjectWriter>, Status> {
        self.0.get().ok_or_else(|| Status::service_unavailable("the server is starting"))
    }
}
