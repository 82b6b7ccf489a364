//! Deployments and ReplicaSets from words, for tests.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{
            Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetCondition, ReplicaSetSpec,
            ReplicaSetStatus, RollingUpdateDeployment,
        },
        core::v1::{Container, PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, Time},
        util::intstr::IntOrString,
    },
};
use kube::core::ObjectMeta;

fn word<'a>(words: &'a str, name: &str) -> Option<&'a str> {
    words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number(words: &str, name: &str) -> Option<i32> {
    word(words, name).map(|digits| digits.parse().unwrap())
}

fn template(words: &str) -> PodTemplateSpec {
    let image = word(words, "image").unwrap_or("v1").to_owned();
    let labels = [("app".to_owned(), "web".to_owned())].into();
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![Container { image: Some(image), ..Container::default() }],
            ..PodSpec::default()
        }),
    }
}

fn selector() -> LabelSelector {
    LabelSelector { match_labels: Some([("app".to_owned(), "web".to_owned())].into()), match_expressions: None }
}

/// `replicas= image= surge= unavailable= strategy= history= deadline= paused=`
pub(super) fn deployment(words: &str) -> Deployment {
    let limit = |name| {
        word(words, name).map(|text| match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.to_owned()),
        })
    };
    Deployment {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("web-uid".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: number(words, "replicas"),
            template: template(words),
            selector: selector(),
            strategy: Some(DeploymentStrategy {
                type_: word(words, "strategy").map(str::to_owned),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: limit("surge"),
                    max_unavailable: limit("unavailable"),
                }),
            }),
            revision_history_limit: number(words, "history"),
            progress_deadline_seconds: number(words, "deadline"),
            paused: word(words, "paused").map(|_| true),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// `NAME replicas= image= created= revision= desired= max= actual= available= failure=`
pub(super) fn replica_set(words: &str) -> Arc<ReplicaSet> {
    let annotations = [("revision", "revision"), ("desired", "desired-replicas"), ("max", "max-replicas")];
    let annotations = annotations.into_iter().filter_map(|(name, annotation)| {
        Some((format!("deployment.kubernetes.io/{annotation}"), word(words, name)?.to_owned()))
    });
    let available = number(words, "available");
    let actual = number(words, "actual").or(number(words, "replicas")).unwrap_or_default();
    let failure = word(words, "failure").map(|reason| {
        vec![ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            ..ReplicaSetCondition::default()
        }]
    });
    Arc::new(ReplicaSet {
        metadata: ObjectMeta {
            name: words.split(' ').next().map(str::to_owned),
            namespace: Some("ns".into()),
            creation_timestamp: number(words, "created").map(|s| Time(Timestamp::from_second(s.into()).unwrap())),
            annotations: Some(annotations.collect()),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: number(words, "replicas"),
            template: Some(template(words)),
            selector: selector(),
            min_ready_seconds: None,
        }),
        status: Some(ReplicaSetStatus {
            replicas: actual,
            ready_replicas: available,
            available_replicas: available,
            conditions: failure,
            ..ReplicaSetStatus::default()
        }),
    })
}
