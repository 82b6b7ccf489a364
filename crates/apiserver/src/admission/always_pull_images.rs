//! AlwaysPullImages: nobody runs an image that only somebody else had the right to pull.

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};

const LISTS: &[&str] = &["initContainers", "containers", "ephemeralContainers"];

pub(super) struct AlwaysPullImages;

#[async_trait]
impl Plugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, request: &Request) -> bool {
        let is_pod = request.is_core("pods") || request.is_core_part("pods", "ephemeralcontainers");
        match request.operation {
            Operation::Create => is_pod,
            Operation::Update => is_pod && images(&request.object) != images(&request.old_object),
            Operation::Delete | Operation::Connect => false,
        }
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let spec = request.object.entry(&["spec"]);
        for list in LISTS {
            for container in spec.get_mut(list).map(Value::items_mut).unwrap_or_default() {
                container.set(&["imagePullPolicy"], "Always");
            }
        }
        for volume in spec.get_mut("volumes").map(Value::items_mut).unwrap_or_default() {
            if !volume["image"].is_null() {
                volume.set(&["image", "pullPolicy"], "Always");
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let spec = &request.object["spec"];
        for list in LISTS {
            for (i, container) in spec[*list].items().iter().enumerate() {
                let policy = container.str_at(&["imagePullPolicy"]);
                if policy != "Always" {
                    return Err(request.forbidden(format!(
                        "spec.{list}[{i}].imagePullPolicy: Unsupported value: {policy:?}: supported values: \"Always\""
                    )));
                }
            }
        }
        Ok(())
    }
}

fn images(pod: &Value) -> Vec<&str> {
    LISTS.iter().flat_map(|list| pod["spec"][*list].items()).map(|c| c.str_at(&["image"])).collect()
}
