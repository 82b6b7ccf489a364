//! Tells users of claims that are to grow whom they wait for: every driver that can grow a volume is outside.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    events::{Recorder, reference},
    informer::{Event, Lister, SharedInformer},
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::{context::Context, error::SyncError, pod_resources::quantity};

pub(crate) struct PersistentVolumeExpander {
    recorder: Recorder,
    claims: SharedInformer<PersistentVolumeClaim>,
    claim_lister: Lister<PersistentVolumeClaim>,
    volumes: SharedInformer<PersistentVolume>,
    volume_lister: Lister<PersistentVolume>,
}

impl PersistentVolumeExpander {
    pub(crate) fn new(context: &Context) -> Self {
        let claims = context.informers.informer::<PersistentVolumeClaim>();
        let volumes = context.informers.informer::<PersistentVolume>();
        Self {
            recorder: context.recorder.clone(),
            claim_lister: claims.lister(),
            claims,
            volume_lister: volumes.lister(),
            volumes,
        }
    }
}

/// Whether a bound claim asks for more than it has.
fn is_to_grow(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref().filter(|status| status.phase.as_deref() == Some("Bound"));
    let has = status.and_then(|status| status.capacity.as_ref()).and_then(|capacity| capacity.get("storage"));
    let wants = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()).and_then(|all| all.requests.as_ref());
    let wants = wants.and_then(|requests| requests.get("storage"));
    has.zip(wants).is_some_and(|(has, wants)| quantity(wants) > quantity(has))
}

impl Controller for PersistentVolumeExpander {
    const NAME: &'static str = "volume_expand";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.claims, |event| {
            let asked = |claim: &PersistentVolumeClaim| claim.spec.as_ref().map(|spec| spec.resources.clone());
            let is_news = match event {
                Event::Updated { old, new } => asked(old) != asked(new),
                Event::Added(_) => true,
                Event::Deleted(_) => false,
            };
            (is_news && is_to_grow(event.object())).then(|| event.key())
        });
        watches.read(&self.volumes);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(claim) = self.claim_lister.get(key).filter(|claim| is_to_grow(claim)) else {
            return Ok(Action::await_change());
        };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        let Some(volume) = self.volume_lister.get(&ObjectKey::cluster(name)) else { return Ok(Action::await_change()) };
        let about = reference(&*claim);
        if volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some()) {
            let text = "waiting for an external controller to expand this PVC";
            self.recorder.normal(&about, "ExternalExpanding", text);
        } else {
            let text = "Ignoring the PVC: didn't find a plugin capable of expanding the volume; waiting for an external controller to process this PVC.";
            self.recorder.warning(&about, "ExternalExpanding", text);
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(phase: &str, has: &str, wants: &str, want: bool) {
        let claim = json!({
            "spec": { "resources": { "requests": { "storage": wants } } },
            "status": { "phase": phase, "capacity": { "storage": has } },
        });
        assert_eq!(is_to_grow(&serde_json::from_value(claim).unwrap()), want);
    }

    #[test]
    fn only_bound_claims_that_ask_for_more_grow() {
        check("Bound", "1Gi", "2Gi", true);
        check("Bound", "2Gi", "2Gi", false);
        check("Pending", "1Gi", "2Gi", false);
    }
}
