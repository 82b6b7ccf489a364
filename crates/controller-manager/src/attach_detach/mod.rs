//! Has CSI drivers attach the volumes of a node's pods to it, and detach them when no pod there needs them.

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::{ApiError, ignore_not_found},
    events::{Recorder, reference},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::{
    core::v1::{CSIPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use self::plan::{NodeState, attachment_name, device_name, is_exclusive, new_attachment, plan};
use crate::{
    config::AttachDetachConfig,
    context::Context,
    error::SyncError,
    pod::{NODE_INDEX, index_by_node, is_finished, node_name},
    pod_claims::{CLAIM_INDEX, claims_of, index_by_claim},
    pod_control::said,
};

const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node that is not healthy is believed to have a volume mounted.
const PATIENCE: Duration = Duration::from_secs(360);
/// Finds attachments by node and by volume.
const ATTACHED_TO: &str = "attached-to";
const VOLUME_INDEX: &str = "volume";

pub(crate) struct AttachDetachController {
    client: Client,
    recorder: Recorder,
    config: AttachDetachConfig,
    nodes: SharedInformer<Node>,
    pods: SharedInformer<Pod>,
    claims: SharedInformer<PersistentVolumeClaim>,
    volumes: SharedInformer<PersistentVolume>,
    drivers: SharedInformer<CSIDriver>,
    attachments: SharedInformer<VolumeAttachment>,
    attachment_lister: Lister<VolumeAttachment>,
    /// Since when volumes wait for a node that may be dead.
    held: Mutex<HashMap<ObjectKey, Instant>>,
}

impl AttachDetachController {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let pods = informers.informer::<Pod>();
        pods.add_index(NODE_INDEX, index_by_node);
        pods.add_index(CLAIM_INDEX, index_by_claim);
        let attachments = informers.informer::<VolumeAttachment>();
        attachments.add_index(ATTACHED_TO, |attachment| vec![attachment.spec.node_name.clone()]);
        attachments.add_index(VOLUME_INDEX, |attachment| {
            attachment.spec.source.persistent_volume_name.clone().into_iter().collect()
        });
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            config: context.config.attach_detach.clone(),
            nodes: informers.informer(),
            pods,
            claims: informers.informer(),
            volumes: informers.informer(),
            drivers: informers.informer(),
            attachment_lister: attachments.lister(),
            attachments,
            held: Mutex::default(),
        }
    }

    /// The attachable volumes of the node's pods, each with its pods.
    fn wanted(&self, node: &str) -> BTreeMap<String, (Arc<PersistentVolume>, Vec<Arc<Pod>>)> {
        let mut wanted: BTreeMap<String, (Arc<PersistentVolume>, Vec<Arc<Pod>>)> = BTreeMap::new();
        for pod in self.pods.lister().by_index(NODE_INDEX, node).into_iter().filter(|pod| !is_finished(pod)) {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for claim in claims_of(&pod) {
                let Some(claim) = self.claims.lister().get(&ObjectKey::new(namespace, &claim)) else { continue };
                let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
                let Some(volume) = self.volumes.lister().get(&ObjectKey::cluster(name)) else { continue };
                if csi_of(&volume).is_some_and(|csi| self.is_attachable(csi)) {
                    wanted.entry(name.to_owned()).or_insert_with(|| (volume, Vec::new())).1.push(pod.clone());
                }
            }
        }
        wanted
    }

    fn is_attachable(&self, csi: &CSIPersistentVolumeSource) -> bool {
        let driver = self.drivers.lister().get(&ObjectKey::cluster(&csi.driver));
        driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
    }

    /// Our attachments to the node that are not on their way out, and whether each is attached.
    fn attachments_to(&self, node: &str) -> BTreeMap<String, Arc<VolumeAttachment>> {
        let all = self.attachment_lister.by_index(ATTACHED_TO, node).into_iter();
        let ours = all.filter_map(|attachment| {
            let volume = attachment.spec.source.persistent_volume_name.clone()?;
            // Of a volume that is gone the name cannot be computed any more; somebody has to let go of it.
            let is_ours = match self.volumes.lister().get(&ObjectKey::cluster(&volume)) {
                Some(known) => {
                    csi_of(&known).map(|csi| attachment_name(csi, node)).as_ref() == attachment.metadata.name.as_ref()
                }
                None => attachment.metadata.name.as_deref().is_some_and(|name| name.starts_with("csi-")),
            };
            (is_ours && attachment.metadata.deletion_timestamp.is_none()).then_some((volume, attachment))
        });
        ours.collect()
    }

    fn is_elsewhere(&self, volume: &PersistentVolume, node: &str) -> bool {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let everywhere = self.attachment_lister.by_index(VOLUME_INDEX, name);
        is_exclusive(volume) && everywhere.iter().any(|attachment| attachment.spec.node_name != node)
    }

    /// Whether the node's own word about its mounts counts no more.
    fn is_lost(&self, key: &ObjectKey, node: Option<&Node>, has_leaving: bool) -> bool {
        let Some(node) = node else { return true };
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        if taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE) {
            return true;
        }
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_healthy =
            conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let mut held = self.held.lock();
        if is_healthy || !has_leaving {
            held.remove(key);
            return false;
        }
        self.config.forces_detach && held.entry(key.clone()).or_insert_with(Instant::now).elapsed() > PATIENCE
    }

    async fn tell_node(&self, node: &Node, attached: Vec<String>) -> Result<(), SyncError> {
        let status = node.status.as_ref();
        let mut known: Vec<_> =
            status.iter().flat_map(|s| s.volumes_attached.iter().flatten()).map(|volume| volume.name.clone()).collect();
        known.sort();
        if known == attached {
            return Ok(());
        }
        let list: Vec<_> = attached.iter().map(|name| json!({ "name": name, "devicePath": "" })).collect();
        let patch = json!({ "status": { "volumesAttached": list } });
        let api = Api::<Node>::all(self.client.clone());
        let name = node.metadata.name.as_deref().unwrap_or_default();
        ignore_not_found(api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(())
    }
}

