//! Label selectors and node selector terms, compiled for matching and comparable with each other.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;

/// Labels as objects carry them.
pub type Labels = BTreeMap<String, String>;

static NO_LABELS: Labels = Labels::new();

/// An object's labels, none if it has no map of them.
#[must_use]
pub fn labels_of(labels: Option<&Labels>) -> &Labels {
    labels.unwrap_or(&NO_LABELS)
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// An operator that we do not know, or a bound that is not a number: holds for nothing.
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: Box<str>,
    operator: Operator,
    /// Sorted.
    values: Box<[Box<str>]>,
}

impl Requirement {
    fn new(key: &str, operator: &str, values: &[String]) -> Self {
        let bound = || values.first().and_then(|v| v.parse().ok());
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => bound().map_or(Operator::Invalid, Operator::Gt),
            "Lt" => bound().map_or(Operator::Invalid, Operator::Lt),
            _ => Operator::Invalid,
        };
        let mut values: Vec<Box<str>> = values.iter().map(|v| v.as_str().into()).collect();
        values.sort_unstable();
        Self { key: key.into(), operator, values: values.into() }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|own| **own == *value);
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(bound) => number().is_some_and(|n| n > bound),
            Operator::Lt(bound) => number().is_some_and(|n| n < bound),
            Operator::Invalid => false,
        }
    }
}

/// Selects objects by their labels. The one without requirements selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Sorted, so that equal selectors compare equal whatever the order they were written in.
    requirements: Vec<Requirement>,
}

impl Selector {
    #[must_use]
    pub fn of(selector: &ApiSelector) -> Self {
        Self::of_parts(selector, std::iter::empty())
    }

    /// The selector, and besides it `extra` requirements of key, operator and values.
    pub fn of_parts<'a>(
        selector: &ApiSelector,
        extra: impl IntoIterator<Item = (&'a str, &'a str, &'a [String])>,
    ) -> Self {
        let mut own = Self::exactly(selector.match_labels.iter().flatten());
        let expressions = selector.match_expressions.iter().flatten();
        own.requirements.extend(
            expressions.map(|e| Requirement::new(&e.key, &e.operator, e.values.as_deref().unwrap_or_default())),
        );
        own.requirements.extend(extra.into_iter().map(|(key, op, values)| Requirement::new(key, op, values)));
        own.requirements.sort_unstable();
        own
    }

    /// Selects what has all of these labels.
    pub fn exactly<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let equal = |(key, value): (&String, &String)| Requirement::new(key, "In", std::slice::from_ref(value));
        let mut requirements: Vec<_> = labels.into_iter().map(equal).collect();
        requirements.sort_unstable();
        Self { requirements }
    }

    /// What both select.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.requirements.extend(other.requirements.iter().cloned());
        self.requirements.sort_unstable();
        self.requirements.dedup();
        self
    }

    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.holds(labels.get(&*r.key).map(String::as_str)))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

/// A term of a node selector: all of its requirements must hold. A term without requirements matches no node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    /// Over `metadata.name`, the only field that nodes can be selected by.
    fields: Vec<Requirement>,
}

impl NodeTerm {
    #[must_use]
    pub fn of(term: &NodeSelectorTerm) -> Self {
        let compile = |list: Option<&Vec<NodeSelectorRequirement>>| {
            let requirements = list.into_iter().flatten();
            requirements
                .map(|r| Requirement::new(&r.key, &r.operator, r.values.as_deref().unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        Self { labels: compile(term.match_expressions.as_ref()), fields: compile(term.match_fields.as_ref()) }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    #[must_use]
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let field = |r: &Requirement| (&*r.key == "metadata.name").then_some(name);
        !self.is_empty()
            && self.labels.iter().all(|r| r.holds(labels.get(&*r.key).map(String::as_str)))
            && self.fields.iter().all(|r| r.holds(field(r)))
    }

    /// The nodes that the term can match, if it names them: `metadata.name in (…)`.
    fn names(&self) -> Option<Vec<&str>> {
        let mut names: Option<Vec<&str>> = None;
        for r in self.fields.iter().filter(|r| &*r.key == "metadata.name" && r.operator == Operator::In) {
            names = Some(match names {
                None => r.values.iter().map(|v| &**v).collect(),
                Some(before) => before.into_iter().filter(|name| r.values.iter().any(|v| **v == **name)).collect(),
            });
        }
        names
    }
}

/// A node selector: any of its terms must match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeMatcher {
    terms: Vec<NodeTerm>,
}

impl NodeMatcher {
    #[must_use]
    pub fn of(selector: &NodeSelector) -> Self {
        Self { terms: selector.node_selector_terms.iter().map(NodeTerm::of).collect() }
    }

    #[must_use]
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.terms.iter().any(|term| term.matches(name, labels))
    }

    /// The only nodes that can match, if every term names them; sorted.
    #[must_use]
    pub fn names(&self) -> Option<Vec<&str>> {
        let mut all = Vec::new();
        for term in &self.terms {
            all.extend(term.names()?);
        }
        all.sort_unstable();
        all.dedup();
        (!self.terms.is_empty()).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn label_selectors_select_as_documented() {
        let selector: ApiSelector = serde_json::from_value(json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "NotIn", "values": ["db"]},
                {"key": "zone", "operator": "Exists"}]}))
        .unwrap();
        let selector = Selector::of(&selector);
        assert!(selector.matches(&labels("app=web,zone=a")));
        assert!(selector.matches(&labels("app=web,zone=a,tier=x")));
        assert!(!selector.matches(&labels("app=web,zone=a,tier=db")));
        assert!(!selector.matches(&labels("app=web")));
        assert!(Selector::default().matches(&labels("")));
    }

    #[test]
    fn node_terms_match_labels_numbers_and_names() {
        let term = |value| NodeTerm::of(&serde_json::from_value(value).unwrap());
        let gt = term(json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}));
        assert!(gt.matches("n", &labels("cores=5")));
        assert!(!gt.matches("n", &labels("cores=4")));
        assert!(!gt.matches("n", &labels("cores=many")));
        assert!(!term(json!({})).matches("n", &labels("")));
        let named = term(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a", "b"]}]}));
        assert!(named.matches("a", &labels("")) && !named.matches("c", &labels("")));
    }

    #[test]
    fn nodes_that_every_term_names_are_known_beforehand() {
        let matcher = |value| NodeMatcher::of(&serde_json::from_value(value).unwrap());
        let by_name =
            |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        let both = matcher(json!({"nodeSelectorTerms": [by_name("b"), by_name("a")]}));
        assert_eq!(both.names(), Some(vec!["a", "b"]));
        let labels = json!({"matchExpressions": [{"key": "x", "operator": "Exists"}]});
        assert_eq!(matcher(json!({"nodeSelectorTerms": [by_name("b"), labels]})).names(), None);
    }
}
