//! Extenders: HTTP services that are asked beside the plugins.

use std::path::PathBuf;
use std::time::Duration;

/// An extender, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtenderConfig {
    pub url_prefix: String,
    /// Path of a call after the prefix; a call without one is not made.
    pub filter_verb: String,
    pub preempt_verb: String,
    pub prioritize_verb: String,
    /// Of the extender's scores, which are from 0 to 10.
    pub weight: i64,
    pub bind_verb: String,
    pub tls: Option<ExtenderTls>,
    pub timeout: Duration,
    /// The extender knows nodes itself: it is told names only.
    pub node_cache_capable: bool,
    /// It is asked only for pods that ask for one of these; for all if there are none.
    pub managed_resources: Vec<ManagedResource>,
    /// Pods are scheduled without it when it cannot be reached.
    pub ignorable: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtenderTls {
    /// The server's certificate is not checked.
    pub insecure: bool,
    pub server_name: Option<String>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedResource {
    pub name: String,
    /// NodeResourcesFit leaves it to the extender.
    pub ignored_by_scheduler: bool,
}
