//! Volumes behind claims: the claim's PersistentVolume, and what this node does with each kind of it.

use std::path::PathBuf;

use client::error::ApiError;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;

use super::{Setup, host_path, make_dir};

pub(super) async fn set_up(setup: &Setup<'_>, claim: &str, volume: &str) -> Result<PathBuf, String> {
    let client = setup.client.ok_or("there is no apiserver to ask for the claim")?;
    let namespace = setup.pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let found = claims.get(claim).await.map_err(|e| match e.is_not_found() {
        true => format!("error processing PVC {namespace}/{claim}: failed to fetch PVC from API server: persistentvolumeclaims \"{claim}\" not found"),
        false => format!("error processing PVC {namespace}/{claim}: failed to fetch PVC from API server: {e}"),
    })?;
    let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = found.spec.and_then(|s| s.volume_name).filter(|n| bound && !n.is_empty());
    let name = name.ok_or_else(|| format!("error processing PVC {namespace}/{claim}: PVC is not bound"))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let pv = volumes.get(&name).await.map_err(|e| format!("failed to fetch PV {name:?} from API server: {e}"))?;
    let spec = pv.spec.unwrap_or_default();
    if let Some(host) = &spec.host_path {
        return host_path(&host.path, host.type_.as_deref().unwrap_or_default());
    }
    if let Some(local) = &spec.local {
        let path = PathBuf::from(&local.path);
        if !path.exists() {
            return Err(format!("path {:?} does not exist", local.path));
        }
        setup.own(&path).map_err(|e| format!("failed to set the group of {}: {e}", local.path))?;
        return Ok(path);
    }
    if let Some(nfs) = &spec.nfs {
        return mount_nfs(setup, &nfs.server, &nfs.path, nfs.read_only == Some(true), &spec.mount_options, volume)
            .await;
    }
    Err(format!("no volume plugin of this node takes volume {name:?}"))
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
    let dir = super::pod_dir(setup.root, uid).join("volumes/kubernetes.io~nfs").join(volume);
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
