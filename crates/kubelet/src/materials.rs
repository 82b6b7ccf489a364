//! The ConfigMaps, Secrets and tokens that a pod refers to, fetched for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::error::ignore_not_found;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;

/// Everything of a namespace that one pod names; what does not exist is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Materials {
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    pub config_map_binaries: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

#[derive(Debug, PartialEq, Eq, Default)]
struct Named {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

/// Fetches what the pod names. Without an apiserver (static pods alone) nothing exists.
pub(crate) async fn fetch(client: Option<&kube::Client>, pod: &Pod) -> Result<Materials, kube::Error> {
    let mut found = Materials::default();
    let (Some(client), Some(namespace)) = (client, pod.metadata.namespace.as_deref()) else { return Ok(found) };
    let named = names_in(pod);
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    for name in named.config_maps {
        if let Some(map) = ignore_not_found(config_maps.get(&name).await)? {
            let binary = map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
            found.config_map_binaries.insert(name.clone(), binary);
            found.config_maps.insert(name, map.data.unwrap_or_default());
        }
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in named.secrets {
        if let Some(secret) = ignore_not_found(secrets.get(&name).await)? {
            let data = secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
            found.secrets.insert(name, data);
        }
    }
    Ok(found)
}

/// Whether anything in the pod's volumes may change while it runs.
pub(crate) fn has_changing_volumes(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes
        .iter()
        .any(|v| v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some())
}

fn names_in(pod: &Pod) -> Named {
    let mut named = Named::default();
    let Some(spec) = &pod.spec else { return named };
    let containers: Vec<&Container> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    for container in containers {
        for source in container.env_from.iter().flatten() {
            named.config_maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
            named.secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            named.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            named.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        named.config_maps.extend(volume.config_map.as_ref().map(|c| c.name.clone()));
        named.secrets.extend(volume.secret.as_ref().and_then(|s| s.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            named.config_maps.extend(source.config_map.as_ref().map(|c| c.name.clone()));
            named.secrets.extend(source.secret.as_ref().map(|s| s.name.clone()));
        }
    }
    named.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|s| s.name.clone()));
    named.config_maps.remove("");
    named.secrets.remove("");
    named
}

/// Service-account tokens for projected volumes, kept until four fifths of their life are over.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<BTreeMap<Wanted, Token>>);

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    pub pod_uid: String,
    pub audience: String,
    pub seconds: i64,
}

#[derive(Clone)]
pub(crate) struct Token {
    pub text: String,
    pub expires: Timestamp,
    renew_at: Timestamp,
}

impl Tokens {
    pub(crate) async fn get(
        &self,
        client: &kube::Client,
        pod: &Pod,
        audience: Option<&str>,
        seconds: Option<i64>,
    ) -> Result<Token, kube::Error> {
        let seconds = seconds.unwrap_or(3600);
        let pod_uid = pod.metadata.uid.clone().unwrap_or_default();
        let wanted = Wanted { pod_uid: pod_uid.clone(), audience: audience.unwrap_or_default().to_owned(), seconds };
        let now = Timestamp::now();
        if let Some(token) = self.0.lock().get(&wanted).filter(|t| now < t.renew_at) {
            return Ok(token.clone());
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|a| vec![a.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: Some(pod_uid),
                }),
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let made = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        let Some((token, expires)) = made.status.and_then(|s| s.token.zip(s.expiration_timestamp)) else {
            return Err(kube::Error::Service("the apiserver answered a TokenRequest without a token".into()));
        };
        let life = u64::try_from(expires.0.as_second() - now.as_second()).unwrap_or_default();
        let renew_at = now + Duration::from_secs(life * 4 / 5);
        let token = Token { text: token, expires: expires.0, renew_at };
        self.0.lock().insert(wanted, token.clone());
        Ok(token)
    }

    pub(crate) fn forget(&self, pod_uid: &str) {
        self.0.lock().retain(|wanted, _| wanted.pod_uid != pod_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_a_pod_is_found() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "imagePullSecrets": [{"name": "registry"}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "a"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "b", "key": "k"}}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "t"}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}}]}}))
        .unwrap();
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let want = Named { config_maps: set(&["a", "b", "kube-root-ca.crt"]), secrets: set(&["registry", "s", "t"]) };
        assert_eq!(names_in(&pod), want);
        assert!(has_changing_volumes(&pod));
    }
}
