//! DenyServiceExternalIPs: nobody draws traffic for addresses to themselves (CVE-2020-8554).

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};

pub(super) struct DenyServiceExternalIps;

#[async_trait]
impl Plugin for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && request.is_core("services")
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        fn given(service: &Value) -> &[Value] {
            service.at(&["spec", "externalIPs"]).items()
        }
        let before = given(&request.old_object);
        if given(&request.object).iter().any(|ip| !before.contains(ip)) {
            return Err(request.forbidden("Use of external IPs is denied by admission control"));
        }
        Ok(())
    }
}
