//! The labels and annotations by which a kubelet finds its pods again in the runtime: upstream's names, so that one kubelet
//! can take over from another.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::checkpoint::sum_of;

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub(crate) const HASH: &str = "io.kubernetes.container.hash";
pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub(crate) const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub(crate) const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub(crate) const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Annotations of a pod that came from a file, as upstream names them.
pub(crate) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
pub(crate) const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub(crate) const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
pub(crate) const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

pub(crate) fn of_pod(pod: &Pod) -> HashMap<String, String> {
    let meta = &pod.metadata;
    let mut labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    for (key, value) in [(POD_NAME, &meta.name), (POD_NAMESPACE, &meta.namespace), (POD_UID, &meta.uid)] {
        labels.insert(key.to_owned(), value.clone().unwrap_or_default());
    }
    labels
}

pub(crate) fn of_container(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let mut labels = HashMap::new();
    let meta = &pod.metadata;
    for (key, value) in [(POD_NAME, &meta.name), (POD_NAMESPACE, &meta.namespace), (POD_UID, &meta.uid)] {
        labels.insert(key.to_owned(), value.clone().unwrap_or_default());
    }
    labels.insert(CONTAINER_NAME.to_owned(), container.name.clone());
    labels
}

/// Changes when the container must be made anew: when its image does, as the API allows no other change that would ask for
/// that. It is upstream's sum of both names, so that one kubelet leaves the other's containers as they are.
pub(crate) fn hash_of(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let names = serde_json::json!({ "image": image, "name": container.name }).to_string();
    let bytes: Vec<String> = names.bytes().map(|byte| byte.to_string()).collect();
    format!("{:x}", sum_of(&format!("([]uint8)[{}]", bytes.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_hash_that_upstream_gives_it() {
        let container = Container {
            name: "test_container".to_owned(),
            image: Some("foo/image:v1".to_owned()),
            args: Some(vec!["/bin/sh".to_owned()]),
            ..Container::default()
        };
        assert_eq!(hash_of(&container), "8e45cbd0");
    }
}
