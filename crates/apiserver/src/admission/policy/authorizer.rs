//! `authorizer`: what the user of the request may do, for expressions to ask.

use std::rc::Rc;
use std::sync::Arc;

use apimachinery::meta::Gvr;
use apimachinery::selector::{FieldSelector, LabelSelector};
use futures::FutureExt;

use crate::admission::Request;
use crate::attributes::{Attributes, Narrowed, RequestInfo, UserInfo};
use crate::authz::{Authorizer, Decision, Verdict};
use expressions::{Error, Opaque, Val};

/// What upstream counts for one question.
const CHECK_COST: u64 = 350_000;

/// Whom to ask about whom.
#[derive(Clone)]
pub(in crate::admission) struct Asker {
    pub authorizers: Arc<[Arc<dyn Authorizer>]>,
    pub user: Arc<UserInfo>,
    /// What `authorizer.requestResource` is about.
    pub resource: RequestInfo,
}

impl Asker {
    pub(in crate::admission) fn new(authorizers: &Arc<[Arc<dyn Authorizer>]>, request: &Request) -> Self {
        let resource = RequestInfo {
            is_resource: true,
            gvr: Gvr::new(&request.gvr.group, "*", &request.gvr.resource),
            subresource: request.subresource.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            ..RequestInfo::default()
        };
        Asker { authorizers: Arc::clone(authorizers), user: Arc::clone(&request.user), resource }
    }

    fn ask(&self, question: RequestInfo) -> Verdict {
        let attributes = Attributes { user: Arc::clone(&self.user), request: Arc::new(question) };
        let mut reasons = Vec::new();
        for authorizer in self.authorizers.iter() {
            let verdict = now(authorizer.as_ref(), &attributes);
            if verdict.decision != Decision::NoOpinion {
                return verdict;
            }
            reasons.push(verdict.reason);
        }
        reasons.retain(|r| !r.is_empty());
        Verdict { decision: Decision::NoOpinion, reason: reasons.join(", ") }
    }
}

/// Expressions cannot wait; most authorizers need not, and those that must are waited for.
fn now(authorizer: &dyn Authorizer, attributes: &Attributes) -> Verdict {
    if let Some(verdict) = authorizer.authorize(attributes).now_or_never() {
        return verdict;
    }
    let wait = || tokio::runtime::Handle::current().block_on(authorizer.authorize(attributes));
    tokio::task::block_in_place(wait)
}

/// `authorizer`, and what its methods narrow it to.
pub(in crate::admission) struct Asking {
    asker: Asker,
    at: At,
}

#[derive(Clone)]
enum At {
    Authorizer,
    Path(String),
    Group(String),
    Resource(Box<RequestInfo>),
    Decision(Verdict),
}

impl Asking {
    pub(in crate::admission) fn new(asker: Asker) -> Self {
        Asking { asker, at: At::Authorizer }
    }

    fn with<'a>(&self, at: At) -> Val<'a> {
        Val::Opaque(Rc::new(Asking { asker: self.asker.clone(), at }))
    }

    fn narrowed<'a>(&self, change: impl FnOnce(&mut RequestInfo)) -> Option<Result<Val<'a>, Error>> {
        let At::Resource(mut info) = self.at.clone() else { return None };
        change(&mut info);
        Some(Ok(self.with(At::Resource(info))))
    }
}

impl<'a> Opaque<'a> for Asking {
    fn type_name(&self) -> &'static str {
        match self.at {
            At::Authorizer => "kubernetes.authorization.Authorizer",
            At::Path(_) => "kubernetes.authorization.PathCheck",
            At::Group(_) => "kubernetes.authorization.GroupCheck",
            At::Resource(_) => "kubernetes.authorization.ResourceCheck",
            At::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    fn field(&self, name: &str) -> Option<Result<Val<'a>, Error>> {
        let is_request = matches!(self.at, At::Authorizer) && name == "requestResource";
        is_request.then(|| Ok(self.with(At::Resource(Box::new(self.asker.resource.clone())))))
    }

    fn call(&self, method: &str, arguments: &[Val<'a>], cost: &mut u64) -> Option<Result<Val<'a>, Error>> {
        let texts: Option<Vec<&str>> = arguments.iter().map(Val::as_str).collect();
        let texts = texts?;
        match (&self.at, method, texts.as_slice()) {
            (At::Authorizer, "path", [path]) if path.trim().is_empty() => {
                Some(Err(Error::new("path must not be empty")))
            }
            (At::Authorizer, "path", [path]) => Some(Ok(self.with(At::Path((*path).to_owned())))),
            (At::Authorizer, "group", [group]) => Some(Ok(self.with(At::Group((*group).to_owned())))),
            (At::Authorizer, "serviceAccount", [_, name]) if !api::strategy::dns_subdomain(name, false).is_empty() => {
                Some(Err(Error::new("Invalid service account name")))
            }
            (At::Authorizer, "serviceAccount", [namespace, _])
                if !api::strategy::dns_label(namespace, false).is_empty() =>
            {
                Some(Err(Error::new("Invalid service account namespace")))
            }
            (At::Authorizer, "serviceAccount", [namespace, name]) => {
                let groups = [
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ];
                let user = UserInfo {
                    name: format!("system:serviceaccount:{namespace}:{name}"),
                    groups: groups.into(),
                    ..UserInfo::default()
                };
                let asker = Asker { user: Arc::new(user), ..self.asker.clone() };
                Some(Ok(Val::Opaque(Rc::new(Asking { asker, at: At::Authorizer }))))
            }
            (At::Group(_), "resource", [resource]) if resource.trim().is_empty() => {
                Some(Err(Error::new("resource must not be empty")))
            }
            (At::Group(group), "resource", [resource]) => {
                let info =
                    RequestInfo { is_resource: true, gvr: Gvr::new(group, "*", resource), ..RequestInfo::default() };
                Some(Ok(self.with(At::Resource(Box::new(info)))))
            }
            (At::Resource(_), "subresource", [part]) => self.narrowed(|info| (*part).clone_into(&mut info.subresource)),
            (At::Resource(_), "namespace", [namespace]) => {
                self.narrowed(|info| (*namespace).clone_into(&mut info.namespace))
            }
            (At::Resource(_), "name", [name]) => self.narrowed(|info| (*name).clone_into(&mut info.name)),
            (At::Resource(_), "fieldSelector", [selector]) => {
                self.narrowed(|info| info.field_selector = Narrowed::of(FieldSelector::parse(selector)))
            }
            (At::Resource(_), "labelSelector", [selector]) => {
                self.narrowed(|info| info.label_selector = Narrowed::of(LabelSelector::parse(selector)))
            }
            (At::Resource(info), "check", [verb]) => {
                *cost += CHECK_COST;
                let question = RequestInfo { verb: (*verb).to_owned(), ..(**info).clone() };
                Some(Ok(self.with(At::Decision(self.asker.ask(question)))))
            }
            (At::Path(path), "check", [verb]) => {
                *cost += CHECK_COST;
                let question = RequestInfo { verb: (*verb).to_owned(), path: path.clone(), ..RequestInfo::default() };
                Some(Ok(self.with(At::Decision(self.asker.ask(question)))))
            }
            (At::Decision(verdict), "allowed", []) => Some(Ok(Val::Bool(verdict.decision == Decision::Allow))),
            (At::Decision(verdict), "reason", []) => Some(Ok(Val::string(verdict.reason.clone()))),
            (At::Decision(_), "errored", []) => Some(Ok(Val::Bool(false))),
            (At::Decision(_), "error", []) => Some(Ok(Val::string(""))),
            _ => None,
        }
    }
}
