//! The simplest authorizers.

use async_trait::async_trait;

use super::{Authorizer, Decision, Verdict};
use crate::attributes::Attributes;

/// Members of `system:masters` may do everything, whatever the mode.
pub(crate) struct Masters;

pub(crate) struct AlwaysAllow;

pub(crate) struct AlwaysDeny;

#[async_trait]
impl Authorizer for Masters {
    async fn authorize(&self, attributes: &Attributes) -> Verdict {
        let is_master = attributes.user.is_in("system:masters");
        let decision = if is_master { Decision::Allow } else { Decision::NoOpinion };
        Verdict { decision, reason: String::new() }
    }
}

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _: &Attributes) -> Verdict {
        Verdict { decision: Decision::Allow, reason: String::new() }
    }
}

#[async_trait]
impl Authorizer for AlwaysDeny {
    async fn authorize(&self, _: &Attributes) -> Verdict {
        Verdict { decision: Decision::NoOpinion, reason: "Everything is forbidden.".to_owned() }
    }
}
