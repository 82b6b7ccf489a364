//! `AuthorizationConfiguration`: authorizers in order, and how webhooks among them are asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use component_base::flags::go_duration;
use serde::Deserialize;

use super::Decision;
use super::webhook::Settings;
use expressions::{Declarations, DeclaredType, ObjectType, Program, Type};

const VERSIONS: &[&str] =
    &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
const KIND: &str = "AuthorizationConfiguration";
/// How long a webhook may take at most.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

/// One authorizer of a configuration.
pub(crate) struct Configured {
    /// Upstream's name of the mode.
    pub kind: &'static str,
    pub name: String,
    /// Of a webhook.
    pub webhook: Option<ConfiguredWebhook>,
}

pub(crate) struct ConfiguredWebhook {
    pub kubeconfig: PathBuf,
    pub settings: Settings,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    authorizers: Vec<AuthorizerFile>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthorizerFile {
    r#type: String,
    name: String,
    webhook: Option<WebhookFile>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WebhookFile {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: Option<String>,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: Option<String>,
    cache_unauthorized_requests: Option<bool>,
    timeout: String,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: ConnectionInfo,
    match_conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ConnectionInfo {
    r#type: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    expression: String,
}

/// Reads a configuration.
///
/// # Errors
/// All that is wrong with it, in upstream's words.
pub(crate) fn authorizers_of(text: &str) -> Result<Vec<Configured>, String> {
    let path = Path::new(KIND);
    let file: File = component_base::config_file::parse(text, path, VERSIONS, KIND).map_err(|e| e.to_string())?;
    let mut wrong = Vec::new();
    let mut all: Vec<Configured> = Vec::new();
    if file.authorizers.is_empty() {
        wrong.push("authorizers: Required value: at least one authorization mode must be defined".to_owned());
    }
    for (i, authorizer) in file.authorizers.into_iter().enumerate() {
        let at = format!("authorizers[{i}]");
        let known = ["Webhook", "Node", "RBAC", "ABAC", "AlwaysAllow", "AlwaysDeny"];
        let Some(kind) = known.into_iter().find(|kind| *kind == authorizer.r#type) else {
            let why = if authorizer.r#type.is_empty() {
                format!("{at}.type: Required value")
            } else {
                format!("{at}.type: Unsupported value: {:?}: supported values: {known:?}", authorizer.r#type)
            };
            wrong.push(why);
            continue;
        };
        if kind != "Webhook" && all.iter().any(|other| other.kind == kind) {
            wrong.push(format!("{at}.type: Duplicate value: {kind:?}"));
        }
        if authorizer.name.is_empty() {
            wrong.push(format!("{at}.name: Required value"));
        } else if all.iter().any(|other| other.name == authorizer.name) {
            wrong.push(format!("{at}.name: Duplicate value: {:?}", authorizer.name));
        }
        let webhook = match (kind, authorizer.webhook) {
            ("Webhook", None) => {
                wrong.push(format!("{at}.webhook: Required value: required when type=Webhook"));
                None
            }
            ("Webhook", Some(webhook)) => webhook_of(&format!("{at}.webhook"), webhook, &mut wrong),
            (_, Some(_)) => {
                wrong.push(format!("{at}.webhook: Invalid value: non-null: may only be specified when type=Webhook"));
                None
            }
            (_, None) => None,
        };
        all.push(Configured { kind, name: authorizer.name, webhook });
    }
    if wrong.is_empty() { Ok(all) } else { Err(wrong.join("\n")) }
}

fn webhook_of(at: &str, file: WebhookFile, wrong: &mut Vec<String>) -> Option<ConfiguredWebhook> {
    let before = wrong.len();
    let mut duration = |field: &str, text: Option<&str>, usual: Duration| match text {
        None => usual,
        Some(text) => match go_duration(text) {
            Ok(duration) if !duration.is_zero() => duration,
            Ok(_) => {
                wrong.push(format!("{at}.{field}: Invalid value: {text:?}: must be > 0s"));
                usual
            }
            Err(why) => {
                wrong.push(format!("{at}.{field}: Invalid value: {text:?}: {why}"));
                usual
            }
        },
    };
    let authorized = duration("authorizedTTL", file.authorized_ttl.as_deref(), Duration::from_secs(300));
    let unauthorized = duration("unauthorizedTTL", file.unauthorized_ttl.as_deref(), Duration::from_secs(30));
    let timeout = Some(file.timeout.as_str()).filter(|text| !text.is_empty());
    let timeout_given = duration("timeout", timeout, LONGEST_TIMEOUT);
    if timeout.is_none() {
        wrong.push(format!("{at}.timeout: Required value"));
    } else if timeout_given > LONGEST_TIMEOUT {
        wrong.push(format!("{at}.timeout: Invalid value: {:?}: must be <= 30s", file.timeout));
    }
    match file.subject_access_review_version.as_str() {
        "" => wrong.push(format!("{at}.subjectAccessReviewVersion: Required value")),
        "v1" | "v1beta1" => {}
        other => wrong.push(format!(
            "{at}.subjectAccessReviewVersion: Unsupported value: {other:?}: supported values: \"v1\", \"v1beta1\""
        )),
    }
    match file.match_condition_subject_access_review_version.as_str() {
        "v1" => {}
        "" if file.match_conditions.is_empty() => {}
        "" => wrong.push(format!(
            "{at}.matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified"
        )),
        other => wrong.push(format!(
            "{at}.matchConditionSubjectAccessReviewVersion: Unsupported value: {other:?}: supported values: \"v1\""
        )),
    }
    let on_failure = match file.failure_policy.as_str() {
        "Deny" => Decision::Deny,
        "NoOpinion" => Decision::NoOpinion,
        "" => {
            wrong.push(format!("{at}.failurePolicy: Required value"));
            Decision::Deny
        }
        other => {
            wrong.push(format!(
                "{at}.failurePolicy: Unsupported value: {other:?}: supported values: \"NoOpinion\", \"Deny\""
            ));
            Decision::Deny
        }
    };
    let info = format!("{at}.connectionInfo");
    let kubeconfig = match (file.connection_info.r#type.as_str(), file.connection_info.kube_config_file) {
        ("KubeConfigFile", Some(path)) if path.is_absolute() => path,
        ("KubeConfigFile", Some(path)) => {
            wrong.push(format!("{info}.kubeConfigFile: Invalid value: {:?}: must be an absolute path", path.display()));
            PathBuf::new()
        }
        ("KubeConfigFile", None) => {
            wrong.push(format!("{info}.kubeConfigFile: Required value"));
            PathBuf::new()
        }
        ("", _) => {
            wrong.push(format!("{info}.type: Required value"));
            PathBuf::new()
        }
        (other, _) => {
            wrong.push(format!("{info}.type: Unsupported value: {other:?}: supported values: \"KubeConfigFile\""));
            PathBuf::new()
        }
    };
    let mut conditions: Vec<(String, Program)> = Vec::new();
    for (i, condition) in file.match_conditions.into_iter().enumerate() {
        let at = format!("{at}.matchConditions[{i}].expression");
        let source = condition.expression.trim().to_owned();
        if source.is_empty() {
            wrong.push(format!("{at}: Required value"));
        } else if conditions.iter().any(|(other, _)| *other == source) {
            wrong.push(format!("{at}: Duplicate value: {source:?}"));
        } else {
            match Program::checked(&source, &asked()) {
                Ok((program, DeclaredType::Bool)) => conditions.push((source, program)),
                Ok(_) => wrong.push(format!("{at}: Invalid value: {source:?}: must evaluate to bool")),
                Err(why) => wrong.push(format!("{at}: Invalid value: {source:?}: compilation failed: {why}")),
            }
        }
    }
    let ttl = |ttl, cached: Option<bool>| if cached == Some(false) { Duration::ZERO } else { ttl };
    let settings = Settings {
        version: file.subject_access_review_version,
        timeout: timeout_given,
        authorized_ttl: ttl(authorized, file.cache_authorized_requests),
        unauthorized_ttl: ttl(unauthorized, file.cache_unauthorized_requests),
        on_failure,
        conditions,
    };
    (wrong.len() == before).then_some(ConfiguredWebhook { kubeconfig, settings })
}

/// What conditions see: `request`, the spec of a `SubjectAccessReview`.
fn asked() -> Declarations {
    fn object<'f>(fields: impl IntoIterator<Item = (&'f str, Type)>) -> Type {
        Type::Object(ObjectType::exact(fields.into_iter().map(|(name, of)| (name.into(), of))).into())
    }
    let texts = |fields: &[&'static str]| fields.iter().map(|field| (*field, Type::String)).collect::<Vec<_>>();
    let list = |of: Type| Type::List(of.into());
    let selector = || {
        let mut requirement = texts(&["key", "operator"]);
        requirement.push(("values", list(Type::String)));
        object([("rawSelector", Type::String), ("requirements", list(object(requirement)))])
    };
    let mut resource = texts(&["namespace", "verb", "group", "version", "resource", "subresource", "name"]);
    resource.extend([("fieldSelector", selector()), ("labelSelector", selector())]);
    let mut spec = texts(&["user", "uid"]);
    spec.extend([
        ("groups", list(Type::String)),
        ("extra", Type::Map(list(Type::String).into())),
        ("resourceAttributes", object(resource)),
        ("nonResourceAttributes", object(texts(&["path", "verb"]))),
    ]);
    Declarations::new().with("request", object(spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rest: &str) -> Result<Vec<Configured>, String> {
        authorizers_of(&format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n{rest}"))
    }

    #[test]
    fn authorizers_come_in_order() {
        let all = parsed(
            "authorizers:\n- type: Webhook\n  name: w\n  webhook:\n    timeout: 3s\n    subjectAccessReviewVersion: v1\n    matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: Deny\n    cacheUnauthorizedRequests: false\n    connectionInfo: {type: KubeConfigFile, kubeConfigFile: /k}\n    matchConditions: [{expression: has(request.resourceAttributes)}]\n- {type: RBAC, name: rbac}\n",
        )
        .unwrap();
        let settings = &all[0].webhook.as_ref().unwrap().settings;
        assert_eq!((settings.timeout, settings.authorized_ttl), (Duration::from_secs(3), Duration::from_secs(300)));
        assert_eq!((settings.unauthorized_ttl, settings.conditions.len()), (Duration::ZERO, 1));
        assert_eq!((all[1].kind, all[1].name.as_str()), ("RBAC", "rbac"));
    }

    #[track_caller]
    fn complaints(rest: &str, want: &[&str]) {
        let wrong = parsed(rest).err().unwrap_or_default();
        assert_eq!(wrong.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn all_mistakes_are_named() {
        complaints("", &["authorizers: Required value: at least one authorization mode must be defined"]);
        complaints(
            "authorizers:\n- {type: RBAC, name: a}\n- {type: RBAC, name: a}\n- {type: Webhook, name: w}\n",
            &[
                "authorizers[1].type: Duplicate value: \"RBAC\"",
                "authorizers[1].name: Duplicate value: \"a\"",
                "authorizers[2].webhook: Required value: required when type=Webhook",
            ],
        );
        complaints(
            "authorizers:\n- type: Webhook\n  name: w\n  webhook: {timeout: 60s, failurePolicy: Perhaps, subjectAccessReviewVersion: v1, connectionInfo: {type: KubeConfigFile, kubeConfigFile: k}}\n",
            &[
                "authorizers[0].webhook.timeout: Invalid value: \"60s\": must be <= 30s",
                "authorizers[0].webhook.failurePolicy: Unsupported value: \"Perhaps\": supported values: \"NoOpinion\", \"Deny\"",
                "authorizers[0].webhook.connectionInfo.kubeConfigFile: Invalid value: \"k\": must be an absolute path",
            ],
        );
        let conditions = |list: &str| {
            format!(
                "authorizers:\n- type: Webhook\n  name: w\n  webhook: {{timeout: 3s, failurePolicy: Deny, subjectAccessReviewVersion: v1, matchConditionSubjectAccessReviewVersion: v1, connectionInfo: {{type: KubeConfigFile, kubeConfigFile: /k}}, matchConditions: [{list}]}}\n"
            )
        };
        complaints(
            &conditions(
                "{expression: request.user}, {expression: request.nobody == ''}, {expression: \"request.resourceAttributes.fieldSelector.requirements.exists(r, r.key == 'a')\"}",
            ),
            &[
                "authorizers[0].webhook.matchConditions[0].expression: Invalid value: \"request.user\": must evaluate to bool",
                "authorizers[0].webhook.matchConditions[1].expression: Invalid value: \"request.nobody == ''\": compilation failed: ERROR: <input>:1:8: undefined field 'nobody'",
                " | request.nobody == ''",
                " | .......^",
            ],
        );
    }
}
