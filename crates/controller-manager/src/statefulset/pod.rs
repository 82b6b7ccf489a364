//! The pods of a StatefulSet: their names, their places, their volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
};

use crate::pod_control::pod_of;

pub(super) const REVISION_LABEL: &str = "controller-revision-hash";
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The StatefulSet's name and the number at the end of a pod's name.
pub(super) fn parent_and_ordinal(pod: &Pod) -> Option<(&str, i32)> {
    let (parent, ordinal) = pod.metadata.name.as_deref()?.rsplit_once('-')?;
    let plain = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    Some((parent, plain.then(|| ordinal.parse().ok()).flatten()?))
}

/// A pod whose name says that it is of this set.
pub(super) fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    parent_and_ordinal(pod).is_some_and(|(parent, _)| set.metadata.name.as_deref() == Some(parent))
}

pub(super) fn ordinal(pod: &Pod) -> i32 {
    parent_and_ordinal(pod).map_or(-1, |(_, ordinal)| ordinal)
}

/// The first ordinal, and the one after the last.
pub(super) fn range(set: &StatefulSet) -> (i32, i32) {
    let spec = set.spec.as_ref();
    let start = spec.and_then(|spec| spec.ordinals.as_ref()).and_then(|ordinals| ordinals.start).unwrap_or_default();
    (start, start.saturating_add(spec.and_then(|spec| spec.replicas).unwrap_or(1)))
}

pub(super) fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL)).map_or("", String::as_str)
}

pub(super) fn name_of(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

/// The claims that a pod of this ordinal uses, by the name of the template.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> BTreeMap<String, PersistentVolumeClaim> {
    let spec = set.spec.as_ref();
    let templates = spec.and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default();
    let matched = spec.and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        let volume = template.metadata.name.clone().unwrap_or_default();
        claim.metadata.name = Some(format!("{volume}-{}", name_of(set, ordinal)));
        claim.metadata.namespace.clone_from(&set.metadata.namespace);
        claim.metadata.labels.get_or_insert_default().extend(matched.clone());
        claim.status = None;
        (volume, claim)
    };
    templates.iter().map(claim).collect()
}

/// The pod of this ordinal and template.
pub(super) fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pod_of(set, template);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name_of(set, ordinal));
    let name = name_of(set, ordinal);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    pod.metadata.labels.get_or_insert_default().insert(REVISION_LABEL.to_owned(), revision.to_owned());
    identify(set, &mut pod);
    pod
}

/// Gives a pod the labels and volumes of its place; whether that changed anything.
pub(super) fn identify(set: &StatefulSet, pod: &mut Pod) -> bool {
    let ordinal = ordinal(pod);
    let labels = pod.metadata.labels.get_or_insert_default();
    let mut changed = false;
    for (label, value) in [(POD_NAME_LABEL, name_of(set, ordinal)), (POD_INDEX_LABEL, ordinal.to_string())] {
        if labels.get(label) != Some(&value) {
            labels.insert(label.to_owned(), value);
            changed = true;
        }
    }
    changed | mount_claims(set, pod, ordinal)
}

fn mount_claims(set: &StatefulSet, pod: &mut Pod, ordinal: i32) -> bool {
    let claims = claims(set, ordinal);
    let volumes = pod.spec.get_or_insert_default().volumes.get_or_insert_default();
    let claim_of = |volume: &Volume| volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
    let is_mounted = |(name, claim): (&String, &PersistentVolumeClaim)| {
        volumes.iter().any(|volume| volume.name == *name && claim_of(volume) == claim.metadata.name)
    };
    if claims.iter().all(is_mounted) {
        return false;
    }
    volumes.retain(|volume| !claims.contains_key(&volume.name));
    let volume = |(name, claim): (String, PersistentVolumeClaim)| Volume {
        name,
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.metadata.name.unwrap_or_default(),
            read_only: Some(false),
        }),
        ..Volume::default()
    };
    volumes.splice(0..0, claims.into_iter().map(volume));
    true
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{apps::v1::StatefulSetSpec, core::v1::PodSpec},
        apimachinery::pkg::apis::meta::v1::LabelSelector,
    };
    use kube::core::ObjectMeta;

    use super::*;

    fn named(name: &str) -> ObjectMeta {
        ObjectMeta { name: Some(name.into()), namespace: Some("ns".into()), ..ObjectMeta::default() }
    }

    #[test]
    fn names_have_a_parent_and_an_ordinal() {
        let check = |name: &str, want: Option<(&str, i32)>| {
            assert_eq!(parent_and_ordinal(&Pod { metadata: named(name), ..Pod::default() }), want, "{name}");
        };
        check("web-0", Some(("web", 0)));
        check("my-web-12", Some(("my-web", 12)));
        check("web", None);
        check("web-x", None);
        check("web--1", Some(("web-", 1)));
    }

    #[test]
    fn a_pod_has_its_name_its_host_and_its_claims() {
        let set = StatefulSet {
            metadata: named("web"),
            spec: Some(StatefulSetSpec {
                service_name: Some("svc".into()),
                selector: LabelSelector {
                    match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
                    match_expressions: None,
                },
                volume_claim_templates: Some(vec![PersistentVolumeClaim {
                    metadata: named("data"),
                    ..PersistentVolumeClaim::default()
                }]),
                ..StatefulSetSpec::default()
            }),
            status: None,
        };
        let template = PodTemplateSpec {
            spec: Some(PodSpec {
                volumes: Some(vec![
                    Volume { name: "data".into(), ..Volume::default() },
                    Volume { name: "x".into(), ..Volume::default() },
                ]),
                ..PodSpec::default()
            }),
            metadata: None,
        };
        let mut pod = new_pod(&set, &template, "web-abc", 2);
        let spec = pod.spec.clone().unwrap();
        assert_eq!(
            (pod.metadata.name.as_deref(), spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("web-2"), Some("web-2"), Some("svc"))
        );
        let volumes = spec.volumes.unwrap();
        assert_eq!(volumes.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["data", "x"]);
        assert_eq!(volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-web-2");
        assert_eq!(pod.metadata.labels.as_ref().unwrap()[POD_INDEX_LABEL], "2");
        assert_eq!(claims(&set, 2)["data"].metadata.labels.as_ref().unwrap()["app"], "web");
        assert!(!identify(&set, &mut pod));
        pod.metadata.labels = None;
        assert!(identify(&set, &mut pod));
    }
}
