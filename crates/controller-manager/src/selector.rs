//! Label selectors of specs.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::error::SyncError;

/// Reads a selector. Without one nothing is selected, which `None` stands for; an empty one selects everything.
pub(crate) fn selector_of(spec: Option<&LabelSelector>) -> Result<Option<Selector>, SyncError> {
    spec.map(|spec| Selector::try_from(spec.clone()).map_err(|err| SyncError::Selector(err.to_string()))).transpose()
}

/// Whether the labels are selected; objects without labels have none of them.
pub(crate) fn selects(selector: &Selector, labels: Option<&BTreeMap<String, String>>) -> bool {
    match labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&BTreeMap::new()),
    }
}

/// Whether the plain map of a Service or ReplicationController selects the labels; an empty map selects nothing.
pub(crate) fn map_selects(map: Option<&BTreeMap<String, String>>, labels: Option<&BTreeMap<String, String>>) -> bool {
    let (Some(map), Some(labels)) = (map, labels) else { return false };
    !map.is_empty() && map.iter().all(|(key, value)| labels.get(key) == Some(value))
}
