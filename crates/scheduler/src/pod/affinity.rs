//! A pod's terms of affinity and anti-affinity to other pods, compiled.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};

use crate::selector::{Labels, Selector, labels_of};

/// Selects pods by namespace and labels, and says over which topology they count as near.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    pub pods: PodSelection,
    pub topology_key: Arc<str>,
}

/// Pods of some namespaces that a selector selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodSelection {
    /// Sorted.
    pub namespaces: Box<[Box<str>]>,
    /// Namespaces with these labels are meant too.
    pub namespace_selector: Option<Selector>,
    /// Selects nothing without one.
    pub selector: Option<Selector>,
}

impl PodSelection {
    /// `namespace_labels` are those of the pod's namespace.
    #[must_use]
    pub fn matches(&self, namespace: &str, labels: &Labels, namespace_labels: &Labels) -> bool {
        let Some(selector) = &self.selector else { return false };
        let here = self.namespaces.iter().any(|own| **own == *namespace)
            || self.namespace_selector.as_ref().is_some_and(|own| own.matches(namespace_labels));
        here && selector.matches(labels)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedTerm {
    pub term: AffinityTerm,
    /// 1 to 100; negative for anti-affinity.
    pub weight: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAffinityTerms {
    pub required: Box<[AffinityTerm]>,
    pub required_anti: Box<[AffinityTerm]>,
    /// Affinity with positive and anti-affinity with negative weights.
    pub preferred: Box<[WeightedTerm]>,
}

impl PodAffinityTerms {
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
        let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
        if near.is_none() && far.is_none() {
            return None;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = labels_of(pod.metadata.labels.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| term_of(term, namespace, labels)).collect()
        };
        let weighted = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| {
            let terms = terms.into_iter().flatten();
            let weigh = |weighted: &WeightedPodAffinityTerm| WeightedTerm {
                term: term_of(&weighted.pod_affinity_term, namespace, labels),
                weight: sign * i64::from(weighted.weight),
            };
            terms.map(weigh).collect::<Vec<_>>()
        };
        let mut preferred =
            weighted(near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), 1);
        preferred
            .extend(weighted(far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), -1));
        Some(Self {
            required: required(near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            required_anti: required(far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            preferred: preferred.into(),
        })
    }
}

/// Without namespaces the pod's own is meant. `matchLabelKeys` and `mismatchLabelKeys` are requirements with the pod's
/// own values; an API server may have written them into the selector already, which changes nothing.
fn term_of(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> AffinityTerm {
    let mut namespaces: Vec<Box<str>> = term.namespaces.iter().flatten().map(|name| name.as_str().into()).collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.push(namespace.into());
    }
    namespaces.sort_unstable();
    namespaces.dedup();
    let own_values = |keys: &Option<Vec<String>>| {
        let keys = keys.clone().unwrap_or_default();
        keys.into_iter().filter_map(|key| labels.get(&key).map(|value| (key, vec![value.clone()]))).collect::<Vec<_>>()
    };
    let (same, other) = (own_values(&term.match_label_keys), own_values(&term.mismatch_label_keys));
    let extra = same.iter().map(|(key, values)| (key.as_str(), "In", values.as_slice()));
    let extra = extra.chain(other.iter().map(|(key, values)| (key.as_str(), "NotIn", values.as_slice())));
    AffinityTerm {
        pods: PodSelection {
            namespaces: namespaces.into(),
            namespace_selector: term.namespace_selector.as_ref().map(Selector::of),
            selector: term.label_selector.as_ref().map(|selector| Selector::of_parts(selector, extra)),
        },
        topology_key: term.topology_key.as_str().into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn only_term(term: serde_json::Value) -> AffinityTerm {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "own", "labels": {"app": "web", "hash": "1"}},
            "spec": {"containers": [], "affinity": {"podAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}}))
        .unwrap();
        PodAffinityTerms::of(&pod).unwrap().required[0].clone()
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn a_term_means_its_own_namespace_unless_it_says_otherwise() {
        let web = labels(&[("app", "web")]);
        let none = Labels::new();
        let plain = only_term(json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"app": "web"}}}));
        assert!(plain.pods.matches("own", &web, &none));
        assert!(!plain.pods.matches("other", &web, &none));
        let all = only_term(json!({"topologyKey": "z", "labelSelector": {}, "namespaceSelector": {}}));
        assert!(all.pods.matches("other", &none, &none));
        let team =
            json!({"topologyKey": "z", "labelSelector": {}, "namespaceSelector": {"matchLabels": {"team": "a"}}});
        assert!(only_term(team.clone()).pods.matches("other", &none, &labels(&[("team", "a")])));
        assert!(!only_term(team).pods.matches("own", &none, &none));
        assert!(!only_term(json!({"topologyKey": "z"})).pods.matches("own", &web, &none));
    }

    #[test]
    fn label_keys_stand_for_the_pods_own_values() {
        let term = only_term(json!({"topologyKey": "z", "labelSelector": {}, "matchLabelKeys": ["hash", "absent"]}));
        assert!(term.pods.matches("own", &labels(&[("hash", "1")]), &Labels::new()));
        assert!(!term.pods.matches("own", &labels(&[("hash", "2")]), &Labels::new()));
        let term = only_term(json!({"topologyKey": "z", "labelSelector": {}, "mismatchLabelKeys": ["hash"]}));
        assert!(term.pods.matches("own", &labels(&[("hash", "2")]), &Labels::new()));
        assert!(!term.pods.matches("own", &labels(&[("hash", "1")]), &Labels::new()));
    }
}
