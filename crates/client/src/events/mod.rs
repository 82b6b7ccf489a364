//! The event recorder: tells users what happened to an object, without ever making the caller wait.
//!
//! Two dialects exist upstream and both are read by users: most components write core/v1 events that are counted
//! ([`Dialect::Core`]); the scheduler and kube-proxy write events.k8s.io/v1 events with series ([`Dialect::Series`]).

mod correlator;
mod sink;

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use sink::Sink;

/// Events that wait to be written; what comes beyond is dropped.
const WAITING: usize = 1000;

/// Which of upstream's two recorders is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Core,
    Series,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What happened, before it is decided whether and how it is written.
#[derive(Debug, Clone)]
pub struct Note {
    pub event_type: EventType,
    pub regarding: ObjectReference,
    pub related: Option<ObjectReference>,
    /// One word in CamelCase, for machines.
    pub reason: String,
    /// What was done, one word in CamelCase; only [`Dialect::Series`] writes it.
    pub action: String,
    /// For people; cut after 1024 bytes.
    pub message: String,
}

/// Who writes events; clones share the queue.
#[derive(Debug, Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
}

#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// `kubelet`, `deployment-controller` …
    pub(crate) component: Arc<str>,
    /// The node of a node's component, the instance in [`Dialect::Series`]; may be empty.
    pub(crate) host: Arc<str>,
}

impl Recorder {
    /// Starts writing events of `component` on `host` (empty for components that belong to no node).
    #[must_use]
    pub fn start(client: Client, dialect: Dialect, component: &str, host: &str, stop: CancellationToken) -> Self {
        let (notes, waiting) = mpsc::channel(WAITING);
        let source = Source { component: component.into(), host: host.into() };
        let sink = Sink::new(client, dialect, source);
        tokio::spawn(async move {
            stop.run_until_cancelled(sink.run(waiting)).await;
        });
        Self { notes }
    }

    /// A recorder that hands its notes to a test.
    #[must_use]
    pub fn collecting(capacity: usize) -> (Self, mpsc::Receiver<Note>) {
        let (notes, waiting) = mpsc::channel(capacity);
        (Self { notes }, waiting)
    }

    pub fn normal(&self, regarding: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.simple(EventType::Normal, regarding, reason, message.into());
    }

    pub fn warning(&self, regarding: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.simple(EventType::Warning, regarding, reason, message.into());
    }

    fn simple(&self, event_type: EventType, regarding: &ObjectReference, reason: &str, message: String) {
        self.note(Note {
            event_type,
            regarding: regarding.clone(),
            related: None,
            reason: reason.to_owned(),
            action: String::new(),
            message,
        });
    }

    /// Queues the event; when too many wait already it is dropped.
    pub fn note(&self, note: Note) {
        tracing::debug!(object = note.regarding.name, reason = note.reason, message = note.message, "event");
        if let Err(mpsc::error::TrySendError::Full(note)) = self.notes.try_send(note) {
            tracing::warn!(reason = note.reason, "too many events wait, one is dropped");
        }
    }
}

/// A reference to the object itself, as events and bindings carry it.
#[must_use]
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}
