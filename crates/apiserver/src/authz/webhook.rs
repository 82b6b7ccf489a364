//! A server outside that is asked whether somebody may do something (`SubjectAccessReview`).

use std::time::Duration;

use apimachinery::Value;
use async_trait::async_trait;

use super::{Authorizer, Decision, Verdict, selectors};
use crate::attributes::Attributes;
use crate::outbound::document_of;
use crate::outbound::kubeconfig::Remote;
use crate::outbound::remembered::Remembered;
use expressions::{Activation, Budget, CALL_LIMIT, Program, Val};

/// How many answers are remembered, and how long a question may be that is.
const REMEMBERED: usize = 8192;
const LONGEST: usize = 10_000;

/// How one is asked.
pub(crate) struct Settings {
    /// Of `SubjectAccessReview`.
    pub version: String,
    pub timeout: Duration,
    /// Zero: not remembered.
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
    /// What a failure means.
    pub on_failure: Decision,
    /// It is asked only where all of these hold.
    pub conditions: Vec<(String, Program)>,
}

pub(crate) struct WebhookAuthorizer {
    remote: Remote,
    settings: Settings,
    answers: Remembered<String, Verdict>,
}

impl WebhookAuthorizer {
    pub(crate) fn new(remote: Remote, settings: Settings) -> Self {
        WebhookAuthorizer { remote, settings, answers: Remembered::new(REMEMBERED) }
    }

    /// Do all conditions hold? One that fails decides only if no other is false.
    fn is_asked_about(&self, spec: &Value) -> Result<bool, String> {
        let mut failures = Vec::new();
        for (source, condition) in &self.settings.conditions {
            let mut names = Activation::new();
            names.bind("request", Val::json(spec));
            match condition.evaluate(&names, &mut Budget::new(CALL_LIMIT)).map(|value| value.as_bool()) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(false),
                Ok(None) => failures.push(format!("expression '{source}' is no bool")),
                Err(why) => failures.push(format!("expression '{source}' resulted in error: {why}")),
            }
        }
        if failures.is_empty() { Ok(true) } else { Err(failures.join(", ")) }
    }

    async fn ask(&self, spec: Value) -> Result<Verdict, String> {
        let review = Value::from([
            ("apiVersion", format!("authorization.k8s.io/{}", self.settings.version).into()),
            ("kind", "SubjectAccessReview".into()),
            ("spec", in_version(spec, &self.settings.version)),
        ]);
        let answer = self.remote.post(&review, self.settings.timeout).await?;
        Ok(verdict_of(&document_of(&answer)?))
    }

    fn remember(&self, key: String, verdict: &Verdict) {
        let ttl = match verdict.decision {
            Decision::Allow => self.settings.authorized_ttl,
            Decision::Deny | Decision::NoOpinion => self.settings.unauthorized_ttl,
        };
        if key.len() <= LONGEST {
            self.answers.put(key, verdict.clone(), ttl);
        }
    }

    fn failed(&self, why: String) -> Verdict {
        tracing::warn!(why, "a webhook authorizer failed");
        Verdict { decision: self.settings.on_failure, reason: String::new() }
    }
}

#[async_trait]
impl Authorizer for WebhookAuthorizer {
    async fn authorize(&self, attributes: &Attributes) -> Verdict {
        let spec = spec_of(attributes);
        match self.is_asked_about(&spec) {
            Ok(true) => {}
            Ok(false) => return Verdict { decision: Decision::NoOpinion, reason: String::new() },
            Err(why) => return self.failed(why),
        }
        let key = apimachinery::field::shown(&spec);
        if let Some(verdict) = self.answers.get(&key) {
            return verdict;
        }
        match self.ask(spec).await {
            Ok(verdict) => {
                self.remember(key, &verdict);
                verdict
            }
            Err(why) => self.failed(why),
        }
    }
}

