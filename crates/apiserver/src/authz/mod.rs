//! Authorization: may this user do this?

pub(crate) mod modes;
pub mod node;
pub mod rbac;
pub mod rule;

use async_trait::async_trait;

use crate::attributes::Attributes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Deny,
    /// Ask the next authorizer; when all of them say so, the request is denied.
    NoOpinion,
}

/// A decision and the words for it that audit and the 403 carry.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub decision: Decision,
    pub reason: String,
}

#[async_trait]
pub trait Authorizer: Send + Sync {
    async fn authorize(&self, attributes: &Attributes) -> Verdict;
}
