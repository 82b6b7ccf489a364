//! What components that keep all pods of a cluster need not keep of each.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, Volume};

/// Takes away from a pod what only the kubelet that runs it reads: how its containers start and are probed, and volumes
/// that neither a claim nor a driver stands behind. That is most of a pod's memory.
///
/// What is left must not be written back as a whole: read the pod anew, or patch it.
pub fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(trim_container);
        spec.ephemeral_containers = None;
        if let Some(volumes) = &mut spec.volumes {
            volumes.retain(is_stored_elsewhere);
            volumes.shrink_to_fit();
        }
        spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
        spec.containers.shrink_to_fit();
    }
    if let Some(status) = &mut pod.status {
        let of_init = status.init_container_statuses.iter_mut().flatten();
        of_init.chain(status.container_statuses.iter_mut().flatten()).for_each(trim_status);
        status.ephemeral_container_statuses = None;
    }
}

fn trim_container(container: &mut Container) {
    container.args = None;
    container.command = None;
    container.env = None;
    container.env_from = None;
    container.lifecycle = None;
    container.liveness_probe = None;
    container.readiness_probe = None;
    container.startup_probe = None;
    container.termination_message_path = None;
    container.termination_message_policy = None;
    container.volume_devices = None;
    container.volume_mounts = None;
    container.working_dir = None;
}

fn trim_status(status: &mut ContainerStatus) {
    status.container_id = None;
    status.user = None;
    status.volume_mounts = None;
}

/// Everything but what the kubelet makes of the API's objects or of its own disk.
fn is_stored_elsewhere(volume: &Volume) -> bool {
    volume.config_map.is_none()
        && volume.downward_api.is_none()
        && volume.empty_dir.is_none()
        && volume.host_path.is_none()
        && volume.projected.is_none()
        && volume.secret.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_what_places_a_pod_and_drops_what_runs_it() {
        let mut pod = serde_json::from_value(json!({
            "metadata": { "name": "a", "labels": { "app": "web" } },
            "spec": {
                "nodeName": "n",
                "containers": [{
                    "name": "c",
                    "image": "i",
                    "command": ["sleep"],
                    "env": [{ "name": "K", "value": "v" }],
                    "livenessProbe": { "tcpSocket": { "port": 80 } },
                    "ports": [{ "containerPort": 80, "hostPort": 80 }],
                    "resources": { "requests": { "cpu": "1" } },
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                }],
                "volumes": [
                    { "name": "data", "persistentVolumeClaim": { "claimName": "data" } },
                    { "name": "keys", "secret": { "secretName": "keys" } },
                    { "name": "scratch", "emptyDir": {} },
                    { "name": "token", "projected": { "sources": [] } },
                ],
            },
            "status": { "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 2,
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }] },
        }))
        .unwrap();
        trim_pod(&mut pod);
        let want = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "a", "labels": { "app": "web" } },
            "spec": {
                "nodeName": "n",
                "containers": [{
                    "name": "c",
                    "image": "i",
                    "ports": [{ "containerPort": 80, "hostPort": 80 }],
                    "resources": { "requests": { "cpu": "1" } },
                }],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }],
            },
            "status": { "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 2,
            }] },
        });
        assert_eq!(serde_json::to_value(&pod).unwrap(), want);
    }
}
