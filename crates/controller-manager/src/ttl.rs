//! Tells kubelets by an annotation of their Node for how long they may keep Secrets and ConfigMaps: the longer, the more
//! nodes ask the API server.

use std::sync::atomic::{AtomicUsize, Ordering};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ignore_not_found,
    informer::{Event, Lister, SharedInformer},
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{context::Context, error::SyncError};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// From how many nodes down to the step before, up to how many to the next, and the seconds between. The steps overlap, so
/// that a cluster at an edge does not go back and forth.
const STEPS: [(usize, usize, u32); 6] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, 10_000, 300), (9000, usize::MAX, 600)];

pub(crate) struct TtlController {
    client: Client,
    nodes: SharedInformer<Node>,
    lister: Lister<Node>,
    step: AtomicUsize,
}

impl TtlController {
    pub(crate) fn new(context: &Context) -> Self {
        let nodes = context.informers.informer::<Node>();
        Self { client: context.client.clone(), lister: nodes.lister(), nodes, step: AtomicUsize::new(0) }
    }
}

/// The step for so many nodes, from the one before.
fn step(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

impl Controller for TtlController {
    const NAME: &'static str = "ttlcontroller";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.nodes, |event| (!matches!(event, Event::Deleted(_))).then(|| event.key()));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(node) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let now = step(self.step.load(Ordering::Relaxed), self.lister.len());
        self.step.store(now, Ordering::Relaxed);
        let seconds = STEPS[now].2.to_string();
        if node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION)) == Some(&seconds) {
            return Ok(Action::await_change());
        }
        let patch = json!({ "metadata": { "annotations": { ANNOTATION: seconds } } });
        let api = Api::<Node>::all(self.client.clone());
        ignore_not_found(api.patch(key.name(), &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        for (from, nodes, want) in
            [(0, 1, 0), (0, 100, 0), (0, 101, 1), (1, 95, 1), (1, 89, 0), (0, 5000, 4), (5, 1, 0), (4, 20_000, 5)]
        {
            assert_eq!(step(from, nodes), want, "{nodes} from step {from}");
        }
    }
}