fn csi_of(volume: &PersistentVolume) -> Option<&CSIPersistentVolumeSource> {
    volume.spec.as_ref()?.csi.as_ref()
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|status| status.attached)
}

impl Controller for AttachDetachController {
    const NAME: &'static str = "attach_detach";
    type Error = SyncError;

    /// Keys are nodes.
    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.nodes);
        watches.map(&self.pods, |event| {
            let has_claims = |pod: &Arc<Pod>| claims_of(pod).next().is_some() && !node_name(pod).is_empty();
            let state = |pod: &Arc<Pod>| (node_name(pod).to_owned(), is_finished(pod));
            let changed = event.old().map(state) != event.now().map(state);
            (changed && has_claims(event.object())).then(|| ObjectKey::cluster(node_name(event.object())))
        });
        let pods = self.pods.lister();
        watches.map(&self.claims, move |event| {
            let of_claim = pods.by_index(CLAIM_INDEX, event.key().as_str());
            of_claim
                .iter()
                .map(|pod| ObjectKey::cluster(node_name(pod)))
                .filter(|key| !key.name().is_empty())
                .collect::<Vec<_>>()
        });
        let recorder = self.recorder.clone();
        let (pods, volumes) = (self.pods.lister(), self.volumes.lister());
        watches.map(&self.attachments, move |event| {
            // Whoever waits for the volume is told once, when that happens.
            let was = event.old().is_some_and(|old| is_attached(old));
            let volume = event.object().spec.source.persistent_volume_name.as_deref().unwrap_or_default();
            if let (false, Some(now)) = (was, event.now().filter(|now| is_attached(now)))
                && event.old().is_some()
                && let Some(named) =
                    volumes.get(&ObjectKey::cluster(volume)).as_ref().and_then(|v| v.spec.as_ref()?.claim_ref.clone())
            {
                let key = format!("{}/{}", named.namespace.unwrap_or_default(), named.name.unwrap_or_default());
                for pod in pods.by_index(CLAIM_INDEX, &key) {
                    if node_name(&pod) == now.spec.node_name {
                        let text = format!("AttachVolume.Attach succeeded for volume {volume:?} ");
                        recorder.normal(&reference(&*pod), "SuccessfulAttachVolume", text);
                    }
                }
            }
            Some(ObjectKey::cluster(&event.object().spec.node_name))
        });
        watches.read(&self.volumes);
        watches.read(&self.drivers);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let node = self.nodes.lister().get(key);
        let is_managed = node
            .as_ref()
            .is_none_or(|node| node.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MANAGED)));
        if !is_managed {
            return Ok(Action::await_change());
        }
        let pods = if node.is_some() { self.wanted(key.name()) } else { BTreeMap::new() };
        let attachments = self.attachments_to(key.name());
        if pods.is_empty() && attachments.is_empty() {
            return Ok(Action::await_change());
        }
        let device = |volume: &String| {
            self.volumes.lister().get(&ObjectKey::cluster(volume)).as_deref().and_then(csi_of).map(device_name)
        };
        let mounted: BTreeSet<_> = node
            .iter()
            .filter_map(|node| node.status.as_ref())
            .flat_map(|s| s.volumes_in_use.iter().flatten().cloned())
            .collect();
        let is_mounted = |volume: &&String| device(volume).is_some_and(|device| mounted.contains(&device));
        let wanted: BTreeSet<_> = pods.keys().cloned().collect();
        let has_leaving = attachments.keys().any(|volume| !wanted.contains(volume));
        let plan = plan(&NodeState {
            in_use: &attachments.keys().filter(is_mounted).cloned().collect(),
            elsewhere: &pods
                .iter()
                .filter(|(_, (v, _))| self.is_elsewhere(v, key.name()))
                .map(|(name, _)| name.clone())
                .collect(),
            is_lost: self.is_lost(key, node.as_deref(), has_leaving),
            attachments: &attachments.iter().map(|(volume, one)| (volume.clone(), is_attached(one))).collect(),
            wanted: &wanted,
        });
        if let Some(node) = &node {
            let mut devices: Vec<_> = plan.attached.iter().filter_map(device).collect();
            devices.sort();
            self.tell_node(node, devices).await?;
        }
        let api = Api::<VolumeAttachment>::all(self.client.clone());
        for volume in &plan.detach {
            let Some(attachment) = attachments.get(volume) else { continue };
            let name = attachment.metadata.name.as_deref().unwrap_or_default();
            ignore_not_found(api.delete(name, &DeleteParams::default()).await)?;
        }
        for volume in &plan.attach {
            let Some((object, users)) = pods.get(volume) else { continue };
            let Some(csi) = csi_of(object) else { continue };
            match api.create(&PostParams::default(), &new_attachment(volume, csi, key.name())).await {
                Err(err) if !err.is_already_exists() => {
                    let text = format!("AttachVolume.Attach failed for volume {volume:?} : {}", said(&err));
                    users
                        .iter()
                        .for_each(|pod| self.recorder.warning(&reference(&**pod), "FailedAttachVolume", text.clone()));
                    return Err(err.into());
                }
                Ok(_) | Err(_) => {}
            }
        }
        for (volume, users) in plan.blocked.iter().filter_map(|volume| Some((volume, &pods.get(volume)?.1))) {
            let text = format!(
                "Multi-Attach error for volume {volume:?} Volume is already exclusively attached to one node and can't be attached to another"
            );
            users.iter().for_each(|pod| self.recorder.warning(&reference(&**pod), "FailedAttachVolume", text.clone()));
        }
        let failed = attachments.iter().filter_map(|(volume, attachment)| {
            let error = attachment.status.as_ref()?.attach_error.as_ref()?.message.clone()?;
            Some((pods.get(volume)?, format!("AttachVolume.Attach failed for volume {volume:?} : {error}")))
        });
        for ((_, users), text) in failed {
            users.iter().for_each(|pod| self.recorder.warning(&reference(&**pod), "FailedAttachVolume", text.clone()));
        }
        let again = plan.waits || !plan.blocked.is_empty();
        Ok(if again {
            Action::requeue(self.config.sync_period.min(Duration::from_secs(15)))
        } else {
            Action::await_change()
        })
    }
}
