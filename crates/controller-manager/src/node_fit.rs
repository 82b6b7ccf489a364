//! Whether a pod may be on a node: node names, selectors, affinity and taints, without resources.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// Whether the node is one that the pod asks for.
pub(crate) fn is_wanted(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let has = |key: &String, value: &String| labels.and_then(|labels| labels.get(key)) == Some(value);
    if !spec.node_selector.iter().flatten().all(|(key, value)| has(key, value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

/// A term without requirements matches nothing.
fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |requirement: &NodeSelectorRequirement| {
        let labels = node.metadata.labels.as_ref();
        matches(requirement, labels.and_then(|labels| labels.get(&requirement.key)).map(String::as_str))
    };
    let field = |requirement: &NodeSelectorRequirement| {
        let value = (requirement.key == "metadata.name").then_some(node.metadata.name.as_deref()).flatten();
        matches(requirement, value)
    };
    expressions.iter().all(label) && fields.iter().all(field)
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_in = value.is_some_and(|value| values.iter().any(|known| known == value));
    let numbers = || {
        let (value, bound) = (value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?);
        Some((value, bound))
    };
    match requirement.operator.as_str() {
        "In" => is_in,
        "NotIn" => !is_in,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether every taint of these effects is tolerated.
pub(crate) fn tolerates_all(tolerations: &[Toleration], taints: &[Taint], effects: &[&str]) -> bool {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let values = || (toleration.value.as_deref().unwrap_or_default(), taint.value.as_deref().unwrap_or_default());
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => !key.is_empty() && values().0 == values().1,
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Affinity, NodeAffinity, NodeSelector};
    use kube::core::ObjectMeta;

    use super::*;

    fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        NodeSelectorRequirement { key: key.into(), operator: operator.into(), values: Some(values) }
    }

    fn node() -> Node {
        let labels = [("disk", "ssd"), ("cores", "8")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let metadata = ObjectMeta { name: Some("n1".into()), labels: Some(labels.into()), ..ObjectMeta::default() };
        Node { metadata, ..Node::default() }
    }

    #[test]
    fn operators_mean_what_they_say() {
        for (requirement, want) in [
            (requirement("disk", "In", &["hdd", "ssd"]), true),
            (requirement("disk", "NotIn", &["ssd"]), false),
            (requirement("gpu", "NotIn", &["x"]), true),
            (requirement("disk", "Exists", &[]), true),
            (requirement("gpu", "DoesNotExist", &[]), true),
            (requirement("cores", "Gt", &["4"]), true),
            (requirement("cores", "Lt", &["8"]), false),
            (requirement("disk", "Gt", &["4"]), false),
        ] {
            let term = NodeSelectorTerm { match_expressions: Some(vec![requirement.clone()]), match_fields: None };
            assert_eq!(matches_term(&term, &node()), want, "{requirement:?}");
        }
        assert!(!matches_term(&NodeSelectorTerm::default(), &node()));
    }

    #[test]
    fn terms_are_alternatives_and_selectors_are_not() {
        let field = |name: &str| NodeSelectorTerm {
            match_fields: Some(vec![requirement("metadata.name", "In", &[name])]),
            match_expressions: None,
        };
        let required = NodeSelector { node_selector_terms: vec![field("n9"), field("n1")] };
        let affinity = NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            ..NodeAffinity::default()
        };
        let mut spec = PodSpec {
            affinity: Some(Affinity { node_affinity: Some(affinity), ..Affinity::default() }),
            ..PodSpec::default()
        };
        assert!(is_wanted(&spec, &node()));
        spec.node_selector = Some([("disk".to_owned(), "hdd".to_owned())].into());
        assert!(!is_wanted(&spec, &node()));
    }

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        let taint = Taint { key: "a".into(), value: Some("x".into()), effect: "NoExecute".into(), ..Taint::default() };
        let with = |operator: &str, key: &str, value: &str, effect: &str| {
            let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let toleration = Toleration {
                key: text(key),
                operator: text(operator),
                value: text(value),
                effect: text(effect),
                ..Toleration::default()
            };
            tolerates(&toleration, &taint)
        };
        assert!(with("Equal", "a", "x", "") && with("", "a", "x", "NoExecute") && with("Exists", "", "", ""));
        assert!(!with("Equal", "a", "y", "") && !with("Equal", "a", "x", "NoSchedule") && !with("", "", "x", ""));
        assert!(!with("Exists", "b", "", ""));
    }
}
