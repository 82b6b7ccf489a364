//! Fills ClusterRoles that are sums of others.

use std::sync::Arc;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Lister, SharedInformer},
};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{Api, Client, api::PostParams};

use crate::{
    context::Context,
    error::SyncError,
    selector::{selector_of, selects},
};

pub(crate) struct ClusterRoleAggregationController {
    client: Client,
    roles: SharedInformer<ClusterRole>,
    lister: Lister<ClusterRole>,
}

impl ClusterRoleAggregationController {
    pub(crate) fn new(context: &Context) -> Self {
        let roles = context.informers.informer::<ClusterRole>();
        Self { client: context.client.clone(), lister: roles.lister(), roles }
    }
}

/// The rules of all roles that the aggregation selects, each once, in the order of the selectors and then of names.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Option<Vec<PolicyRule>>, SyncError> {
    let Some(aggregation) = &role.aggregation_rule else { return Ok(None) };
    let mut sorted: Vec<_> = all.iter().filter(|other| other.metadata.name != role.metadata.name).collect();
    sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for spec in aggregation.cluster_role_selectors.iter().flatten() {
        let Some(selector) = selector_of(Some(spec))? else { continue };
        let selected = sorted.iter().filter(|other| selects(&selector, other.metadata.labels.as_ref()));
        for rule in selected.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Ok((role.rules.as_deref().unwrap_or_default() != rules).then_some(rules))
}

impl Controller for ClusterRoleAggregationController {
    const NAME: &'static str = "clusterrole_aggregator";
    type Error = SyncError;

    /// Any role may be part of any sum.
    fn watches(&self, watches: &mut Watches) {
        let lister = self.lister.clone();
        watches.map(&self.roles, move |event| {
            if let client::informer::Event::Updated { old, new } = event
                && (&old.rules, &old.aggregation_rule, &old.metadata.labels)
                    == (&new.rules, &new.aggregation_rule, &new.metadata.labels)
            {
                return Vec::new();
            }
            let sums = lister.filter(|role| role.aggregation_rule.is_some());
            sums.iter().map(|role| ObjectKey::of(&**role)).collect()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(role) = self.lister.get(key) else { return Ok(Action::await_change()) };
        if let Some(rules) = plan(&role, &self.lister.list())? {
            let role = ClusterRole { rules: Some(rules), ..(*role).clone() };
            Api::<ClusterRole>::all(self.client.clone()).replace(key.name(), &PostParams::default(), &role).await?;
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::rbac::v1::AggregationRule, apimachinery::pkg::apis::meta::v1::LabelSelector};
    use kube::core::ObjectMeta;

    use super::*;

    fn role(name: &str, label: &str, verbs: &[&str]) -> Arc<ClusterRole> {
        let rule = |verb: &&str| PolicyRule { verbs: vec![(*verb).to_owned()], ..PolicyRule::default() };
        Arc::new(ClusterRole {
            metadata: ObjectMeta {
                name: Some(name.into()),
                labels: Some([(label.to_owned(), "true".to_owned())].into()),
                ..ObjectMeta::default()
            },
            rules: Some(verbs.iter().map(rule).collect()),
            ..ClusterRole::default()
        })
    }

    #[test]
    fn a_sum_has_every_rule_of_its_parts_once() {
        let selector = |label: &str| LabelSelector {
            match_labels: Some([(label.to_owned(), "true".to_owned())].into()),
            match_expressions: None,
        };
        let sum = ClusterRole {
            metadata: ObjectMeta { name: Some("admin".into()), ..ObjectMeta::default() },
            aggregation_rule: Some(AggregationRule {
                cluster_role_selectors: Some(vec![selector("to-admin"), selector("to-edit")]),
            }),
            ..ClusterRole::default()
        };
        let all = [
            role("b", "to-admin", &["get", "list"]),
            role("a", "to-edit", &["list", "watch"]),
            role("c", "other", &["x"]),
        ];
        let rules = plan(&sum, &all).unwrap().unwrap();
        let verbs: Vec<_> = rules.iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
        let full = ClusterRole { rules: Some(rules), ..sum };
        assert_eq!(plan(&full, &all).unwrap(), None);
        assert_eq!(plan(&all[0], &all).unwrap(), None);
    }
}
