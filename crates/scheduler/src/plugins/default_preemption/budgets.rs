//! Disruption budgets: which evictions they do not allow.

use std::cell::RefCell;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::pod::PodInfo;
use crate::selector::Selector;

/// The budgets of a cluster, compiled.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    budgets: Vec<Budget>,
    /// What is left of each while the pods of one node are looked at.
    left: RefCell<Vec<i32>>,
}

#[derive(Debug)]
struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i32,
    /// Pods whose eviction was allowed already and is counted in `allowed`.
    disrupted: Vec<String>,
}

impl Budgets {
    /// A budget without requirements is for nobody.
    pub(super) fn of(budgets: &[Arc<PodDisruptionBudget>]) -> Self {
        let compile = |budget: &Arc<PodDisruptionBudget>| {
            let selector = Selector::of(budget.spec.as_ref()?.selector.as_ref()?);
            let status = budget.status.as_ref();
            (!selector.is_empty()).then(|| Budget {
                namespace: budget.metadata.namespace.clone().unwrap_or_default(),
                selector,
                allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
                disrupted: status
                    .and_then(|status| status.disrupted_pods.as_ref())
                    .map(|pods| pods.keys().cloned().collect())
                    .unwrap_or_default(),
            })
        };
        Self { budgets: budgets.iter().filter_map(compile).collect(), left: RefCell::default() }
    }

    /// Those whose eviction a budget does not allow, if the pods were evicted in this order, and the others.
    pub(super) fn split(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        if self.budgets.is_empty() {
            return (Vec::new(), pods);
        }
        let mut left = self.left.borrow_mut();
        left.clear();
        left.extend(self.budgets.iter().map(|budget| budget.allowed));
        pods.into_iter().partition(|pod| {
            let mut violates = false;
            // A pod without labels has no budget, whatever the selectors say.
            for (budget, left) in self.budgets.iter().zip(left.iter_mut()).filter(|_| !pod.labels().is_empty()) {
                let meant = budget.namespace == pod.namespace()
                    && budget.selector.matches(pod.labels())
                    && !budget.disrupted.iter().any(|name| name == pod.name());
                if meant {
                    *left -= 1;
                    violates |= *left < 0;
                }
            }
            violates
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::ScalarNames;

    fn pod(name: &str, app: &str) -> Arc<PodInfo> {
        let labels = if app.is_empty() { json!({}) } else { json!({"app": app}) };
        let pod = json!({"metadata": {"name": name, "namespace": "d", "uid": name, "labels": labels}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()), &mut ScalarNames::default()))
    }

    #[track_caller]
    fn check(budget: serde_json::Value, pods: &[(&str, &str)], violating: &[&str]) {
        let budgets = Budgets::of(&[Arc::new(serde_json::from_value(budget).unwrap())]);
        let (protected, _) = budgets.split(pods.iter().map(|(name, app)| pod(name, app)).collect());
        assert_eq!(protected.iter().map(|pod| pod.name()).collect::<Vec<_>>(), violating);
    }

    fn budget(selector: serde_json::Value, status: serde_json::Value) -> serde_json::Value {
        json!({"metadata": {"name": "b", "namespace": "d"}, "spec": {"selector": selector}, "status": status})
    }

    #[test]
    fn evictions_beyond_a_budget_violate_it() {
        let web = json!({"matchLabels": {"app": "web"}});
        let status = |allowed: i32, disrupted: serde_json::Value| {
            json!({"disruptionsAllowed": allowed, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
                "disruptedPods": disrupted})
        };
        let pods = [("a", "web"), ("b", "db"), ("c", "web"), ("d", "")];
        check(budget(web.clone(), status(0, json!({}))), &pods, &["a", "c"]);
        check(budget(web.clone(), status(1, json!({}))), &pods, &["c"]);
        check(budget(web.clone(), status(0, json!({"a": "2026-01-01T00:00:00Z"}))), &pods, &["c"]);
        check(budget(json!({}), status(0, json!({}))), &pods, &[]);
    }
}
