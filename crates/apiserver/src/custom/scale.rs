//! Where a custom resource has what its `scale` subresource shows.

use apimachinery::Value;
use compact_str::CompactString;

/// The paths that a version of a definition names, as keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScalePaths {
    pub spec_replicas: Vec<CompactString>,
    pub status_replicas: Vec<CompactString>,
    /// Empty: it has no selector.
    pub selector: Vec<CompactString>,
}

impl ScalePaths {
    /// `None` for a version without `scale`.
    #[must_use]
    pub(super) fn of(version: &Value) -> Option<Self> {
        let scale = version.at(&["subresources", "scale"]);
        scale.as_object()?;
        let keys = |field: &str| {
            let path = scale.str_at(&[field]).trim_start_matches('.');
            if path.is_empty() { Vec::new() } else { path.split('.').map(CompactString::from).collect() }
        };
        Some(ScalePaths {
            spec_replicas: keys("specReplicasPath"),
            status_replicas: keys("statusReplicasPath"),
            selector: keys("labelSelectorPath"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_keys() {
        let version = serde_json::from_str(
            r#"{"subresources":{"scale":{"specReplicasPath":".spec.pool.size","statusReplicasPath":".status.size"}}}"#,
        )
        .unwrap();
        let paths = ScalePaths::of(&version).unwrap();
        assert_eq!(paths.spec_replicas, ["spec", "pool", "size"]);
        assert_eq!(paths.status_replicas, ["status", "size"]);
        assert!(paths.selector.is_empty());
        assert_eq!(ScalePaths::of(&Value::object()), None);
    }
}
