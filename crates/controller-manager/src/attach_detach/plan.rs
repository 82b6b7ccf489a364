//! Which volumes are to be attached to a node and which are to leave it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    core::v1::{CSIPersistentVolumeSource, PersistentVolume},
    storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec},
};
use kube::core::ObjectMeta;
use sha2::{Digest, Sha256};

/// The name of the attachment, by which whoever makes it and the kubelet that waits for it agree.
pub(super) fn attachment_name(csi: &CSIPersistentVolumeSource, node: &str) -> String {
    let digest = Sha256::digest(format!("{}{}{node}", csi.volume_handle, csi.driver));

    digest.iter().fold(String::from("csi-"), |mut text, byte| {
        use std::fmt::Write;
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The volume's name in a Node's status.
pub(super) fn device_name(csi: &CSIPersistentVolumeSource) -> String {
    format!("kubernetes.io/csi/{}^{}", csi.driver, csi.volume_handle)
}

pub(super) fn new_attachment(volume: &str, csi: &CSIPersistentVolumeSource, node: &str) -> VolumeAttachment {
    VolumeAttachment {
        metadata: ObjectMeta { name: Some(attachment_name(csi, node)), ..ObjectMeta::default() },
        spec: VolumeAttachmentSpec {
            attacher: csi.driver.clone(),
            node_name: node.to_owned(),
            source: VolumeAttachmentSource {
                persistent_volume_name: Some(volume.to_owned()),
                ..VolumeAttachmentSource::default()
            },
        },
        status: None,
    }
}

/// Whether only one node may have the volume at a time.
pub(super) fn is_exclusive(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    !modes.is_empty() && !modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

/// What a node's volumes are, by the volume's name.
pub(super) struct NodeState<'a> {
    pub(super) wanted: &'a BTreeSet<String>,
    pub(super) attachments: &'a BTreeMap<String, bool>,
    /// What the kubelet still has mounted.
    pub(super) in_use: &'a BTreeSet<String>,
    /// Exclusive volumes that another node has.
    pub(super) elsewhere: &'a BTreeSet<String>,
    /// The node is known to be gone or broken, what it says counts no more.
    pub(super) is_lost: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) attach: Vec<String>,
    pub(super) detach: Vec<String>,
    /// Cannot be attached because another node has them.
    pub(super) blocked: Vec<String>,
    /// What the node is told to be attached.
    pub(super) attached: BTreeSet<String>,
    /// Are to leave, but the kubelet has them mounted.
    pub(super) waits: bool,
}

pub(super) fn plan(state: &NodeState) -> Plan {
    let mut plan = Plan::default();
    for volume in state.wanted.iter().filter(|volume| !state.attachments.contains_key(*volume)) {
        if state.elsewhere.contains(volume) {
            plan.blocked.push(volume.clone());
        } else {
            plan.attach.push(volume.clone());
        }
    }
    for (volume, is_attached) in state.attachments {
        let stays = state.wanted.contains(volume);
        let is_held = state.in_use.contains(volume) && !state.is_lost;
        if !stays && !is_held {
            plan.detach.push(volume.clone());
            continue;
        }
        plan.waits |= !stays;
        if *is_attached {
            plan.attached.insert(volume.clone());
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    /// `attachments`: names, with `!` for ones that are not attached yet.
    #[track_caller]
    fn check(wanted: &str, attachments: &str, in_use: &str, is_lost: bool, want: &str) {
        let attachments = attachments.split_whitespace();
        let attachments =
            attachments.map(|word| (word.trim_end_matches('!').to_owned(), !word.ends_with('!'))).collect();
        let state = NodeState {
            wanted: &set(wanted),
            attachments: &attachments,
            in_use: &set(in_use),
            elsewhere: &set("x"),
            is_lost,
        };
        let plan = plan(&state);
        let attached: Vec<_> = plan.attached.into_iter().collect();
        let got = format!(
            "+{} -{} blocked:{} has:{} waits:{}",
            plan.attach.join(","),
            plan.detach.join(","),
            plan.blocked.join(","),
            attached.join(","),
            plan.waits
        );
        assert_eq!(got, want);
    }

    #[test]
    fn volumes_follow_pods_but_not_while_they_are_mounted() {
        check("a b x", "b! c", "", false, "+a -c blocked:x has: waits:false");
        check("b", "b", "b", false, "+ - blocked: has:b waits:false");
        check("", "b", "b", false, "+ - blocked: has:b waits:true");
        check("", "b", "b", true, "+ -b blocked: has: waits:false");
    }

    #[test]
    fn names_are_those_that_kubelets_wait_for() {
        let csi = CSIPersistentVolumeSource { driver: "d".into(), volume_handle: "h".into(), ..Default::default() };
        assert_eq!(device_name(&csi), "kubernetes.io/csi/d^h");
        let name = attachment_name(&csi, "n");
        assert_eq!((name.len(), &name[..4]), (68, "csi-"));
    }
}
