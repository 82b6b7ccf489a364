//! LimitPodHardAntiAffinityTopology: no pod keeps others out of more than a node.

use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};

const HOSTNAME: &str = "kubernetes.io/hostname";

pub(super) struct LimitPodHardAntiAffinityTopology;

#[async_trait]
impl Plugin for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && request.is_core("pods")
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let path = &["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
        let terms = request.object.at(path).items().iter();
        match terms.map(|term| term.str_at(&["topologyKey"])).find(|key| *key != HOSTNAME) {
            None => Ok(()),
            Some(key) => Err(request.forbidden(format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
            ))),
        }
    }
}
