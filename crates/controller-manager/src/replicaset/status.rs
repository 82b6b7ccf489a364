//! Counting pods for a status.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

use crate::pod::{Availability, availability, is_ready};

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Counted {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) terminating: i32,
    /// When the next pod becomes available if nothing changes.
    pub(crate) next_available: Option<Duration>,
}

pub(super) fn count(
    pods: &[Arc<Pod>],
    leaving: usize,
    template: Option<&PodTemplateSpec>,
    min_ready: Duration,
    now: Timestamp,
) -> Counted {
    let labels = template.and_then(|template| template.metadata.as_ref()).and_then(|meta| meta.labels.as_ref());
    let mut counted = Counted { replicas: as_count(pods.len()), terminating: as_count(leaving), ..Counted::default() };
    for pod in pods {
        let has =
            |key: &String, value: &String| pod.metadata.labels.as_ref().and_then(|all| all.get(key)) == Some(value);
        if labels.is_none_or(|labels| labels.iter().all(|(key, value)| has(key, value))) {
            counted.fully_labeled += 1;
        }
        if is_ready(pod) {
            counted.ready += 1;
        }
        match availability(pod, min_ready, now) {
            Availability::Available => counted.available += 1,
            Availability::In(left) => {
                counted.next_available = Some(counted.next_available.map_or(left, |known| known.min(left)));
            }
            Availability::NotReady => {}
        }
    }
    counted
}

fn as_count(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PodCondition, PodStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };
    use kube::core::ObjectMeta;

    use super::*;

    fn ready_at(second: i64, label: &str) -> Arc<Pod> {
        let ready = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(Timestamp::from_second(second).unwrap())),
            ..PodCondition::default()
        };
        let labels = [("app".to_owned(), label.to_owned())].into();
        Arc::new(Pod {
            metadata: ObjectMeta { labels: Some(labels), ..ObjectMeta::default() },
            status: Some(PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() }),
            ..Pod::default()
        })
    }

    #[test]
    fn pods_are_counted_by_label_readiness_and_availability() {
        let template = PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("app".to_owned(), "web".to_owned())].into()),
                ..ObjectMeta::default()
            }),
            spec: None,
        };
        let pods = [ready_at(90, "web"), ready_at(97, "web"), ready_at(99, "db"), Arc::new(Pod::default())];
        let now = Timestamp::from_second(100).unwrap();
        let counted = count(&pods, 2, Some(&template), Duration::from_secs(5), now);
        let want = Counted {
            replicas: 4,
            fully_labeled: 2,
            ready: 3,
            available: 1,
            terminating: 2,
            next_available: Some(Duration::from_secs(2)),
        };
        assert_eq!(counted, want);
    }
}
