//! Who asks, and for what: the facts that authorization, admission and audit decide on.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::selector::{FieldSelector, LabelSelector, ParseError};

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The user as `authentication.k8s.io/v1 UserInfo`; what is empty is left out.
    #[must_use]
    pub fn value(&self) -> Value {
        let list = |items: &[String]| Value::Array(items.iter().map(|i| i.as_str().into()).collect());
        let mut value = Value::object();
        if !self.name.is_empty() {
            value.set(&["username"], self.name.as_str());
        }
        if !self.uid.is_empty() {
            value.set(&["uid"], self.uid.as_str());
        }
        if !self.groups.is_empty() {
            value.set(&["groups"], list(&self.groups));
        }
        for (key, values) in &self.extra {
            value.set(&["extra", key], list(values));
        }
        value
    }
}

/// What a path and a method mean (upstream's `RequestInfo`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInfo {
    /// `false` for `/healthz`, `/openapi/…`, `/metrics`: then only `verb` (the lower-case method) and `path` count.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`'s methods as upstream maps them.
    pub verb: String,
    pub path: String,
    pub gvr: Gvr,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Parts after the subresource, joined by slashes (`proxy`).
    pub rest: String,
    /// Of a request for many objects: which of them. Authorizers may allow what is asked so and refuse the whole (KEP-4601).
    pub label_selector: Narrowed<LabelSelector>,
    pub field_selector: Narrowed<FieldSelector>,
}

/// A selector as authorizers see it. What of it cannot be told is left out: what is asked for is then the wider right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Narrowed<S> {
    pub selector: S,
    /// Something is left out.
    pub partly: bool,
}

impl<S: Default> Narrowed<S> {
    #[must_use]
    pub fn of(parsed: Result<S, ParseError>) -> Self {
        let partly = parsed.is_err();
        Narrowed { selector: parsed.unwrap_or_default(), partly }
    }
}

/// A question to the authorizers.
#[derive(Clone, Debug)]
pub struct Attributes {
    pub user: Arc<UserInfo>,
    pub request: Arc<RequestInfo>,
}
