//! What a Job's own rules make of pods that failed and indexes that succeeded.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern},
    core::v1::{ContainerStatus, Pod},
};

use super::indexes;

/// What a failed pod counts for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One failure more.
    Count,
    /// None: the pod is replaced.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed; this is why.
    FailJob(String),
}

/// The first rule that matches decides.
pub(super) fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    for (index, rule) in policy.iter().flat_map(|policy| &policy.rules).enumerate() {
        let reason = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => by_exit_code(pod, codes),
            (None, Some(conditions)) => by_condition(pod, conditions),
            (None, None) => None,
        };
        let Some(reason) = reason else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{reason} matching {} rule at index {index}", rule.action)),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn key(pod: &Pod) -> String {
    let meta = &pod.metadata;
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn by_exit_code(pod: &Pod, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let code = |container: &ContainerStatus| Some(container.state.as_ref()?.terminated.as_ref()?.exit_code);
    for container in all.filter(|container| wanted.container_name.as_ref().is_none_or(|name| *name == container.name)) {
        let Some(code) = code(container).filter(|code| *code != 0) else { continue };
        let matches = match wanted.operator.as_str() {
            "In" => wanted.values.contains(&code),
            "NotIn" => !wanted.values.contains(&code),
            _ => false,
        };
        if matches {
            return Some(format!("Container {} for pod {} failed with exit code {code}", container.name, key(pod)));
        }
    }
    None
}

fn by_condition(pod: &Pod, patterns: &[PodFailurePolicyOnPodConditionsPattern]) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let matches = |pattern: &&PodFailurePolicyOnPodConditionsPattern| {
        let status = pattern.status.as_deref().unwrap_or("True");
        conditions.iter().any(|condition| condition.type_ == pattern.type_ && condition.status == status)
    };
    let pattern = patterns.iter().find(matches)?;
    Some(format!("Pod {} has condition {}", key(pod), pattern.type_))
}

/// The first success rule that the succeeded indexes fulfil.
pub(super) fn success_rule(job: &Job, succeeded: &BTreeSet<i32>, completions: i32) -> Option<usize> {
    let policy = job.spec.as_ref()?.success_policy.as_ref()?;
    policy.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, completions));
        let met = match &wanted {
            Some(wanted) => succeeded.intersection(wanted).count(),
            None => succeeded.len(),
        };
        match (rule.succeeded_count.and_then(|count| usize::try_from(count).ok()), wanted) {
            (Some(count), _) => met >= count,
            (None, Some(wanted)) => met == wanted.len(),
            (None, None) => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        batch::v1::{JobSpec, PodFailurePolicy, PodFailurePolicyRule, SuccessPolicy, SuccessPolicyRule},
        core::v1::{ContainerState, ContainerStateTerminated, PodCondition, PodStatus},
    };
    use kube::core::ObjectMeta;

    use super::*;

    fn pod(code: i32, condition: &str) -> Pod {
        let terminated = ContainerStateTerminated { exit_code: code, ..Default::default() };
        Pod {
            metadata: ObjectMeta { name: Some("p".into()), namespace: Some("ns".into()), ..ObjectMeta::default() },
            status: Some(PodStatus {
                container_statuses: Some(vec![ContainerStatus {
                    name: "main".into(),
                    state: Some(ContainerState { terminated: Some(terminated), ..ContainerState::default() }),
                    ..ContainerStatus::default()
                }]),
                conditions: Some(vec![PodCondition {
                    type_: condition.into(),
                    status: "True".into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
            spec: None,
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let codes = |operator: &str, values: &[i32]| PodFailurePolicyOnExitCodesRequirement {
            operator: operator.into(),
            values: values.to_vec(),
            container_name: Some("main".into()),
        };
        let disrupted = PodFailurePolicyOnPodConditionsPattern { type_: "DisruptionTarget".into(), status: None };
        let rule = |action: &str, codes, conditions| PodFailurePolicyRule {
            action: action.into(),
            on_exit_codes: codes,
            on_pod_conditions: conditions,
        };
        let rules = vec![
            rule("Ignore", None, Some(vec![disrupted])),
            rule("FailJob", Some(codes("In", &[42])), None),
            rule("FailIndex", Some(codes("NotIn", &[1, 42])), None),
        ];
        let job = Job {
            spec: Some(JobSpec { pod_failure_policy: Some(PodFailurePolicy { rules }), ..JobSpec::default() }),
            ..Job::default()
        };
        assert_eq!(judge(&job, &pod(42, "DisruptionTarget")), Verdict::Ignore);
        let why = "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(judge(&job, &pod(42, "Ready")), Verdict::FailJob(why.into()));
        assert_eq!(judge(&job, &pod(7, "Ready")), Verdict::FailIndex);
        assert_eq!(judge(&job, &pod(1, "Ready")), Verdict::Count);
        assert_eq!(judge(&Job::default(), &pod(42, "Ready")), Verdict::Count);
    }

    #[test]
    fn success_rules_ask_for_indexes_or_a_number_of_them() {
        let rule = |indexes: Option<&str>, count| SuccessPolicyRule {
            succeeded_indexes: indexes.map(str::to_owned),
            succeeded_count: count,
        };
        let rules = vec![rule(Some("0,2"), None), rule(Some("1-4"), Some(2)), rule(None, Some(4))];
        let job = Job {
            spec: Some(JobSpec { success_policy: Some(SuccessPolicy { rules }), ..JobSpec::default() }),
            ..Job::default()
        };
        let check = |succeeded: &[i32], want| {
            assert_eq!(success_rule(&job, &succeeded.iter().copied().collect(), 10), want, "{succeeded:?}");
        };
        check(&[], None);
        check(&[0, 2], Some(0));
        check(&[1, 3], Some(1));
        check(&[1, 5, 6], None);
        check(&[5, 6, 7, 8], Some(2));
    }
}
