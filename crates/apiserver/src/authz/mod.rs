//! Authorization: may this user do this?

pub(crate) mod chain;
pub(crate) mod config;
pub(crate) mod escalation;
pub(crate) mod modes;
pub mod node;
pub mod rbac;
pub mod rule;
pub(crate) mod webhook;

use std::sync::Arc;

use apimachinery::status::Status;
use async_trait::async_trait;

use crate::attributes::{Attributes, RequestInfo, UserInfo};

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

/// Asks the authorizers in turn; the first who has an opinion decides. Without any it is the reasons of all.
pub(crate) async fn judge(authorizers: &[Arc<dyn Authorizer>], attributes: &Attributes) -> Verdict {
    let mut reasons = Vec::new();
    for authorizer in authorizers {
        let verdict = authorizer.authorize(attributes).await;
        match verdict.decision {
            Decision::Allow | Decision::Deny => return verdict,
            Decision::NoOpinion => reasons.push(verdict.reason),
        }
    }
    reasons.retain(|r| !r.is_empty());
    Verdict { decision: Decision::NoOpinion, reason: reasons.join(", ") }
}

/// May they?
///
/// # Errors
/// 403, with the reasons that the authorizers gave.
pub(crate) async fn decide(authorizers: &[Arc<dyn Authorizer>], attributes: &Attributes) -> Result<(), Status> {
    let verdict = judge(authorizers, attributes).await;
    match verdict.decision {
        Decision::Allow => Ok(()),
        Decision::Deny | Decision::NoOpinion => Err(forbidden(&attributes.user, &attributes.request, &verdict.reason)),
    }
}

/// 403 in upstream's words: who may not do what, and why.
pub(crate) fn forbidden(user: &UserInfo, request: &RequestInfo, reason: &str) -> Status {
    let (name, verb) = (&user.name, &request.verb);
    let mut why = if request.is_resource {
        let gvr = &request.gvr;
        let mut resource = gvr.resource.to_string();
        if !request.subresource.is_empty() {
            resource = format!("{resource}/{}", request.subresource);
        }
        let what = format!("User {name:?} cannot {verb} resource {resource:?} in API group {:?}", gvr.group.as_str());
        if request.namespace.is_empty() {
            format!("{what} at the cluster scope")
        } else {
            format!("{what} in the namespace {:?}", request.namespace)
        }
    } else {
        format!("User {name:?} cannot {verb} path {:?}", request.path)
    };
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    Status::forbidden(&request.gvr, &request.name, &why)
}
