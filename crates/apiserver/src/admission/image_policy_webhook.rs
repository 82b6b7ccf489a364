//! ImagePolicyWebhook: a server outside says which images may run (`ImageReview`).

use std::path::Path;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::pod_images::{self, images};
use super::{Plugin, Request};
use crate::outbound::document_of;
use crate::outbound::kubeconfig::{Remote, may_pass};
use crate::outbound::remembered::Remembered;

const NAME: &str = "ImagePolicyWebhook";
/// In the order in which the server is told of them.
const TOLD_LISTS: &[&str] = &["containers", "initContainers", "ephemeralContainers"];
/// Annotations that the server is told.
const TOLD: &str = ".image-policy.k8s.io/";
const FAILED_OPEN: &str = "alpha.image-policy.k8s.io/failed-open";
/// How many answers are remembered.
const REMEMBERED: usize = 1024;

pub(super) struct ImagePolicyWebhook {
    remote: Remote,
    allow_ttl: Duration,
    deny_ttl: Duration,
    retry_pause: Duration,
    /// Images may run when nobody answers.
    default_allow: bool,
    answers: Remembered<String, Answer>,
}

#[derive(Clone, Debug, PartialEq)]
struct Answer {
    allowed: bool,
    reason: String,
    annotations: Vec<(String, String)>,
}

impl ImagePolicyWebhook {
    /// From its `imagePolicy`.
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let policy = &config["imagePolicy"];
        let file = policy.str_at(&["kubeConfigFile"]);
        if file.is_empty() {
            return Err("no config specified".to_owned());
        }
        // As upstream has it: in seconds, the pause in milliseconds, 0 for the usual and less than 0 for none.
        let number = |field: &str, usual: u64| match policy[field].as_i64().unwrap_or(0) {
            0 => usual,
            given => u64::try_from(given).unwrap_or(0),
        };
        Ok(ImagePolicyWebhook {
            remote: Remote::load(Path::new(file))?,
            allow_ttl: Duration::from_secs(number("allowTTL", 300)),
            deny_ttl: Duration::from_secs(number("denyTTL", 30)),
            retry_pause: Duration::from_millis(number("retryBackoff", 500)),
            default_allow: policy["defaultAllow"].as_bool() == Some(true),
            answers: Remembered::new(REMEMBERED),
        })
    }

    async fn ask(&self, spec: &Value) -> Result<Answer, String> {
        let key = apimachinery::field::shown(spec);
        if let Some(answer) = self.answers.get(&key) {
            return Ok(answer);
        }
        let review = Value::from([
            ("apiVersion", "imagepolicy.k8s.io/v1alpha1".into()),
            ("kind", "ImageReview".into()),
            ("spec", spec.clone()),
        ]);
        let question = serde_json::to_vec(&review).map_err(|e| e.to_string())?;
        let answer = self.remote.post_again(question.into(), self.retry_pause, may_pass).await?;
        let answer = answer_of(&document_of(&answer)?);
        let ttl = if answer.allowed { self.allow_ttl } else { self.deny_ttl };
        self.answers.put(key, answer.clone(), ttl);
        Ok(answer)
    }
}

#[async_trait]
impl Plugin for ImagePolicyWebhook {
    fn name(&self) -> &'static str {
        NAME
    }

    fn handles(&self, request: &Request) -> bool {
        pod_images::runs_others(request)
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        match self.ask(&spec_of(request)).await {
            Ok(answer) => {
                for (key, value) in answer.annotations {
                    request.audit_annotations.insert(format!("imagepolicywebhook.image-policy.k8s.io/{key}"), value);
                }
                if answer.allowed {
                    return Ok(());
                }
                let why = if answer.reason.is_empty() {
                    "one or more images rejected by webhook backend".to_owned()
                } else {
                    format!("image policy webhook backend denied one or more images: {}", answer.reason)
                };
                Err(request.forbidden(why))
            }
            Err(why) => {
                tracing::warn!(why, "the image policy webhook failed");
                if !self.default_allow {
                    return Err(request.forbidden(why));
                }
                request.audit_annotations.insert(FAILED_OPEN.to_owned(), "true".to_owned());
                Ok(())
            }
        }
    }
}

/// The question: only images, the namespace, and the annotations that are meant for it.
fn spec_of(request: &Request) -> Value {
    let containers =
        images(&request.object, TOLD_LISTS).into_iter().map(|image| Value::from([("image", image.into())]));
    let mut spec = Value::from([("containers", containers.collect::<Vec<_>>().into())]);
    for (key, value) in request.object.meta("annotations").entries() {
        if key.contains(TOLD) {
            spec.set(&["annotations", key], value.clone());
        }
    }
    spec.set(&["namespace"], request.namespace.as_str());
    spec
}

fn answer_of(review: &Value) -> Answer {
    let status = &review["status"];
    let notes = status["auditAnnotations"].entries().iter();
    Answer {
        allowed: status["allowed"].as_bool() == Some(true),
        reason: status.str_at(&["reason"]).to_owned(),
        annotations: notes.filter_map(|(k, v)| Some((k.to_string(), v.as_str()?.to_owned()))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Operation;
    use crate::admission::fixture::request;

    #[test]
    fn images_and_what_is_meant_for_the_server_are_told() {
        let pod = r#"{"metadata":{"name":"p","annotations":{"x.image-policy.k8s.io/break-glass":"1","other":"2"}},
            "spec":{"containers":[{"image":"a"}],"initContainers":[{"image":"b"}]}}"#;
        let spec = spec_of(&request(Operation::Create, "pods", pod));
        let want = r#"{"annotations":{"x.image-policy.k8s.io/break-glass":"1"},"containers":[{"image":"a"},{"image":"b"}],"namespace":"ns"}"#;
        assert_eq!(apimachinery::field::shown(&spec), want);
    }

    #[test]
    fn answers_are_read() {
        let review = serde_json::from_str(r#"{"status":{"allowed":false,"reason":"no","auditAnnotations":{"a":"b"}}}"#);
        let want =
            Answer { allowed: false, reason: "no".to_owned(), annotations: vec![("a".to_owned(), "b".to_owned())] };
        assert_eq!(answer_of(&review.unwrap()), want);
        assert!(ImagePolicyWebhook::parse(&Value::Null).is_err());
    }
}
