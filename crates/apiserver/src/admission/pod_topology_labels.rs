//! PodTopologyLabels: a pod carries the zone and the region of its node (KEP-4742).

use std::sync::Arc;

use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const LABELS: &[&str] = &["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

pub(super) struct PodTopologyLabels {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create
            && (request.is_core("pods") || request.is_core("bindings") || request.is_core_part("pods", "binding"))
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let node = if request.is_core("pods") {
            request.object.str_at(&["spec", "nodeName"])
        } else {
            // Whatever is no node has no topology.
            let kind = request.object.str_at(&["target", "kind"]);
            if kind.is_empty() || kind == "Node" { request.object.str_at(&["target", "name"]) } else { "" }
        };
        if node.is_empty() {
            return Ok(());
        }
        // A node that is not there yet has none either: static pods come before their node.
        let Some(node) = self.lister.get("nodes", "", node) else { return Ok(()) };
        for label in LABELS {
            if let Some(value) = node.label(label) {
                request.object.set(&["metadata", "labels", label], value);
            }
        }
        Ok(())
    }
}
