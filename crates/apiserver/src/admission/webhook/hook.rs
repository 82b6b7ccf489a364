//! Whether a webhook is asked about a request, and what its answer means.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::status::{Cause, Details, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::admission::dynamic::matching::Matcher;
use crate::admission::dynamic::review::{object_value, request_value};
use crate::admission::policy::{Compiled, Facts, Scope};
use crate::admission::{Request, Tools};
use crate::authz::Authorizer;
use crate::outbound::{self, Failure};

/// A webhook of a configuration.
#[derive(Clone)]
pub(super) struct Hook {
    configuration: Arc<Value>,
    index: usize,
}

/// What a webhook says.
pub(super) struct Answer {
    pub patch: Option<Vec<u8>>,
    pub warnings: Vec<String>,
    pub annotations: Vec<(String, String)>,
}

impl Hook {
    /// All webhooks, by the names of their configurations.
    pub(super) fn all(tools: &Tools, resource: &str) -> Vec<Hook> {
        let mut configurations = tools.lister.list(resource, "");
        configurations.sort_by(|a, b| a.name().cmp(b.name()));
        let of = |configuration: Arc<Value>| {
            let count = configuration["webhooks"].items().len();
            (0..count).map(move |index| Hook { configuration: Arc::clone(&configuration), index })
        };
        configurations.into_iter().flat_map(of).collect()
    }

    pub(super) fn spec(&self) -> &Value {
        self.configuration["webhooks"].items().get(self.index).unwrap_or(&Value::Null)
    }

    pub(super) fn name(&self) -> &str {
        self.spec().str_at(&["name"])
    }

    pub(super) fn configuration(&self) -> &str {
        self.configuration.name()
    }

    /// Tells this webhook from others of the same name.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.configuration.name(), self.index)
    }

    pub(super) fn ignores_failures(&self) -> bool {
        self.spec().str_at(&["failurePolicy"]) == "Ignore"
    }

    /// Is it for this request?
    ///
    /// # Errors
    /// When that cannot be told, and failures are not ignored.
    pub(super) fn is_for(
        &self,
        request: &Request,
        tools: &Tools,
        authorizers: &Arc<[Arc<dyn Authorizer>]>,
    ) -> Result<bool, Status> {
        let lister = tools.lister.as_ref();
        if !Matcher::of_webhook(self.spec()).matches(request, lister, false)? {
            return Ok(false);
        }
        let conditions = self.spec()["matchConditions"].items();
        if conditions.is_empty() {
            return Ok(true);
        }
        let conditions: Vec<(String, Compiled)> = conditions
            .iter()
            .map(|c| (c.str_at(&["name"]).to_owned(), Compiled::new(c.str_at(&["expression"]))))
            .collect();
        let facts = Facts::new(request, lister, authorizers);
        match Scope::new(&facts, None, &[]).all_hold(&conditions) {
            Ok(holds) => Ok(holds),
            Err(_) if self.ignores_failures() => Ok(false),
            Err(why) => Err(request.forbidden(why)),
        }
    }

    /// Asks. `None`: there was no answer, and that is ignored.
    ///
    /// # Errors
    /// The refusal, or the failure where failures are not ignored.
    pub(super) async fn ask(&self, request: &Request, tools: &Tools) -> Result<Option<Answer>, Status> {
        let effects = self.spec().str_at(&["sideEffects"]);
        if request.dry_run && !matches!(effects, "None" | "NoneOnDryRun") {
            return Err(Status::bad_request(format!("admission webhook {:?} does not support dry run", self.name())));
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let version = self.review_version();
        let review = review_of(request, &uid, version);
        let seconds = self.spec()["timeoutSeconds"].as_i64().and_then(|s| u64::try_from(s).ok()).unwrap_or(10);
        let timeout = Duration::from_secs(seconds.clamp(1, 30));
        let config = &self.spec()["clientConfig"];
        let asked = outbound::ask(config, &review, timeout, tools.lister.as_ref(), "kube-apiserver-admission").await;
        let asked = asked.map_err(|failure| match failure {
            Failure::Unusable(why) => why,
            Failure::Call(why) => format!("failed to call webhook: {why}"),
        });
        let response = match asked.and_then(|answer| verified(answer, &uid, version)) {
            Ok(response) => response,
            Err(why) if self.ignores_failures() => {
                tracing::warn!(webhook = self.name(), %why, "a webhook failed, which is ignored");
                return Ok(None);
            }
            Err(why) => return Err(Status::internal(format!("failed calling webhook {:?}: {why}", self.name()))),
        };
        self.judge(&response).map(Some)
    }

    fn review_version(&self) -> &'static str {
        let accepted = self.spec()["admissionReviewVersions"].items().iter().filter_map(Value::as_str);
        accepted.filter_map(|v| ["v1", "v1beta1"].into_iter().find(|known| *known == v)).next().unwrap_or("v1")
    }

    fn judge(&self, response: &Value) -> Result<Answer, Status> {
        let strings = |list: &Value| list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect();
        if response["allowed"].as_bool() != Some(true) {
            return Err(self.denied(&response["status"]));
        }
        let patch = match response["patch"].as_str() {
            None | Some("") => None,
            Some(text) => Some(STANDARD.decode(text).map_err(|e| Status::internal(e.to_string()))?),
        };
        let notes = response["auditAnnotations"].entries().iter();
        let notes = notes.filter_map(|(k, v)| Some((format!("{}/{k}", self.name()), v.as_str()?.to_owned())));
        Ok(Answer { patch, warnings: strings(&response["warnings"]), annotations: notes.collect() })
    }

    /// The refusal in the webhook's words.
    fn denied(&self, status: &Value) -> Status {
        let by = format!("admission webhook {:?} denied the request", self.name());
        let (message, reason) = (status.str_at(&["message"]), status.str_at(&["reason"]));
        let message = match (message.is_empty(), reason.is_empty()) {
            (false, _) => format!("{by}: {message}"),
            (true, false) => format!("{by}: {reason}"),
            (true, true) => format!("{by} without explanation"),
        };
        let code = status["code"].as_i64().and_then(|c| u16::try_from(c).ok()).filter(|c| *c >= 400).unwrap_or(400);
        let told = Status::new(code, known_reason(reason), message);
        let details = &status["details"];
        if details.is_null() {
            return told;
        }
        let cause = |c: &Value| Cause {
            reason: c.str_at(&["reason"]).to_owned(),
            message: c.str_at(&["message"]).to_owned(),
            field: c.str_at(&["field"]).to_owned(),
        };
        told.with_details(Details {
            name: details.str_at(&["name"]).to_owned(),
            group: details.str_at(&["group"]).to_owned(),
            kind: details.str_at(&["kind"]).to_owned(),
            uid: details.str_at(&["uid"]).to_owned(),
            causes: details["causes"].items().iter().map(cause).collect(),
            retry_after_seconds: details["retryAfterSeconds"].as_i64().unwrap_or_default(),
        })
    }
}