/// The question, as `SubjectAccessReview` puts it.
fn spec_of(attributes: &Attributes) -> Value {
    let Attributes { user, request } = attributes;
    let list = |items: &[String]| Value::Array(items.iter().map(|i| i.as_str().into()).collect());
    let mut spec = Value::object();
    let mut put = |path: &[&str], text: &str| {
        if !text.is_empty() {
            spec.set(path, text);
        }
    };
    put(&["user"], &user.name);
    put(&["uid"], &user.uid);
    if request.is_resource {
        let gvr = &request.gvr;
        for (field, text) in [
            ("namespace", request.namespace.as_str()),
            ("verb", &request.verb),
            ("group", &gvr.group),
            ("version", &gvr.version),
            ("resource", &gvr.resource),
            ("subresource", &request.subresource),
            ("name", &request.name),
        ] {
            put(&["resourceAttributes", field], text);
        }
        let fields = selectors::field_requirements(&request.field_selector.selector);
        let labels = selectors::label_requirements(&request.label_selector.selector);
        for (field, requirements) in [("fieldSelector", fields), ("labelSelector", labels)] {
            if !requirements.is_empty() {
                spec.set(&["resourceAttributes", field, "requirements"], requirements);
            }
        }
    } else {
        put(&["nonResourceAttributes", "path"], &request.path);
        put(&["nonResourceAttributes", "verb"], &request.verb);
    }
    if !user.groups.is_empty() {
        spec.set(&["groups"], list(&user.groups));
    }
    for (key, values) in &user.extra {
        spec.set(&["extra", key], list(values));
    }
    spec
}

/// An older version calls the groups by another name.
fn in_version(mut spec: Value, version: &str) -> Value {
    if version == "v1beta1"
        && let Some(groups) = spec.remove(&["groups"])
    {
        spec.set(&["group"], groups);
    }
    spec
}

fn verdict_of(review: &Value) -> Verdict {
    let status = &review["status"];
    let is = |field: &str| status[field].as_bool() == Some(true);
    let decision = match (is("allowed"), is("denied")) {
        // What says both is not to be trusted with either.
        (_, true) => Decision::Deny,
        (true, false) => Decision::Allow,
        (false, false) => Decision::NoOpinion,
    };
    Verdict { decision, reason: status.str_at(&["reason"]).to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apimachinery::selector::LabelSelector;

    use super::*;
    use crate::attributes::{Narrowed, RequestInfo, UserInfo};

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn questions_say_what_is_asked() {
        let user = UserInfo { name: "jane".to_owned(), groups: vec!["dev".to_owned()], ..UserInfo::default() };
        let request = RequestInfo {
            is_resource: true,
            verb: "list".to_owned(),
            gvr: apimachinery::meta::Gvr::new("apps", "v1", "deployments"),
            namespace: "default".to_owned(),
            label_selector: Narrowed::of(LabelSelector::parse("a=b")),
            ..RequestInfo::default()
        };
        let spec = spec_of(&Attributes { user: Arc::new(user), request: Arc::new(request) });
        assert_eq!(
            spec,
            json(
                r#"{"user":"jane","groups":["dev"],"resourceAttributes":{"verb":"list","namespace":"default","group":"apps","version":"v1","resource":"deployments","labelSelector":{"requirements":[{"key":"a","operator":"In","values":["b"]}]}}}"#
            )
        );
        assert_eq!(in_version(spec, "v1beta1")["group"], json(r#"["dev"]"#));
    }

    #[test]
    fn answers_are_decisions() {
        let decision = |status: &str| verdict_of(&json(&format!(r#"{{"status":{status}}}"#))).decision;
        assert_eq!(decision(r#"{"allowed":true}"#), Decision::Allow);
        assert_eq!(decision(r#"{"allowed":false,"denied":true}"#), Decision::Deny);
        assert_eq!(decision(r#"{"allowed":true,"denied":true}"#), Decision::Deny);
        assert_eq!(decision("{}"), Decision::NoOpinion);
    }
}
