//! `eviction`: a deletion that asks the disruption budgets first.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::selector::LabelSelector;
use apimachinery::status::{Cause, Details, Status};
use http::Response;

use super::binding::{Assignment, set_condition};
use super::{answer_created, decoded_body};
use crate::body::{Body, RequestBody};
use crate::handlers::{Call, Target, write_of};
use crate::registry::{DeleteOptions, Part, Preconditions, Registry, Write, WriteKind, WriteOptions, timestamp};
use crate::resources::Resource;

/// A budget with more unconfirmed evictions than this has a controller that does not keep up.
const MAX_DISRUPTED_PODS: usize = 2000;

pub(super) async fn evict(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let eviction = decoded_body(call, target, body).await?;
    let options = WriteOptions::parse(&call.query, WriteKind::Create, call.user_agent())?;
    let write = write_of(call, target, options);
    if eviction.name() != write.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut delete = match &eviction["deleteOptions"] {
        Value::Null => DeleteOptions::default(),
        options => DeleteOptions::from_value(options.clone())?,
    };
    delete.dry_run |= write.options.dry_run;
    let registry = Arc::clone(call.server.registry());
    let mut request = write.admission_request(crate::admission::Operation::Create, eviction, Value::Null);
    request.dry_run = delete.dry_run;
    registry.admission.admit(&mut request).await?;
    registry.admission.validate(&mut request).await?;

    let pod = registry.get(&target.resource, &write.namespace, &write.name, "").await?.decoded();
    let budgets = call.server.resources().get(&Gvr::new("policy", "v1", "poddisruptionbudgets"));
    let budgets = budgets.ok_or_else(Status::no_such_path)?;
    let consent = if is_no_disruption(&pod) {
        Consent::IfUnchanged
    } else {
        ask_budget(&registry, &budgets, &write, &pod, delete.dry_run).await?
    };
    let pending = pod.str_at(&["status", "phase"]) == "Pending" && !pod.is_deleting();
    let pin = consent == Consent::IfUnchanged && (!is_no_disruption(&pod) || pending);
    if pin && delete.preconditions.resource_version.is_none() {
        delete.preconditions.resource_version = Some(pod.resource_version().to_owned());
    }
    delete_pod(&registry, write, delete).await?;
    answer_created(call).await
}

/// On what terms an eviction may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consent {
    /// It was counted, or nobody counts.
    Counted,
    /// It need not be counted as long as the pod stays as it was looked at.
    IfUnchanged,
}

/// The pod serves nobody any more, or does not yet.
fn is_no_disruption(pod: &Value) -> bool {
    pod.is_deleting() || matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed" | "Pending")
}

async fn ask_budget(
    registry: &Registry,
    budgets: &Resource,
    write: &Write,
    pod: &Value,
    dry_run: bool,
) -> Result<Consent, Status> {
    let selection = crate::cache::selection::Selection::new(Some(&write.namespace), None, LabelSelector::default());
    let listed = registry.list_now(budgets, &selection).await?;
    let mut matching = listed.objects.iter().map(|b| b.decoded()).filter(|b| covers(b, pod));
    let Some(budget) = matching.next() else { return Ok(Consent::Counted) };
    if matching.next().is_some() {
        let message =
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status::new(500, "", message));
    }
    if !is_ready(pod) && unready_may_go(&budget) {
        return Ok(Consent::IfUnchanged);
    }
    if dry_run {
        counted(&budget, &write.name)?;
        return Ok(Consent::Counted);
    }
    let mut status_write = Write {
        resource: budgets.clone(),
        namespace: write.namespace.clone(),
        name: budget.name().into(),
        subresource: "status".into(),
        user: Arc::clone(&write.user),
        options: WriteOptions { dry_run: false, ..WriteOptions::default() },
        applies: false,
        warnings: Vec::new(),
    };
    let change = |budget: &Value| counted(budget, &write.name);
    registry.update(&mut status_write, Part::Other(&Assignment), &Preconditions::default(), false, &change).await?;
    Ok(Consent::Counted)
}

fn covers(budget: &Value, pod: &Value) -> bool {
    matches!(LabelSelector::from_value(budget.at(&["spec", "selector"])), Ok(Some(s)) if s.matches_object(pod))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.at(&["status", "conditions"]).items();
    conditions.iter().any(|c| c.str_at(&["type"]) == "Ready" && c.str_at(&["status"]) == "True")
}

