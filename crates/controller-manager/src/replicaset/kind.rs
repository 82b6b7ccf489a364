//! What ReplicaSets and ReplicationControllers have in common, under one name each.

use client::informer::Kind;
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{
            PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
};
use kube::Resource;
use serde::Serialize;

use super::{plan::Failure, status::Counted};

/// A kind that wants a number of pods of one template.
pub(crate) trait ReplicaKind: Kind + Resource<Scope = NamespaceResourceScope> + Serialize {
    type Status: Send;
    /// The name of the controller's queue.
    const QUEUE: &'static str;

    /// How many pods are wanted, never negative.
    fn wanted(&self) -> usize;
    fn label_selector(&self) -> Option<LabelSelector>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn min_ready_seconds(&self) -> Option<i32>;
    /// The status to write, or nothing if it says all this already.
    fn next_status(&self, counted: &Counted, failure: Option<&Failure>, now: Timestamp) -> Option<Self::Status>;
    fn set_status(&mut self, status: Self::Status);
}

fn non_negative(replicas: Option<i32>) -> usize {
    usize::try_from(replicas.unwrap_or(1)).unwrap_or_default()
}

impl ReplicaKind for ReplicaSet {
    type Status = ReplicaSetStatus;
    const QUEUE: &'static str = "replicaset";

    fn wanted(&self) -> usize {
        non_negative(self.spec.as_ref().and_then(|spec| spec.replicas))
    }
    fn label_selector(&self) -> Option<LabelSelector> {
        self.spec.as_ref().map(|spec| spec.selector.clone())
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }
    fn next_status(&self, counted: &Counted, failure: Option<&Failure>, now: Timestamp) -> Option<ReplicaSetStatus> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let failing = conditions.iter().any(|condition| condition.type_ == "ReplicaFailure");
        match failure {
            Some(failure) if !failing => conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(now)),
                reason: Some(failure.reason.to_owned()),
                message: Some(failure.message()),
            }),
            None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
            Some(_) => {}
        }
        let new = ReplicaSetStatus {
            replicas: counted.replicas,
            fully_labeled_replicas: Some(counted.fully_labeled),
            ready_replicas: Some(counted.ready),
            available_replicas: Some(counted.available),
            terminating_replicas: Some(counted.terminating),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        let same = old.replicas == new.replicas
            && old.fully_labeled_replicas.unwrap_or_default() == counted.fully_labeled
            && old.ready_replicas.unwrap_or_default() == counted.ready
            && old.available_replicas.unwrap_or_default() == counted.available
            && old.terminating_replicas == new.terminating_replicas
            && old.observed_generation == new.observed_generation
            && old.conditions.unwrap_or_default() == new.conditions.clone().unwrap_or_default();
        (!same).then_some(new)
    }
    fn set_status(&mut self, status: ReplicaSetStatus) {
        self.status = Some(status);
    }
}

impl ReplicaKind for ReplicationController {
    type Status = ReplicationControllerStatus;
    const QUEUE: &'static str = "replicationmanager";

    fn wanted(&self) -> usize {
        non_negative(self.spec.as_ref().and_then(|spec| spec.replicas))
    }
    fn label_selector(&self) -> Option<LabelSelector> {
        let match_labels = self.spec.as_ref()?.selector.clone()?;
        Some(LabelSelector { match_labels: Some(match_labels), match_expressions: None })
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }
    fn next_status(
        &self,
        counted: &Counted,
        failure: Option<&Failure>,
        now: Timestamp,
    ) -> Option<ReplicationControllerStatus> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let failing = conditions.iter().any(|condition| condition.type_ == "ReplicaFailure");
        match failure {
            Some(failure) if !failing => conditions.push(ReplicationControllerCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(now)),
                reason: Some(failure.reason.to_owned()),
                message: Some(failure.message()),
            }),
            None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
            Some(_) => {}
        }
        let new = ReplicationControllerStatus {
            replicas: counted.replicas,
            fully_labeled_replicas: Some(counted.fully_labeled),
            ready_replicas: Some(counted.ready),
            available_replicas: Some(counted.available),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        let same = old.replicas == new.replicas
            && old.fully_labeled_replicas.unwrap_or_default() == counted.fully_labeled
            && old.ready_replicas.unwrap_or_default() == counted.ready
            && old.available_replicas.unwrap_or_default() == counted.available
            && old.observed_generation == new.observed_generation
            && old.conditions.unwrap_or_default() == new.conditions.clone().unwrap_or_default();
        (!same).then_some(new)
    }
    fn set_status(&mut self, status: ReplicationControllerStatus) {
        self.status = Some(status);
    }
}
