//! What a request costs, and whether there is enough: pure.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::quantity::Quantity;

use super::scope::{self, Requirement};
use super::usage::Evaluator;
use super::{hard_of, pretty, used_of};
use crate::admission::pod::Amounts;
use crate::admission::{Operation, Request};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("failed quota: {quota}: {why}")]
    Constraint { quota: String, why: String },
    #[error("status unknown for quota: {quota}, resources: {resources}")]
    Unknown { quota: String, resources: String },
    #[error("exceeded quota: {quota}, requested: {requested}, used: {used}, limited: {limited}")]
    Exceeded { quota: String, requested: String, used: String, limited: String },
    #[error("insufficient quota to consume: {0}")]
    Uncovered(String),
    #[error("insufficient quota to match these scopes: {0}")]
    UnmatchedScopes(String),
}

/// The quotas that the request counts for, each with what is used of it then. Those that do not change are left out.
pub(super) fn charge(
    request: &Request,
    quotas: &[Arc<Value>],
    limited: &[Value],
) -> Result<Vec<(Arc<Value>, Amounts)>, Refusal> {
    let evaluator = Evaluator::of(&request.gvr);
    let object = &request.object;
    let mut interesting = Vec::new();
    for quota in quotas {
        let hard = hard_of(quota);
        let names: Vec<&str> = hard.keys().map(String::as_str).filter(|n| evaluator.counts(&request.gvr, n)).collect();
        if names.is_empty() || !scope::matches(quota, evaluator, object) {
            continue;
        }
        let name = || quota.name().to_owned();
        evaluator.check_constraints(object, &names).map_err(|why| Refusal::Constraint { quota: name(), why })?;
        let used = used_of(quota);
        let unknown: Vec<&str> = names.iter().copied().filter(|n| !used.contains_key(*n)).collect();
        if !unknown.is_empty() {
            return Err(Refusal::Unknown { quota: name(), resources: unknown.join(",") });
        }
        interesting.push((quota, hard, used));
    }
    let delta = delta_of(request, evaluator);
    check_limited(request, evaluator, &delta, &interesting, limited)?;
    let mut planned = Vec::new();
    for (quota, hard, used) in interesting {
        let costs: Amounts = delta.iter().filter(|(n, q)| hard.contains_key(*n) && !q.is_zero()).map(own).collect();
        let mut then = used.clone();
        for (name, cost) in &costs {
            let before = used.get(name).copied().unwrap_or_default();
            then.insert(name.clone(), before.saturating_add(*cost));
        }
        let exceeds = |name: &&String| !costs[*name].is_negative() && then.get(*name) > hard.get(*name);
        let exceeded: Vec<String> = costs.keys().filter(exceeds).cloned().collect();
        if !exceeded.is_empty() {
            return Err(Refusal::Exceeded {
                quota: quota.name().to_owned(),
                requested: pretty(&costs, &exceeded),
                used: pretty(&used, &exceeded),
                limited: pretty(&hard, &exceeded),
            });
        }
        if !costs.is_empty() {
            planned.push((Arc::clone(quota), then));
        }
    }
    Ok(planned)
}

fn own((name, quantity): (&String, &Quantity)) -> (String, Quantity) {
    (name.clone(), *quantity)
}

/// What the request uses, or uses more than before. What it frees the controller counts.
fn delta_of(request: &Request, evaluator: Evaluator) -> Amounts {
    let mut delta = evaluator.usage(&request.gvr, &request.object);
    if request.operation == Operation::Update {
        let before = evaluator.usage(&request.gvr, &request.old_object);
        for (name, quantity) in &mut delta {
            if let Some(before) = before.get(name) {
                *quantity = quantity.saturating_sub(*before);
            }
        }
        delta.retain(|_, quantity| !quantity.is_negative() && !quantity.is_zero());
    }
    delta
}

/// Some resources need a quota to be used at all.
fn check_limited(
    request: &Request,
    evaluator: Evaluator,
    delta: &Amounts,
    interesting: &[(&Arc<Value>, Amounts, Amounts)],
    limited: &[Value],
) -> Result<(), Refusal> {
    let applies = |rule: &&Value| {
        rule.str_at(&["apiGroup"]) == request.gvr.group && rule.str_at(&["resource"]) == request.gvr.resource
    };
    let (mut uncovered, mut scopes) = (Vec::new(), Vec::new());
    for rule in limited.iter().filter(applies) {
        let fragments = rule["matchContains"].items().iter().filter_map(Value::as_str);
        for fragment in fragments {
            let names = delta.keys().filter(|name| name.contains(fragment));
            uncovered.extend(names.filter(|n| !interesting.iter().any(|(_, hard, _)| hard.contains_key(*n))).cloned());
        }
        for expression in rule["matchScopes"].items() {
            let is_asked = Requirement::of(expression).holds(evaluator, &request.object);
            let is_met = interesting.iter().any(|(quota, ..)| {
                let selected = quota.at(&["spec", "scopeSelector", "matchExpressions"]).items();
                selected.iter().any(|s| s["scopeName"] == expression["scopeName"])
            });
            if is_asked && !is_met {
                let values =
                    expression["values"].items().iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
                let (scope, operator) = (expression.str_at(&["scopeName"]), expression.str_at(&["operator"]));
                scopes.push(format!("{{{scope} {operator} [{values}]}}"));
            }
        }
    }
    uncovered.sort();
    uncovered.dedup();
    match (uncovered.is_empty(), scopes.is_empty()) {
        (false, _) => Err(Refusal::Uncovered(uncovered.join(","))),
        (true, false) => Err(Refusal::UnmatchedScopes(format!("[{}]", scopes.join(" ")))),
        (true, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fixture::request;

    #[track_caller]
    fn check(quota: &str, pod: &str, want: Result<&str, &str>) {
        let quota: Value = serde_json::from_str(quota).unwrap();
        let request = request(Operation::Create, "pods", pod);
        let got = charge(&request, &[Arc::new(quota)], &[]).map_err(|e| e.to_string());
        let got =
            got.map(|p| p.iter().map(|(_, used)| pretty(used, &used.keys().cloned().collect::<Vec<_>>())).collect());
        assert_eq!(
            got,
            want.map(|w| vec![w.to_owned()].into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>())
                .map_err(str::to_owned)
        );
    }

    const POD: &str = r#"{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"500m"}}}]}}"#;

    #[test]
    fn a_pod_is_charged_until_the_quota_is_used_up() {
        let quota = |used: &str| {
            format!(
                r#"{{"metadata":{{"name":"q"}},"status":{{"hard":{{"pods":"2","requests.cpu":"1"}},"used":{used}}}}}"#
            )
        };
        check(&quota(r#"{"pods":"1","requests.cpu":"500m"}"#), POD, Ok("pods=2,requests.cpu=1"));
        check(
            &quota(r#"{"pods":"2","requests.cpu":"600m"}"#),
            POD,
            Err(
                "exceeded quota: q, requested: pods=1,requests.cpu=500m, used: pods=2,requests.cpu=600m, limited: pods=2,requests.cpu=1",
            ),
        );
        check(&quota(r#"{"pods":"2"}"#), POD, Err("status unknown for quota: q, resources: requests.cpu"));
        check(
            &quota(r#"{"pods":"0","requests.cpu":"0"}"#),
            r#"{"spec":{"containers":[{"name":"c"}]}}"#,
            Err("failed quota: q: must specify requests.cpu for: c"),
        );
    }

    #[test]
    fn quotas_without_a_status_count_nothing_yet() {
        check(r#"{"metadata":{"name":"q"},"spec":{"hard":{"pods":"0"}}}"#, POD, Ok(""));
    }
}
