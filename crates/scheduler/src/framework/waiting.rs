//! Pods whose binding a Permit plugin holds back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::status::Rejection;
use crate::pod::{PodInfo, Uid};

/// The waiting pods of a scheduler; clones share them.
#[derive(Clone, Debug, Default)]
pub struct WaitingPods(Arc<Mutex<HashMap<Uid, Waiting>>>);

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    node: Box<str>,
    /// Plugins that have not allowed it yet.
    pending: Vec<&'static str>,
    decided: Option<oneshot::Sender<Verdict>>,
}

type Verdict = Result<(), (&'static str, Rejection)>;

/// What a pod waits with.
#[derive(Debug)]
pub(crate) struct Wait {
    decided: oneshot::Receiver<Verdict>,
    /// When each plugin gives up, the first one first.
    timeouts: BTreeMap<Duration, &'static str>,
}

impl WaitingPods {
    pub(crate) fn add(&self, pod: Arc<PodInfo>, node: &str, plugins: Vec<(&'static str, Duration)>) -> Wait {
        let (sender, decided) = oneshot::channel();
        let pending = plugins.iter().map(|(name, _)| *name).collect();
        let timeouts = plugins.into_iter().map(|(name, after)| (after, name)).collect();
        let waiting = Waiting { pod: pod.clone(), node: node.into(), pending, decided: Some(sender) };
        self.0.lock().insert(pod.uid.clone(), waiting);
        Wait { decided, timeouts }
    }

    pub(crate) fn remove(&self, uid: &Uid) {
        self.0.lock().remove(uid);
    }

    /// Calls `each` with every waiting pod and its node. `each` must not call back.
    pub fn for_each(&self, mut each: impl FnMut(&Arc<PodInfo>, &str)) {
        for waiting in self.0.lock().values() {
            each(&waiting.pod, &waiting.node);
        }
    }

    /// The plugin has nothing against the pod any more. When no plugin has, it is bound.
    pub fn allow(&self, uid: &Uid, plugin: &str) {
        if let Some(waiting) = self.0.lock().get_mut(uid) {
            waiting.pending.retain(|own| *own != plugin);
            if waiting.pending.is_empty() {
                waiting.decide(Ok(()));
            }
        }
    }

    /// Turns the pod down. Whether it was waiting.
    pub fn reject(&self, uid: &Uid, plugin: &'static str, rejection: Rejection) -> bool {
        let mut waiting = self.0.lock();
        let Some(waiting) = waiting.get_mut(uid) else { return false };
        waiting.decide(Err((plugin, rejection)));
        true
    }
}

impl Waiting {
    fn decide(&mut self, verdict: Verdict) {
        if let Some(decided) = self.decided.take() {
            // The receiver is gone when the pod's wait ended by itself meanwhile, which then stands.
            drop(decided.send(verdict));
        }
    }
}

impl Wait {
    /// Until the pod is allowed, turned down, or a plugin's time is over.
    pub(crate) async fn verdict(self) -> Verdict {
        let Some((after, plugin)) = self.timeouts.into_iter().next() else { return Ok(()) };
        let message = || format!("timeout waiting on permit, plugin={plugin}");
        match tokio::time::timeout(after, self.decided).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err((plugin, Rejection::unschedulable("pod is no longer waiting"))),
            Err(_) => Err((plugin, Rejection::unschedulable(message()))),
        }
    }
}
