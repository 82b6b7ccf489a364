//! Authorization: may this user do this?

pub(crate) mod chain;
pub(crate) mod config;
pub(crate) mod escalation;
pub(crate) mod modes;
pub mod node;
pub mod rbac;
pub mod rule;
pub(crate) mod selectors;
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
    first_opinion(authorizers.iter().map(Arc::as_ref), attributes).await.0
}

/// As [`judge`]; tells too which of them decided.
async fn first_opinion<'a>(
    authorizers: impl Iterator<Item = &'a dyn Authorizer> + Send,
    attributes: &Attributes,
) -> (Verdict, Option<usize>) {
    let mut reasons = Vec::new();
    for (nth, authorizer) in authorizers.enumerate() {
        let verdict = authorizer.authorize(attributes).await;
        match verdict.decision {
            Decision::Allow | Decision::Deny => return (verdict, Some(nth)),
            Decision::NoOpinion => reasons.push(verdict.reason),
        }
    }
    reasons.retain(|reason| !reason.is_empty());
    (Verdict { decision: Decision::NoOpinion, reason: reasons.join("\n") }, None)
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

#[cfg(test)]
mod tests {
    use super::modes::{AlwaysAllow, AlwaysDeny};
    use super::*;

    #[tokio::test]
    async fn the_first_opinion_counts_and_without_any_all_reasons() {
        let attributes = Attributes { user: Arc::default(), request: Arc::default() };
        let (allow, deny): (&dyn Authorizer, &dyn Authorizer) = (&AlwaysAllow, &AlwaysDeny);
        let (verdict, decided) = first_opinion([deny, allow, deny].into_iter(), &attributes).await;
        assert_eq!((verdict.decision, verdict.reason.as_str(), decided), (Decision::Allow, "", Some(1)));
        let (verdict, decided) = first_opinion([deny, deny].into_iter(), &attributes).await;
        let reasons = "Everything is forbidden.\nEverything is forbidden.";
        assert_eq!((verdict.decision, verdict.reason.as_str(), decided), (Decision::NoOpinion, reasons, None));
    }
}
