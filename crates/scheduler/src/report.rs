//! Tells users what became of their pods: the condition `PodScheduled`, the nominated node, events; and evicts pods that
//! have to make room.

use std::collections::HashMap;
use std::sync::Arc;

use client::events::{Dialect, EventType, Note, Recorder, reference};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use crate::pod::PodInfo;
use crate::profiles::Profiles;
use crate::run::Outcomes;
use crate::scheduler::{BindJob, GroupReport, Nomination, POD_GROUP_SCHEDULED, Report};

pub(crate) struct Reporter {
    client: Client,
    /// By scheduler name, which is who the events are from.
    recorders: HashMap<String, Recorder>,
    term: CancellationToken,
}

impl Reporter {
    pub(crate) fn start(client: &Client, profiles: &Profiles, term: &CancellationToken) -> Self {
        let recorder = |name: &str| Recorder::start(client.clone(), Dialect::Series, name, "", term.clone());
        let names = profiles.iter().map(|profile| &profile.scheduler_name);
        let recorders = names.map(|name| (name.clone(), recorder(name))).collect();
        Self { client: client.clone(), recorders, term: term.clone() }
    }

    /// A pod is on its node.
    pub(crate) fn bound(&self, job: &BindJob) {
        let pod = job.pod();
        let message = format!("Successfully assigned {}/{} to {}", pod.namespace(), pod.name(), job.node);
        self.note(pod, EventType::Normal, "Scheduled", "Binding", message);
    }

    /// A pod has no node yet. Whether evicting others for it worked is told through `outcomes`.
    pub(crate) fn failed(&self, report: Report, outcomes: &UnboundedSender<Outcomes>) {
        self.note(&report.pod, EventType::Warning, "FailedScheduling", "Scheduling", report.message.clone());
        let (client, outcomes) = (self.client.clone(), outcomes.clone());
        let preempted = self.recorders.get(report.pod.scheduler_name()).cloned();
        let term = self.term.clone();
        tokio::spawn(async move {
            term.run_until_cancelled(async {
                if let Err(error) = tell(&client, &report).await {
                    tracing::warn!(pod = %report.pod.key, %error, "a pod's status could not be written");
                }
                for other in &report.displaced {
                    if let Err(error) = clear_nomination(&client, other).await {
                        tracing::warn!(pod = %other.key, %error, "a pod's nomination could not be cleared");
                    }
                }
                let Nomination::Node { node, victims } = &report.nomination else { return };
                for victim in victims {
                    if let Err(error) = evict(&client, &report.pod, victim).await {
                        tracing::warn!(pod = %victim.key, %error, "a pod could not be evicted");
                        // Without a receiver the term is over.
                        let _ = outcomes.send(Outcomes::PreemptionFailed(report.pod.uid.clone()));
                        return;
                    }
                    if let Some(recorder) = &preempted {
                        recorder.note(preemption_note(victim, &report.pod, node));
                    }
                }
            })
            .await;
        });
    }

    /// A group of pods was scheduled, or could not be.
    pub(crate) fn group(&self, report: GroupReport) {
        let (client, term) = (self.client.clone(), self.term.clone());
        tokio::spawn(async move {
            let told = term.run_until_cancelled(tell_group(&client, &report)).await;
            if let Some(Err(error)) = told {
                tracing::warn!(group = %report.group, %error, "the status of a group of pods could not be written");
            }
        });
    }

    fn note(&self, pod: &PodInfo, event_type: EventType, reason: &str, action: &str, message: String) {
        let Some(recorder) = self.recorders.get(pod.scheduler_name()) else { return };
        recorder.note(Note {
            event_type,
            regarding: reference(&*pod.object),
            related: None,
            reason: reason.to_owned(),
            action: action.to_owned(),
            message,
        });
    }
}

fn preemption_note(victim: &PodInfo, by: &PodInfo, node: &str) -> Note {
    Note {
        event_type: EventType::Normal,
        regarding: reference(&*victim.object),
        related: Some(reference(&*by.object)),
        reason: "Preempted".to_owned(),
        action: "Preempting".to_owned(),
        message: format!("Preempted by pod {} on node {node}", by.uid.as_str()),
    }
}