/// The reasons of the API; others are not passed on.
fn known_reason(reason: &str) -> &'static str {
    const REASONS: &[&str] = &[
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "AlreadyExists",
        "Conflict",
        "Gone",
        "Invalid",
        "ServerTimeout",
        "Timeout",
        "TooManyRequests",
        "BadRequest",
        "MethodNotAllowed",
        "NotAcceptable",
        "RequestEntityTooLarge",
        "UnsupportedMediaType",
        "InternalError",
        "Expired",
        "ServiceUnavailable",
    ];
    REASONS.iter().find(|known| **known == reason).copied().unwrap_or_default()
}

fn review_of(request: &Request, uid: &str, version: &str) -> Value {
    let mut asked = request_value(request);
    asked.set(&["uid"], uid);
    asked.set(&["object"], object_value(request, &request.object));
    asked.set(&["oldObject"], object_value(request, &request.old_object));
    Value::from([
        ("kind", "AdmissionReview".into()),
        ("apiVersion", format!("admission.k8s.io/{version}").into()),
        ("request", asked),
    ])
}

/// The response, if it is one to this question.
fn verified(answer: Value, uid: &str, version: &str) -> Result<Value, String> {
    let response = &answer["response"];
    if response.is_null() {
        return Err("webhook response was absent".to_owned());
    }
    if version == "v1" {
        if response.str_at(&["uid"]) != uid {
            return Err(format!(
                "received invalid webhook response: expected response.uid={uid:?}, got {:?}",
                response.str_at(&["uid"])
            ));
        }
        let (api_version, kind) = (answer.api_version(), answer.kind());
        if api_version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
            return Err(format!(
                "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
            ));
        }
        let (patch, patch_type) = (response.str_at(&["patch"]), response.str_at(&["patchType"]));
        if !patch.is_empty() && patch_type != "JSONPatch" {
            return Err(format!(
                "received invalid webhook response: webhook returned invalid response.patchType of {patch_type:?}"
            ));
        }
        if patch.is_empty() && !patch_type.is_empty() {
            return Err(
                "received invalid webhook response: webhook returned response.patchType but not response.patch"
                    .to_owned(),
            );
        }
    }
    Ok(response.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn hook() -> Hook {
        let configuration = Arc::new(json(r#"{"metadata":{"name":"c"},"webhooks":[{"name":"h.example.com"}]}"#));
        Hook { configuration, index: 0 }
    }

    #[track_caller]
    fn check_denied(status: &str, want: (u16, &str, &str)) {
        let told = hook().denied(&json(status));
        assert_eq!((told.code, told.reason, told.message.as_str()), want);
    }

    #[test]
    fn refusals_are_in_the_webhooks_words() {
        let by = r#"admission webhook "h.example.com" denied the request"#;
        check_denied("null", (400, "", &format!("{by} without explanation")));
        check_denied(r#"{"message":"no","code":403,"reason":"Forbidden"}"#, (403, "Forbidden", &format!("{by}: no")));
        check_denied(r#"{"reason":"Conflict","code":200}"#, (400, "Conflict", &format!("{by}: Conflict")));
    }

    #[test]
    fn answers_must_be_to_the_question() {
        let answer = |uid: &str, rest: &str| {
            json(&format!(
                r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{{"uid":"{uid}"{rest}}}}}"#
            ))
        };
        assert!(verified(answer("1", r#","allowed":true"#), "1", "v1").is_ok());
        assert!(verified(answer("2", r#","allowed":true"#), "1", "v1").unwrap_err().contains("expected response.uid"));
        assert!(verified(answer("1", r#","patch":"W10=""#), "1", "v1").unwrap_err().contains("response.patchType"));
        assert_eq!(verified(json("{}"), "1", "v1"), Err("webhook response was absent".to_owned()));
    }
}
