//! Runs a write through the admission plugins.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;

use super::Write;
use crate::admission::{Operation, Plugin, Request};

/// The plugins in upstream's order.
#[derive(Clone, Default)]
pub struct Admission {
    plugins: Vec<Arc<dyn Plugin>>,
}

impl Admission {
    #[must_use]
    pub fn new(plugins: Vec<Arc<dyn Plugin>>) -> Self {
        Admission { plugins }
    }

    /// Lets the mutating plugins change `request.object`.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let admitted = self.admit_and_again(request).await;
        note(request);
        admitted
    }

    async fn admit_and_again(&self, request: &mut Request) -> Result<(), Status> {
        self.admit_once(request).await?;
        if request.reinvoke {
            request.again = true;
            self.admit_once(request).await?;
        }
        Ok(())
    }

    async fn admit_once(&self, request: &mut Request) -> Result<(), Status> {
        for plugin in &self.plugins {
            if plugin.handles(request) {
                plugin.admit(request).await?;
            }
        }
        Ok(())
    }

    /// Some plugin wants to know what becomes of the request.
    #[must_use]
    pub(crate) fn follows(&self, request: &Request) -> bool {
        self.plugins.iter().any(|plugin| plugin.follows(request))
    }

    /// Tells the plugins that follow the request what became of it.
    pub(crate) async fn finish(&self, request: &Request, stored: bool) {
        for plugin in self.plugins.iter().filter(|plugin| plugin.follows(request)) {
            plugin.finish(request, stored).await;
        }
    }

    /// Asks the validating plugins.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let validated = self.validate_each(request).await;
        note(request);
        validated
    }

    async fn validate_each(&self, request: &mut Request) -> Result<(), Status> {
        for plugin in &self.plugins {
            if plugin.handles(request) {
                plugin.validate(request).await?;
            }
        }
        Ok(())
    }
}

/// What plugins have to say to whoever reads the audit log.
fn note(request: &mut Request) {
    for (key, value) in std::mem::take(&mut request.audit_annotations) {
        crate::audit::annotate(&key, &value);
    }
}

impl Write {
    /// The write as admission sees it.
    #[must_use]
    pub fn admission_request(&self, operation: Operation, object: Value, old_object: Value) -> Request {
        let def = self.resource.def;
        let gvk = def.subresource(&self.subresource).map_or_else(|| def.gvk(), |s| s.gvk.clone());
        Request {
            operation,
            gvr: def.gvr.clone(),
            gvk,
            subresource: self.subresource.clone(),
            namespace: self.namespace.to_string(),
            name: self.name.to_string(),
            user: Arc::clone(&self.user),
            dry_run: self.options.dry_run,
            options: self.options.sent.clone(),
            object,
            old_object,
            warnings: Vec::new(),
            audit_annotations: std::collections::BTreeMap::new(),
            reinvoke: false,
            again: false,
            asked: Vec::new(),
        }
    }
}