/// Writes the condition and the nominated node, if they say something new.
async fn tell(client: &Client, report: &Report) -> kube::Result<()> {
    let Some(patch) = status_patch(report, Timestamp::now()) else { return Ok(()) };
    let api: Api<Pod> = Api::namespaced(client.clone(), report.pod.namespace());
    match api.patch_status(report.pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        // Gone, or another pod by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}

async fn tell_group(client: &Client, report: &GroupReport) -> kube::Result<()> {
    let condition = Condition {
        type_: POD_GROUP_SCHEDULED.to_owned(),
        status: if report.scheduled { "True" } else { "False" }.to_owned(),
        reason: report.reason.to_owned(),
        message: report.message.clone(),
        observed_generation: report.generation,
        last_transition_time: Time(Timestamp::now()),
    };
    let patch = json!({ "metadata": { "uid": report.uid }, "status": { "conditions": [condition] } });
    let api: Api<PodGroup> = Api::namespaced(client.clone(), report.group.namespace());
    match api.patch_status(report.group.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        // Gone, or another group by now.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}

async fn clear_nomination(client: &Client, pod: &PodInfo) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
    let patch = json!({ "metadata": { "uid": pod.uid.as_str() }, "status": { "nominatedNodeName": null } });
    match api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}

/// The change of the pod's status that the report asks for; `None` when there is none.
fn status_patch(report: &Report, now: Timestamp) -> Option<Value> {
    let pod = &report.pod.object;
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let before = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
    let condition = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some(report.reason.to_owned()),
        message: Some(report.message.clone()),
        observed_generation: pod.metadata.generation,
        last_transition_time: match before {
            Some(before) if before.status == "False" => before.last_transition_time.clone(),
            _ => Some(Time(now)),
        },
        last_probe_time: None,
    };
    let mut status = serde_json::Map::new();
    let says = |condition: &PodCondition| {
        (condition.status.clone(), condition.reason.clone(), condition.message.clone(), condition.observed_generation)
    };
    if before.map(says) != Some(says(&condition)) {
        status.insert("conditions".to_owned(), json!([condition]));
    }
    let nominated = match &report.nomination {
        Nomination::Keep => None,
        Nomination::Clear => Some(None),
        Nomination::Node { node, .. } => Some(Some(node.as_str())),
    };
    if let Some(nominated) = nominated
        && nominated != report.pod.nominated_node()
    {
        status.insert("nominatedNodeName".to_owned(), json!(nominated));
    }
    // The precondition keeps the patch from another pod of the same name.
    (!status.is_empty()).then(|| json!({ "metadata": { "uid": report.pod.uid.as_str() }, "status": status }))
}

/// Says in the victim's status why it goes, and deletes it.
async fn evict(client: &Client, preemptor: &Arc<PodInfo>, victim: &PodInfo) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), victim.namespace());
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{}: preempting to accommodate a higher priority pod", preemptor.scheduler_name()),
        "lastTransitionTime": Time(Timestamp::now()),
    });
    let patch = json!({ "metadata": { "uid": victim.uid.as_str() }, "status": { "conditions": [condition] } });
    let preconditions = Preconditions { uid: Some(victim.uid.as_str().to_owned()), resource_version: None };
    let deletion = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let told = api.patch_status(victim.name(), &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop);
    let deleted = match told {
        Ok(()) => api.delete(victim.name(), &deletion).await.map(drop),
        Err(error) => Err(error),
    };
    match deleted {
        // Somebody else was faster.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::ScalarNames;

    fn report(status: Value, nomination: Nomination) -> Report {
        let pod = json!({ "metadata": { "name": "a", "uid": "u", "generation": 2 }, "status": status });
        let pod = PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()), &mut ScalarNames::default());
        Report {
            pod: Arc::new(pod),
            reason: "Unschedulable",
            message: "0/1 nodes".to_owned(),
            nomination,
            displaced: Vec::new(),
        }
    }

    #[test]
    fn only_what_is_new_is_written() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let first = status_patch(&report(json!({}), Nomination::Clear), now).unwrap();
        assert_eq!(
            first,
            json!({ "metadata": { "uid": "u" }, "status": { "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes",
                "observedGeneration": 2, "lastTransitionTime": "2026-01-02T03:04:05Z",
            }] } })
        );
        let told = first["status"].clone();
        assert_eq!(status_patch(&report(told.clone(), Nomination::Keep), now), None);
        let node = Nomination::Node { node: "n".to_owned(), victims: Vec::new() };
        let nominated = status_patch(&report(told, node), now).unwrap();
        assert_eq!(nominated["status"], json!({ "nominatedNodeName": "n" }));
    }
}