/// A pod that is not ready counts for nothing; it may go if the budget says so, or holds without it.
fn unready_may_go(budget: &Value) -> bool {
    let number = |field: &str| budget.at(&["status", field]).as_i64().unwrap_or(0);
    budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0)
}

/// The budget with one disruption less.
fn counted(budget: &Value, pod: &str) -> Result<Value, Status> {
    let name = budget.name();
    let number = |field: &str| budget.at(&["status", field]).as_i64().unwrap_or(0);
    let generation = budget.meta("generation").as_i64().unwrap_or(0);
    if number("observedGeneration") < generation {
        return Err(refused(10, format!("The disruption budget {name} is still being processed by the server.")));
    }
    let forbidden = |why: &str| Err(Status::forbidden(&Gvr::new("policy", "v1", "poddisruptionbudget"), name, why));
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if budget.at(&["status", "disruptedPods"]).entries().len() > MAX_DISRUPTED_PODS {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let conditions = budget.at(&["status", "conditions"]).items();
        let failed = conditions.iter().find(|c| {
            c.str_at(&["type"]) == "DisruptionAllowed"
                && c.str_at(&["status"]) == "False"
                && c.str_at(&["reason"]) == "SyncFailed"
        });
        let why = match failed {
            Some(condition) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                condition.str_at(&["message"])
            ),
            None => format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            ),
        };
        return Err(refused(0, why));
    }
    let mut budget = budget.clone();
    budget.set(&["status", "disruptionsAllowed"], allowed - 1);
    if allowed == 1 {
        set_condition(
            &mut budget,
            Value::from([
                ("type", "DisruptionAllowed".into()),
                ("status", "False".into()),
                ("reason", "InsufficientPods".into()),
                ("message", "".into()),
                ("observedGeneration", number("observedGeneration").into()),
                ("lastTransitionTime", timestamp().into()),
            ]),
        );
    }
    budget.set(&["status", "disruptedPods", pod], timestamp());
    Ok(budget)
}

fn refused(retry_after_seconds: i64, why: String) -> Status {
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
    let details = Details { causes: vec![cause], retry_after_seconds, ..Details::default() };
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    Status::new(429, "TooManyRequests", message).with_details(details)
}

/// Says in the pod's status why it goes, and deletes it.
async fn delete_pod(registry: &Registry, write: Write, mut delete: DeleteOptions) -> Result<(), Status> {
    let mut write = Write {
        subresource: String::new(),
        options: WriteOptions { dry_run: delete.dry_run, sent: delete.sent.clone(), ..write.options },
        ..write
    };
    let wanted = delete.preconditions.clone();
    if !delete.dry_run {
        let change = |pod: &Value| {
            crate::registry::check_delete_preconditions(&write_names(&wanted), pod)?;
            let mut pod = pod.clone();
            set_condition(
                &mut pod,
                Value::from([
                    ("type", "DisruptionTarget".into()),
                    ("status", "True".into()),
                    ("reason", "EvictionByEvictionAPI".into()),
                    ("message", "Eviction API: evicting".into()),
                    ("lastProbeTime", Value::Null),
                    ("lastTransitionTime", timestamp().into()),
                ]),
            );
            Ok(pod)
        };
        let updated =
            registry.update(&mut write, Part::Other(&Assignment), &Preconditions::default(), false, &change).await?;
        if delete.preconditions.resource_version.is_some() {
            delete.preconditions.resource_version = updated.stored.revision.map(|r| r.to_string());
        }
    }
    registry.delete(&mut write, &delete).await.map(drop)
}

fn write_names(preconditions: &Preconditions) -> DeleteOptions {
    DeleteOptions { preconditions: preconditions.clone(), ..DeleteOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: &str, want: &str) {
        let budget = format!(r#"{{"metadata":{{"name":"b","generation":1}},"status":{status}}}"#);
        let got = match counted(&serde_json::from_str(&budget).unwrap(), "p") {
            Ok(budget) => format!("allows {}", budget.at(&["status", "disruptionsAllowed"]).as_i64().unwrap()),
            Err(status) => status.details.unwrap().causes[0].message.clone(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn a_budget_counts_down_and_then_refuses() {
        check("{}", "The disruption budget b is still being processed by the server.");
        check(r#"{"observedGeneration":1,"disruptionsAllowed":2}"#, "allows 1");
        check(
            r#"{"observedGeneration":1,"desiredHealthy":1,"currentHealthy":1}"#,
            "The disruption budget b needs 1 healthy pods and has 1 currently",
        );
    }
}
