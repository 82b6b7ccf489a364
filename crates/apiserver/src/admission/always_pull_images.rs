//! AlwaysPullImages: nobody runs an image that only somebody else had the right to pull.

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::pod_images::{self, LISTS};
use super::{Plugin, Request};

pub(super) struct AlwaysPullImages;

#[async_trait]
impl Plugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, request: &Request) -> bool {
        pod_images::runs_others(request)
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
