//! Comparing and naming pod templates.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use sha2::{Digest, Sha256};

use crate::error::SyncError;

pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Letters of generated names: without vowels, so that they spell nothing.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name for the template's content. `collisions` makes another name of the same content, for the case that the
/// first is taken.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> Result<String, SyncError> {
    let mut hasher = Sha256::new();
    // Through a value tree, whose maps are sorted.
    hasher.update(serde_json::to_value(template)?.to_string());
    if let Some(collisions) = collisions {
        hasher.update(collisions.to_le_bytes());
    }
    let digest = hasher.finalize();
    Ok(digest.iter().take(10).map(|byte| char::from(SAFE[usize::from(*byte) % SAFE.len()])).collect())
}

/// Whether two templates make the same pods; the label that tells them apart does not count.
pub(crate) fn is_same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    without_hash(a) == without_hash(b)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodSpec};
    use kube::core::ObjectMeta;

    use super::*;

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        let mut labels = std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        labels.extend(hash.map(|hash| (HASH_LABEL.to_owned(), hash.to_owned())));
        PodTemplateSpec {
            metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
            spec: Some(PodSpec {
                containers: vec![Container { image: Some(image.into()), ..Container::default() }],
                ..PodSpec::default()
            }),
        }
    }

    #[test]
    fn content_names_and_the_hash_label_does_not_count() {
        let name = hash(&template("a", None), None).unwrap();
        assert_eq!((name.len(), &name), (10, &hash(&template("a", None), None).unwrap()));
        assert_ne!(name, hash(&template("b", None), None).unwrap());
        assert_ne!(name, hash(&template("a", None), Some(1)).unwrap());
        assert!(is_same(&template("a", Some("x")), &template("a", Some("y"))));
        assert!(!is_same(&template("a", None), &template("b", None)));
    }
}
