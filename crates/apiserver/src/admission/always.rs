//! AlwaysAdmit and AlwaysDeny.

use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Plugin, Request};

pub(super) struct AlwaysAdmit;

#[async_trait]
impl Plugin for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }

    fn handles(&self, _: &Request) -> bool {
        false
    }
}

pub(super) struct AlwaysDeny;

#[async_trait]
impl Plugin for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }

    fn handles(&self, _: &Request) -> bool {
        true
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        Err(request.forbidden("admission control is denying all modifications"))
    }
}
