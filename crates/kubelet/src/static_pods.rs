//! Pods from files on this node, and their mirrors in the API.

use std::collections::BTreeMap;
use std::path::Path;

use client::error::{ApiError, ignore_not_found};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use sha2::{Digest, Sha256};

use crate::labels;

/// Whether the pod comes from a file, and not from the API.
pub(crate) fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|a| a.get(labels::CONFIG_SOURCE));
    source.is_some_and(|s| s != "api")
}

pub(crate) fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(labels::CONFIG_MIRROR))
}

/// The uid that a status patch must name: `Some(None)` for a static pod, whose mirror has a uid of its own.
#[expect(clippy::option_option, reason = "the pod's uid, any uid, or no pod of the API at all")]
pub(crate) fn api_identity(pod: &Pod) -> Option<Option<String>> {
    if is_static(pod) { Some(None) } else { pod.metadata.uid.clone().map(Some) }
}

/// All pods of a directory, by file order; a file that holds no pod is reported and left out.
pub(crate) fn read(dir: &Path, node_name: &str) -> Vec<Pod> {
    let mut files: Vec<_> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(Result::ok).map(|e| e.path()).collect(),
        Err(_) => return Vec::new(), // made later, or never
    };
    files.retain(|f| f.is_file() && !f.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')));
    files.sort();
    let mut pods = BTreeMap::new();
    for file in files {
        let read = std::fs::read_to_string(&file).map_err(|e| e.to_string());
        match read.and_then(|text| parse(&text, &file, node_name)) {
            Ok(pod) => {
                pods.entry(pod.metadata.uid.clone()).or_insert(pod);
            }
            Err(error) => tracing::error!(file = %file.display(), error, "this file is no pod"),
        }
    }
    pods.into_values().collect()
}

fn parse(text: &str, file: &Path, node_name: &str) -> Result<Pod, String> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    pod_of(value, "file", &[&file.to_string_lossy(), text], node_name)
}

/// The pods that a URL's answer holds: one, or a list of them.
pub(crate) fn parse_answer(text: &str, url: &str, node_name: &str) -> Result<Vec<Pod>, String> {
    let mut value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let items = match value["kind"].as_str() {
        Some("PodList") => match value["items"].take() {
            serde_json::Value::Array(items) => items,
            _ => Vec::new(),
        },
        _ => vec![value],
    };
    let each = items.into_iter().map(|mut item| {
        let members = item.as_object_mut().ok_or("it is no object")?;
        // Members of a list need not say what they are.
        for (name, word) in [("kind", "Pod"), ("apiVersion", "v1")] {
            let member = members.entry(name).or_insert_with(|| word.into());
            if member.is_null() {
                *member = word.into();
            }
        }
        let seed = item.to_string();
        pod_of(item, "http", &[url, &seed], node_name)
    });
    each.collect()
}

/// `seed` is what makes the pod another one when it changes.
fn pod_of(value: serde_json::Value, source: &str, seed: &[&str], node_name: &str) -> Result<Pod, String> {
    if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
        return Err(format!("its kind is {} of {}", value["kind"], value["apiVersion"]));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("it has no name")?;
    let mut hash = Sha256::new();
    hash.update(node_name.as_bytes());
    for part in seed {
        hash.update(part.as_bytes());
    }
    let digest: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{name}-{node_name}"));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    // The uid changes with the file's content: a changed pod is another pod, which replaces the old one.
    meta.uid = Some(digest.clone());
    let annotations = meta.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(labels::CONFIG_SOURCE.to_owned(), source.to_owned());
    annotations.insert(labels::CONFIG_HASH.to_owned(), digest);
    annotations.insert(labels::CONFIG_SEEN.to_owned(), jiff::Timestamp::now().to_string());
    let spec = pod.spec.as_mut().ok_or("it has no spec")?;
    spec.node_name = Some(node_name.to_owned());
    // Nothing on this node evicts it.
    let tolerations = spec.tolerations.get_or_insert_with(Vec::new);
    tolerations.push(k8s_openapi::api::core::v1::Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Default::default()
    });
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
    }
    Ok(pod)
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether this mirror shows this static pod as it is now, and stays.
pub(crate) fn mirrors(mirror: &Pod, pod: &Pod) -> bool {
    is_mirror(mirror)
        && mirror.metadata.name == pod.metadata.name
        && mirror.metadata.namespace == pod.metadata.namespace
        && mirror.metadata.deletion_timestamp.is_none()
        && annotation(mirror, labels::CONFIG_MIRROR) == annotation(pod, labels::CONFIG_HASH)
}

/// Takes a mirror from the API whose pod is gone or another one.
pub(crate) async fn remove_mirror(client: &kube::Client, mirror: &Pod) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), mirror.metadata.namespace.as_deref().unwrap_or_default());
    let only = Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default().grace_period(0) };
    ignore_not_found(api.delete(mirror.metadata.name.as_deref().unwrap_or_default(), &params).await).map(drop)
}

/// Makes the API show a static pod: a mirror with the same hash, owned by the Node. A node may not ask for pods that do
/// not exist, so that the watch has to say whether there is one already.
pub(crate) async fn make_mirror(client: &kube::Client, pod: &Pod, node_name: &str) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.status = None;
    let hash = annotation(pod, labels::CONFIG_HASH).unwrap_or_default().to_owned();
    mirror.metadata.annotations.get_or_insert_with(BTreeMap::new).insert(labels::CONFIG_MIRROR.to_owned(), hash);
    let node = Api::<Node>::all(client.clone()).get(node_name).await?;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name.to_owned(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    match api.create(&PostParams::default(), &mirror).await {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_one_pod_or_several() {
        let pod = |name: &str| format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"containers": []}}}}"#);
        let names = |text: &str| {
            let pods = parse_answer(text, "http://example.com", "n1");
            pods.map(|all| all.into_iter().filter_map(|p| p.metadata.name).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(names(&pod("a")).as_deref(), Ok("a-n1"));
        let list = format!(r#"{{"kind": "PodList", "apiVersion": "v1", "items": [{}, {}]}}"#, pod("a"), pod("b"));
        assert_eq!(names(&list).as_deref(), Ok("a-n1 b-n1"));
        let not_pods = [
            r#"{"kind": "Deployment", "apiVersion": "apps/v1"}"#,
            "it works",
            "[1]",
            r#"{"kind": "PodList", "apiVersion": "v1", "items": ["x"]}"#,
        ];
        for text in not_pods {
            assert!(names(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_becomes_a_pod_of_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "web.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n",
        );
        write("broken.yaml", "apiVersion: v1\nkind: Pod\n");
        write(".hidden.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: no}\nspec: {containers: []}\n");
        let pods = read(dir.path(), "node1");
        assert_eq!(pods.len(), 1);
        let pod = &pods[0];
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        assert!(is_static(pod) && !is_mirror(pod));
        assert_eq!(api_identity(pod), Some(None));
        let mut mirror = pod.clone();
        assert!(!mirrors(&mirror, pod));
        let hash = annotation(pod, labels::CONFIG_HASH).unwrap().to_owned();
        mirror.metadata.annotations.as_mut().unwrap().insert(labels::CONFIG_MIRROR.to_owned(), hash);
        assert!(mirrors(&mirror, pod));
        write(
            "web.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: j}]}\n",
        );
        assert_ne!(read(dir.path(), "node1")[0].metadata.uid, pod.metadata.uid);
    }
}
