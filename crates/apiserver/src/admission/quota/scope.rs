//! Which objects a quota is for.

use apimachinery::Value;

use super::usage::Evaluator;

/// Does the object match every scope of the quota?
pub(super) fn matches(quota: &Value, evaluator: Evaluator, object: &Value) -> bool {
    requirements(quota).iter().all(|r| r.holds(evaluator, object))
}

pub(super) struct Requirement<'a> {
    scope: &'a str,
    operator: &'a str,
    values: Vec<&'a str>,
}

/// Of `scopes` and `scopeSelector`: a scope that is only named is one that must exist.
fn requirements(quota: &Value) -> Vec<Requirement<'_>> {
    let named = quota.at(&["spec", "scopes"]).items().iter().filter_map(Value::as_str);
    let named = named.map(|scope| Requirement { scope, operator: "Exists", values: Vec::new() });
    let selected = quota.at(&["spec", "scopeSelector", "matchExpressions"]).items().iter().map(Requirement::of);
    named.chain(selected).collect()
}

impl<'a> Requirement<'a> {
    pub(super) fn of(expression: &'a Value) -> Self {
        Requirement {
            scope: expression.str_at(&["scopeName"]),
            operator: expression.str_at(&["operator"]),
            values: expression["values"].items().iter().filter_map(Value::as_str).collect(),
        }
    }

    pub(super) fn holds(&self, evaluator: Evaluator, object: &Value) -> bool {
        match (self.scope, evaluator) {
            ("Terminating", Evaluator::Pods) => is_terminating(object),
            ("NotTerminating", Evaluator::Pods) => !is_terminating(object),
            ("BestEffort", Evaluator::Pods) => is_best_effort(object),
            ("NotBestEffort", Evaluator::Pods) => !is_best_effort(object),
            ("PriorityClass", Evaluator::Pods) => self.selects(object.str_at(&["spec", "priorityClassName"])),
            ("CrossNamespacePodAffinity", Evaluator::Pods) => crosses_namespaces(object),
            ("VolumeAttributesClass", Evaluator::Claims) => {
                let names = [
                    object.str_at(&["spec", "volumeAttributesClassName"]),
                    object.str_at(&["status", "currentVolumeAttributesClassName"]),
                ];
                names.iter().any(|name| self.selects(name))
            }
            _ => false,
        }
    }

    fn selects(&self, value: &str) -> bool {
        match self.operator {
            "Exists" => !value.is_empty(),
            "DoesNotExist" => value.is_empty(),
            "In" => !value.is_empty() && self.values.contains(&value),
            "NotIn" => value.is_empty() || !self.values.contains(&value),
            _ => false,
        }
    }
}

fn is_terminating(pod: &Value) -> bool {
    pod.at(&["spec", "activeDeadlineSeconds"]).as_i64().is_some_and(|seconds| seconds >= 0)
}

fn is_best_effort(pod: &Value) -> bool {
    let says_nothing = |resources: &Value| {
        let asks = |list: &str| {
            resources[list].entries().iter().any(|(name, v)| {
                matches!(name.as_str(), "cpu" | "memory") && !matches!(v.as_str(), Some("0")) && v.as_i64() != Some(0)
            })
        };
        !asks("requests") && !asks("limits")
    };
    let lists = ["containers", "initContainers"].into_iter().flat_map(|list| pod["spec"][list].items());
    says_nothing(&pod["spec"]["resources"]) && lists.map(|c| &c["resources"]).all(says_nothing)
}

/// A pod that looks at the pods of other namespaces to find its place.
fn crosses_namespaces(pod: &Value) -> bool {
    let affinity = pod.at(&["spec", "affinity"]);
    let crosses = |term: &Value| !term["namespaces"].items().is_empty() || !term["namespaceSelector"].is_null();
    ["podAffinity", "podAntiAffinity"].iter().map(|kind| &affinity[*kind]).any(|of| {
        of["requiredDuringSchedulingIgnoredDuringExecution"].items().iter().any(crosses)
            || of["preferredDuringSchedulingIgnoredDuringExecution"]
                .items()
                .iter()
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, pod: &str, want: bool) {
        let quota: Value = serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap();
        let pod: Value = serde_json::from_str(&format!(r#"{{"spec":{pod}}}"#)).unwrap();
        assert_eq!(matches(&quota, Evaluator::Pods, &pod), want);
    }

    #[test]
    fn scopes_select_pods() {
        check("{}", "{}", true);
        check(r#"{"scopes":["Terminating"]}"#, r#"{"activeDeadlineSeconds":5}"#, true);
        check(r#"{"scopes":["NotTerminating"]}"#, r#"{"activeDeadlineSeconds":5}"#, false);
        check(r#"{"scopes":["BestEffort"]}"#, r#"{"containers":[{}]}"#, true);
        check(r#"{"scopes":["BestEffort"]}"#, r#"{"containers":[{"resources":{"limits":{"cpu":"1"}}}]}"#, false);
        let high = r#"{"scopeSelector":{"matchExpressions":[{"scopeName":"PriorityClass","operator":"In","values":["high"]}]}}"#;
        check(high, r#"{"priorityClassName":"high"}"#, true);
        check(high, r#"{"priorityClassName":"low"}"#, false);
        check(high, "{}", false);
        check(
            r#"{"scopes":["CrossNamespacePodAffinity"]}"#,
            r#"{"affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[{"namespaceSelector":{}}]}}}"#,
            true,
        );
    }
}
