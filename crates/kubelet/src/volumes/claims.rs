//! Volumes behind claims: the claim's PersistentVolume, and what this node does with each kind of it.

use std::path::PathBuf;

use client::error::ApiError;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod};
use kube::Api;

use super::{Setup, Source, host_path, make_dir};
use crate::pod::plan;

pub(super) async fn set_up(setup: &Setup<'_>, claim: &str, volume: &str, read_only: bool) -> Result<Source, String> {
    let client = setup.context.client.as_ref().ok_or("there is no apiserver to ask for the claim")?;
    let namespace = setup.pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = claims.get(claim).await.map_err(|e| match e.is_not_found() {
        true => format!("error processing PVC {namespace}/{claim}: failed to fetch PVC from API server: persistentvolumeclaims \"{claim}\" not found"),
        false => format!("error processing PVC {namespace}/{claim}: failed to fetch PVC from API server: {e}"),
    })?;
    let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = found.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| bound && !n.is_empty());
    let name = name.ok_or_else(|| format!("error processing PVC {namespace}/{claim}: PVC is not bound"))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let pv = volumes.get(&name).await.map_err(|e| format!("failed to fetch PV {name:?} from API server: {e}"))?;
    let nothing = PersistentVolumeSpec::default();
    let spec = pv.spec.as_ref().unwrap_or(&nothing);
    let is_device = spec.volume_mode.as_deref() == Some("Block");
    check_use(setup.pod, volume, is_device)?;
    let is_exclusive = spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod");
    if is_exclusive && others_use(setup, namespace, claim) {
        let text = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
        return Err(text.to_owned());
    }
    if spec.csi.is_some() {
        let done = crate::csi::set_up(setup.context, setup.pod, &pv, &found, read_only).await;
        return done.map(if is_device { Source::Device } else { Source::Path }).map_err(|e| e.to_string());
    }
    if is_device {
        // Whatever its kind, what it names is the device.
        let named = spec.local.as_ref().map(|l| &l.path).or(spec.host_path.as_ref().map(|h| &h.path));
        let path = named.ok_or_else(|| format!("no volume plugin of this node takes block volume {name:?}"))?;
        return host_path(path, "BlockDevice").map(Source::Device);
    }
    let path = files(setup, spec, volume, read_only).await?;
    path.map(Source::Path).ok_or_else(|| format!("no volume plugin of this node takes volume {name:?}"))
}

/// A volume with a file system that no driver brings; none where it is of a kind that is not known here.
async fn files(
    setup: &Setup<'_>,
    spec: &PersistentVolumeSpec,
    volume: &str,
    read_only: bool,
) -> Result<Option<PathBuf>, String> {
    if let Some(host) = &spec.host_path {
        return host_path(&host.path, host.type_.as_deref().unwrap_or_default()).map(Some);
    }
    if let Some(local) = &spec.local {
        let path = PathBuf::from(&local.path);
        if !path.exists() {
            return Err(format!("path {:?} does not exist", local.path));
        }
        if !read_only {
            super::own(setup.pod, &path)
                .await
                .map_err(|e| format!("failed to set the group of {}: {e}", local.path))?;
        }
        return Ok(Some(path));
    }
    if let Some(nfs) = &spec.nfs {
        let read_only = read_only || nfs.read_only == Some(true);
        return mount_nfs(setup, &nfs.server, &nfs.path, read_only, &spec.mount_options, volume).await.map(Some);
    }
    Ok(None)
}

/// A device is no place to mount, and files are no device.
fn check_use(pod: &Pod, volume: &str, is_device: bool) -> Result<(), String> {
    let all = || plan::containers(pod).iter().chain(plan::init_containers(pod));
    let is_mounted = all().flat_map(|c| c.volume_mounts.iter().flatten()).any(|m| m.name == volume);
    let is_mapped = all().flat_map(|c| c.volume_devices.iter().flatten()).any(|d| d.name == volume);
    match is_device {
        true if is_mounted => Err(format!("volume {volume} has volumeMode Block, but is specified in volumeMounts")),
        false if is_mapped => {
            Err(format!("volume {volume} has volumeMode Filesystem, but is specified in volumeDevices"))
        }
        _ => Ok(()),
    }
}

/// Whether another pod that has not ended uses the claim here.
fn others_use(setup: &Setup<'_>, namespace: &str, claim: &str) -> bool {
    let others = setup.context.admitted.others(setup.pod.metadata.uid.as_deref().unwrap_or_default());
    others.iter().filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace)).any(|pod| {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let mut claims = volumes.filter_map(|v| v.persistent_volume_claim.as_ref());
        claims.any(|c| c.claim_name == claim)
    })
}

/// NFS, through the host's own `mount` and its helper.
pub(super) async fn mount_nfs(
    setup: &Setup<'_>,
    server: &str,
    path: &str,
    read_only: bool,
    options: &Option<Vec<String>>,
    volume: &str,
) -> Result<PathBuf, String> {
    let uid = setup.pod.metadata.uid.as_deref().unwrap_or_default();
    let dir = super::pod_dir(&setup.context.root, uid).join("volumes/kubernetes.io~nfs").join(volume);
    make_dir(&dir, 0o750).map_err(|e| e.to_string())?;
    if super::is_mount_point(&dir).map_err(|e| e.to_string())? {
        return Ok(dir);
    }
    let mut all = options.clone().unwrap_or_default();
    if read_only {
        all.push("ro".to_owned());
    }
    let mut command = tokio::process::Command::new("mount");
    command.args(["-t", "nfs"]);
    if !all.is_empty() {
        command.args(["-o", &all.join(",")]);
    }
    let source = if server.contains(':') { format!("[{server}]:{path}") } else { format!("{server}:{path}") };
    let done = command.arg(source).arg(&dir).kill_on_drop(true).output();
    let done = done.await.map_err(|e| format!("mount failed: {e}"))?;
    if done.status.success() {
        return Ok(dir);
    }
    let shown = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(format!("mount failed: {}\nOutput: {shown}", done.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_not_mounted_and_files_are_no_device() {
        let check = |container: serde_json::Value, is_device: bool, want: Result<(), &str>| {
            let pod = serde_json::json!({"spec": {"containers": [container]}});
            let got = check_use(&serde_json::from_value(pod).unwrap(), "v", is_device);
            assert_eq!(got, want.map_err(str::to_owned), "{container} {is_device}");
        };
        let mounts = serde_json::json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        let maps = serde_json::json!({"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]});
        check(mounts.clone(), false, Ok(()));
        check(maps.clone(), true, Ok(()));
        check(mounts, true, Err("volume v has volumeMode Block, but is specified in volumeMounts"));
        check(maps, false, Err("volume v has volumeMode Filesystem, but is specified in volumeDevices"));
    }
}
