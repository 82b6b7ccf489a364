//! ResourceQuota: what the objects of a namespace may use together.
//!
//! A request is charged before it is stored, by a write of the quota's status that holds only if nobody else wrote it: any
//! number of writers, in any number of servers, never use more than there is. Within a server the writers of a namespace
//! take turns, so that they do not race for the same version. What a request was charged for and then not stored is given
//! back by the quota controller, which counts again.

mod charge;
mod scope;
mod usage;

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use async_trait::async_trait;
use parking_lot::Mutex;

use self::charge::{Refusal, charge};
use self::usage::Evaluator;
use super::own::OwnObjects;
use super::pod::{Amounts, amounts, amounts_value};
use super::{Operation, Plugin, Request};
use crate::lister::Lister;

/// What is only asked or reported, and counts for nothing.
const IGNORED: &[(&str, &str)] = &[
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];
/// How often a charge is tried again when another server was faster.
const ATTEMPTS: usize = 30;

pub(super) struct ResourceQuota {
    pub lister: Arc<dyn Lister>,
    pub own: Arc<OwnObjects>,
    /// Of `ResourceQuotaConfiguration`: what needs a quota to be used at all.
    pub limited: Vec<Value>,
    /// Whose turn it is, by namespace, and the quotas as they were written last.
    turns: Mutex<HashMap<String, Turn>>,
}

/// The turn of a namespace: whoever holds it knows what was written last.
type Turn = Arc<tokio::sync::Mutex<HashMap<String, Arc<Value>>>>;

impl ResourceQuota {
    pub(super) fn new(lister: Arc<dyn Lister>, own: Arc<OwnObjects>, config: &Value) -> Self {
        let limited = config["limitedResources"].items().to_vec();
        ResourceQuota { lister, own, limited, turns: Mutex::default() }
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, request: &Request) -> bool {
        let is_ignored = IGNORED.iter().any(|(g, r)| request.gvr.group == *g && request.gvr.resource == *r);
        if request.namespace.is_empty() || is_ignored || request.is_core("namespaces") {
            return false;
        }
        match request.operation {
            Operation::Create => request.subresource.is_empty(),
            Operation::Update => {
                let counts = Evaluator::of(&request.gvr).counts_updates() && request.subresource.is_empty();
                counts || request.is_core_part("pods", "resize")
            }
            Operation::Delete | Operation::Connect => false,
        }
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let has_quota = !self.lister.list("resourcequotas", &request.namespace).is_empty();
        if !has_quota && self.limited.is_empty() {
            return Ok(());
        }
        let turn = Arc::clone(self.turns.lock().entry(request.namespace.clone()).or_default());
        let mut last = turn.lock().await;
        let charged = self.charge(request, &mut last).await;
        last.retain(|name, quota| {
            // Once the cache has caught up, it is as good.
            let cached = self.lister.get("resourcequotas", &request.namespace, name);
            cached.is_some_and(|cached| version_of(&cached) < version_of(quota))
        });
        let is_idle = last.is_empty();
        drop(last);
        if is_idle {
            // Nobody else waits for this turn, or they hold it themselves.
            let mut turns = self.turns.lock();
            if Arc::strong_count(&turn) <= 2 {
                turns.remove(&request.namespace);
            }
        }
        charged
    }
}

fn quotas() -> Gvr {
    Gvr::new("", "v1", "resourcequotas")
}

fn version_of(quota: &Value) -> u64 {
    quota.resource_version().parse().unwrap_or_default()
}

impl ResourceQuota {
    async fn charge(&self, request: &Request, last: &mut HashMap<String, Arc<Value>>) -> Result<(), Status> {
        for _ in 0..ATTEMPTS {
            let known: Vec<Arc<Value>> = self
                .lister
                .list("resourcequotas", &request.namespace)
                .into_iter()
                .map(|quota| match last.get(quota.name()) {
                    Some(newer) if version_of(newer) > version_of(&quota) => Arc::clone(newer),
                    _ => quota,
                })
                .collect();
            let planned = match charge(request, &known, &self.limited) {
                Ok(planned) => planned,
                Err(refusal) => return Err(told(request, &refusal)),
            };
            if request.dry_run {
                return Ok(());
            }
            if self.write(request, planned, last).await? {
                return Ok(());
            }
        }
        Err(Status::internal("ResourceQuota could not be updated: other writers were always faster".to_owned()))
    }

    /// Writes what is used then. `false`: somebody else wrote first; nothing is charged, and `last` tells what they wrote.
    async fn write(
        &self,
        request: &Request,
        planned: Vec<(Arc<Value>, Amounts)>,
        last: &mut HashMap<String, Arc<Value>>,
    ) -> Result<bool, Status> {
        let own = self.own.get()?;
        let mut written: Vec<(Arc<Value>, Arc<Value>)> = Vec::new();
        for (quota, used) in planned {
            let mut charged = (*quota).clone();
            charged.set(&["status", "used"], amounts_value(&used));
            match own.update_status(&quotas(), charged).await {
                Ok(stored) => {
                    let stored = Arc::new(stored);
                    last.insert(quota.name().to_owned(), Arc::clone(&stored));
                    written.push((quota, stored));
                }
                Err(status) if status.reason == "Conflict" || status.code == 404 => {
                    if let Ok(now) = own.get(&quotas(), &request.namespace, quota.name()).await {
                        last.insert(quota.name().to_owned(), Arc::new(now));
                    }
                    self.give_back(written, last).await;
                    return Ok(false);
                }
                Err(status) => {
                    self.give_back(written, last).await;
                    return Err(status);
                }
            }
        }
        Ok(true)
    }

    /// Undoes charges of a request that goes no further. What cannot be undone the controller counts again.
    async fn give_back(&self, written: Vec<(Arc<Value>, Arc<Value>)>, last: &mut HashMap<String, Arc<Value>>) {
        let Ok(own) = self.own.get() else { return };
        for (before, after) in written {
            let mut restored = (*after).clone();
            restored.set(&["status", "used"], before.at(&["status", "used"]).clone());
            match own.update_status(&quotas(), restored).await {
                Ok(stored) => {
                    last.insert(before.name().to_owned(), Arc::new(stored));
                }
                Err(error) => tracing::warn!(quota = before.name(), %error, "a charge was not given back"),
            }
        }
    }
}

fn told(request: &Request, refusal: &Refusal) -> Status {
    request.forbidden(refusal.to_string())
}

/// `a=1,b=2`.
fn pretty(list: &Amounts, names: &[String]) -> String {
    let shown = names.iter().map(|name| format!("{name}={}", list.get(name).copied().unwrap_or_default()));
    shown.collect::<Vec<_>>().join(",")
}

fn hard_of(quota: &Value) -> Amounts {
    amounts(quota.at(&["status", "hard"]))
}

fn used_of(quota: &Value) -> Amounts {
    amounts(quota.at(&["status", "used"]))
}
