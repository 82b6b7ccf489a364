//! ServiceAccount: every pod runs as one, and finds its token at the usual place.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;
use rand::RngExt;

use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const DEFAULT: &str = "default";
/// How often it is looked for.
const ATTEMPTS: u32 = 10;
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// What the volume asks for; tokens of just this length are made to live longer for old clients.
const TOKEN_SECONDS: i64 = 3607;

pub(super) struct ServiceAccount {
    pub lister: Arc<dyn Lister>,
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && request.is_core("pods")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        if request.object.annotation(MIRROR).is_some() {
            return check_mirror(request);
        }
        if request.object.str_at(&["spec", "serviceAccountName"]).is_empty() {
            // The field's old name counts where the new one says nothing.
            let old_name = request.object.str_at(&["spec", "serviceAccount"]).to_owned();
            let name = if old_name.is_empty() { DEFAULT.to_owned() } else { old_name };
            request.object.set(&["spec", "serviceAccountName"], name);
        }
        // The field's old name is kept equal.
        let name = request.object.str_at(&["spec", "serviceAccountName"]).to_owned();
        request.object.set(&["spec", "serviceAccount"], name.as_str());
        let Some(account) = self.account(&request.namespace, &name).await? else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                request.namespace
            );
            return Err(request.forbidden(why));
        };
        if wants_token(&request.object, &account) {
            mount_token(&mut request.object);
        }
        let secrets = &account["imagePullSecrets"];
        if request.object["spec"]["imagePullSecrets"].items().is_empty() && !secrets.items().is_empty() {
            request.object.set(&["spec", "imagePullSecrets"], secrets.clone());
        }
        Ok(())
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        if request.object.annotation(MIRROR).is_some() {
            return check_mirror(request);
        }
        if request.object.str_at(&["spec", "serviceAccountName"]).is_empty() {
            return Err(request.forbidden("no service account specified for pod"));
        }
        Ok(())
    }
}

impl ServiceAccount {
    /// A namespace's account `default` is waited for: its controller makes it as soon as it has seen the namespace.
    async fn account(&self, namespace: &str, name: &str) -> Result<Option<Arc<Value>>, Status> {
        let attempts = if name == DEFAULT { ATTEMPTS } else { 1 };
        let pause = Duration::from_millis(rand::rng().random_range(100..200));
        for attempt in 0..attempts {
            if attempt > 0 {
                tokio::time::sleep(pause).await;
            }
            if let Some(account) = self.lister.find("serviceaccounts", namespace, name).await? {
                return Ok(Some(account));
            }
        }
        Ok(None)
    }
}

fn check_mirror(request: &Request) -> Result<(), Status> {
    let spec = &request.object["spec"];
    if !spec.str_at(&["serviceAccountName"]).is_empty() {
        return Err(request.forbidden("a mirror pod may not reference service accounts"));
    }
    let projects_token =
        |v: &Value| v["projected"]["sources"].items().iter().any(|s| !s["serviceAccountToken"].is_null());
    if spec["volumes"].items().iter().any(projects_token) {
        return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

fn wants_token(pod: &Value, account: &Value) -> bool {
    let of_pod = pod["spec"]["automountServiceAccountToken"].as_bool();
    of_pod.or_else(|| account["automountServiceAccountToken"].as_bool()).unwrap_or(true)
}

/// A projected volume with token, CA and namespace, mounted in every container that has nothing of its own there.
fn mount_token(pod: &mut Value) {
    let spec = pod.entry(&["spec"]);
    let existing = spec["volumes"].items().iter().find(|v| v.str_at(&["name"]).starts_with("kube-api-access-"));
    let existing = existing.map(|v| v.str_at(&["name"]).to_owned());
    let name = existing.clone().unwrap_or_else(|| format!("kube-api-access-{}", suffix()));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list) else { continue };
        for container in containers.items_mut() {
            let has = container["volumeMounts"].items().iter().any(|m| m.str_at(&["mountPath"]) == MOUNT_PATH);
            if !has {
                used = true;
                container.entry(&["volumeMounts"]).make_array().push(Value::from([
                    ("name", name.as_str().into()),
                    ("readOnly", true.into()),
                    ("mountPath", MOUNT_PATH.into()),
                ]));
            }
        }
    }
    if used && existing.is_none() {
        spec.entry(&["volumes"]).make_array().push(token_volume(&name));
    }
}

fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

fn token_volume(name: &str) -> Value {
    let item = |key: &str| Value::Array(vec![Value::from([("key", key.into()), ("path", key.into())])]);
    let token = Value::from([("expirationSeconds", TOKEN_SECONDS.into()), ("path", "token".into())]);
    let namespace = Value::from([
        ("path", "namespace".into()),
        ("fieldRef", Value::from([("apiVersion", "v1".into()), ("fieldPath", "metadata.namespace".into())])),
    ]);
    let sources = vec![
        Value::from([("serviceAccountToken", token)]),
        Value::from([("configMap", Value::from([("name", "kube-root-ca.crt".into()), ("items", item("ca.crt"))]))]),
        Value::from([("downwardAPI", Value::from([("items", Value::Array(vec![namespace]))]))]),
    ];
    let projected = Value::from([("sources", Value::Array(sources)), ("defaultMode", 420i64.into())]);
    Value::from([("name", name.into()), ("projected", projected)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_where_nothing_is() {
        let mut pod: Value = serde_json::from_str(
            r#"{"spec":{"containers":[{"name":"a"},{"name":"b","volumeMounts":[{"name":"x","mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}]}]}}"#,
        )
        .unwrap();
        mount_token(&mut pod);
        let volumes = pod["spec"]["volumes"].items();
        assert_eq!(volumes.len(), 1);
        let name = volumes[0].str_at(&["name"]);
        assert!(name.starts_with("kube-api-access-"));
        let containers = pod["spec"]["containers"].items();
        assert_eq!(containers[0]["volumeMounts"].items()[0].str_at(&["name"]), name);
        assert_eq!(containers[1]["volumeMounts"].items().len(), 1);
        let again = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, again);
    }

    #[test]
    fn the_pod_decides_before_its_account() {
        let parse = |t: &str| serde_json::from_str::<Value>(t).unwrap();
        let off = parse(r#"{"automountServiceAccountToken":false}"#);
        assert!(!wants_token(&parse("{}"), &off));
        assert!(wants_token(&parse(r#"{"spec":{"automountServiceAccountToken":true}}"#), &off));
        assert!(wants_token(&parse("{}"), &parse("{}")));
    }
}
