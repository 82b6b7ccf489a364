//! What drivers are told of a volume. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeSpec, Pod};
use k8s_openapi::api::storage::v1::CSIDriverSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::plugins::csi::VolumeCapability;
use crate::plugins::csi::node_service_capability::rpc::Type as Can;
use crate::plugins::csi::volume_capability::access_mode::Mode;
use crate::plugins::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

fn hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect()
}

/// The name of the attachment that the attach-detach controller makes.
pub(super) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hex(&format!("{handle}{driver}{node}")))
}

/// The handle of a volume that lives and dies with its pod.
pub(super) fn inline_handle(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", hex(&format!("{pod_uid}{volume}")))
}

/// The directory of a volume's stage, below that of its driver.
pub(super) fn stage_name(handle: &str) -> String {
    hex(handle)
}

/// How a volume is used.
pub(super) struct Use<'a> {
    pub access_mode: &'a str,
    pub fs_type: &'a str,
    pub mount_options: Vec<String>,
    /// The pod's group, where the driver itself gives the volume to it.
    pub group: Option<u32>,
    /// As it is, without a file system.
    pub is_device: bool,
}

pub(super) fn capability(how: &Use<'_>, can: &[Can]) -> VolumeCapability {
    let fine = can.contains(&Can::SingleNodeMultiWriter);
    let mode = match how.access_mode {
        "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
        "ReadWriteMany" => Mode::MultiNodeMultiWriter,
        "ReadWriteOncePod" if fine => Mode::SingleNodeSingleWriter,
        "ReadWriteOnce" if fine => Mode::SingleNodeMultiWriter,
        _ => Mode::SingleNodeWriter,
    };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode as i32 }),
        access_type: Some(if how.is_device {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: how.fs_type.to_owned(),
                mount_flags: how.mount_options.clone(),
                volume_mount_group: how.group.map(|g| g.to_string()).unwrap_or_default(),
            })
        }),
    }
}

/// The mode that a volume is mounted with: the first of those that it offers.
pub(super) fn access_mode(spec: &PersistentVolumeSpec) -> &str {
    spec.access_modes.iter().flatten().next().map_or("ReadWriteOnce", String::as_str)
}

/// Whether the kubelet gives the volume's files to the pod's group.
pub(super) fn owns_files(policy: Option<&str>, how: &Use<'_>) -> bool {
    match policy.unwrap_or("ReadWriteOnceWithFSType") {
        "None" => false,
        "File" => true,
        _ => !how.fs_type.is_empty() && how.access_mode.starts_with("ReadWriteOnce"),
    }
}

/// A volume's attributes with what the driver wants to know of the pod.
pub(super) fn context_of(
    attributes: Option<&BTreeMap<String, String>>,
    pod: &Pod,
    driver: Option<&CSIDriverSpec>,
    is_inline: bool,
) -> HashMap<String, String> {
    let mut context: HashMap<String, String> = attributes.cloned().unwrap_or_default().into_iter().collect();
    if driver.and_then(|d| d.pod_info_on_mount) == Some(true) {
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        for (key, value) in [
            ("pod.name", pod.metadata.name.clone()),
            ("pod.namespace", pod.metadata.namespace.clone()),
            ("pod.uid", pod.metadata.uid.clone()),
            ("serviceAccount.name", account),
            ("ephemeral", Some(is_inline.to_string())),
        ] {
            context.insert(format!("csi.storage.k8s.io/{key}"), value.unwrap_or_default());
        }
    }
    context
}

/// What a claim's status says once its file system has grown: the size, and nothing more of the way there.
pub(super) fn expanded(claim: &PersistentVolumeClaim, capacity: Option<&BTreeMap<String, Quantity>>) -> Value {
    const OF_RESIZING: &[&str] = &["Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError"];
    let status = claim.status.clone().unwrap_or_default();
    let mut patch = json!({ "metadata": { "resourceVersion": claim.metadata.resource_version },
        "status": { "capacity": capacity } });
    if let Some(mut conditions) = status.conditions {
        conditions.retain(|c| !OF_RESIZING.contains(&c.type_.as_str()));
        patch["status"]["conditions"] = json!(conditions);
    }
    if status.allocated_resource_statuses.is_some() {
        patch["status"]["allocatedResourceStatuses"] = json!({ "storage": null });
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how<'a>(access_mode: &'a str, fs_type: &'a str) -> Use<'a> {
        Use { access_mode, fs_type, mount_options: Vec::new(), group: None, is_device: false }
    }

    #[test]
    fn modes_are_as_fine_as_the_driver_knows_them() {
        let check = |mode: &str, can: &[Can], want: Mode| {
            let got = capability(&how(mode, "ext4"), can).access_mode.map(|m| m.mode());
            assert_eq!(got, Some(want), "{mode} {can:?}");
        };
        check("ReadWriteOnce", &[], Mode::SingleNodeWriter);
        check("ReadWriteOnce", &[Can::SingleNodeMultiWriter], Mode::SingleNodeMultiWriter);
        check("ReadWriteOncePod", &[Can::SingleNodeMultiWriter], Mode::SingleNodeSingleWriter);
        check("ReadWriteMany", &[], Mode::MultiNodeMultiWriter);
        check("ReadOnlyMany", &[], Mode::MultiNodeReaderOnly);
    }

    #[test]
    fn files_are_given_to_the_group_as_the_driver_says() {
        let check = |policy: Option<&str>, mode: &str, fs: &str, want: bool| {
            assert_eq!(owns_files(policy, &how(mode, fs)), want, "{policy:?} {mode} {fs}");
        };
        check(None, "ReadWriteOnce", "ext4", true);
        check(None, "ReadWriteOnce", "", false);
        check(None, "ReadWriteMany", "ext4", false);
        check(Some("File"), "ReadWriteMany", "", true);
        check(Some("None"), "ReadWriteOnce", "ext4", false);
    }

    #[test]
    fn a_driver_that_wants_to_know_is_told_of_the_pod() {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [], "serviceAccountName": "me"}}))
            .unwrap();
        let wants = CSIDriverSpec { pod_info_on_mount: Some(true), ..CSIDriverSpec::default() };
        let context = context_of(None, &pod, Some(&wants), true);
        assert_eq!(context["csi.storage.k8s.io/pod.name"], "p");
        assert_eq!(context["csi.storage.k8s.io/serviceAccount.name"], "me");
        assert_eq!(context["csi.storage.k8s.io/ephemeral"], "true");
        assert!(context_of(None, &pod, None, false).is_empty());
    }

    #[test]
    fn a_claim_that_has_grown_keeps_what_others_say_of_it() {
        let condition = |kind: &str| json!({ "type": kind, "status": "True" });
        let claim = |status: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({ "metadata": { "resourceVersion": "7" }, "status": status })).unwrap()
        };
        let capacity = BTreeMap::from([("storage".to_owned(), Quantity("2Gi".to_owned()))]);
        let check = |status: Value, want: Value| {
            let got = expanded(&claim(status), Some(&capacity));
            assert_eq!(got, json!({ "metadata": { "resourceVersion": "7" }, "status": want }));
        };
        check(json!({}), json!({ "capacity": { "storage": "2Gi" } }));
        check(
            json!({ "conditions": [condition("FileSystemResizePending"), condition("example.com/Seen")],
                "allocatedResourceStatuses": { "storage": "NodeResizePending" } }),
            json!({ "capacity": { "storage": "2Gi" }, "conditions": [condition("example.com/Seen")],
                "allocatedResourceStatuses": { "storage": null } }),
        );
    }
}
