//! Images: when to pull, with whose credentials, and how long to wait after a failure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::events::Recorder;
use k8s_cri::v1::{AuthConfig, Image};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::credential_provider::{Providers, registry_of};
use crate::materials::Materials;
use crate::pod::status::Waiting;
use crate::runtime::Runtime;

const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

pub(crate) struct Images {
    runtime: Runtime,
    /// Pulls that may go on at the same time.
    pulls: Semaphore,
    failures: Mutex<HashMap<String, Failure>>,
    providers: Providers,
}

#[derive(Clone)]
struct Failure {
    until: Instant,
    wait: Duration,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

fn policy_of(container: &Container) -> Policy {
    let image = container.image.as_deref().unwrap_or_default();
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some("IfNotPresent") => Policy::IfNotPresent,
        // Upstream's default, which the apiserver has normally filled in: `latest` and no tag mean Always.
        _ if image.contains('@') => Policy::IfNotPresent,
        _ => match image.rsplit_once('/').map_or(image, |(_, last)| last).split_once(':') {
            None | Some((_, "latest")) => Policy::Always,
            Some(_) => Policy::IfNotPresent,
        },
    }
}

impl Images {
    pub(crate) fn new(runtime: Runtime, parallel: usize, providers: Providers) -> Self {
        Images { runtime, pulls: Semaphore::new(parallel.max(1)), failures: Mutex::default(), providers }
    }

    /// The reference of a container's image on this node, pulled if its policy asks for that.
    pub(crate) async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        regarding: &ObjectReference,
        materials: &Materials,
        events: &Recorder,
    ) -> Result<Image, Waiting> {
        let image = container.image.as_deref().unwrap_or_default();
        let waiting = |reason: &str, message: String| Waiting { reason: reason.to_owned(), message };
        let policy = policy_of(container);
        let present = self.runtime.image(image).await.map_err(|e| waiting("ImageInspectError", e.to_string()))?;
        if let Some(found) = present.filter(|_| policy != Policy::Always) {
            let text = format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
            events.normal(regarding, "Pulled", text);
            return Ok(found);
        }
        if policy == Policy::Never {
            let text = format!("Container image \"{image}\" is not present with pull policy of Never");
            events.warning(regarding, "ErrImageNeverPull", text.clone());
            return Err(waiting("ErrImageNeverPull", text));
        }
        let key = format!("{}/{image}", pod.metadata.uid.as_deref().unwrap_or_default());
        let earlier = self.failures.lock().get(&key).cloned();
        if let Some(failure) = earlier.filter(|f| Instant::now() < f.until) {
            let text = format!("Back-off pulling image \"{image}\": ErrImagePull: {}", failure.message);
            events.normal(regarding, "BackOff", format!("Back-off pulling image \"{image}\""));
            return Err(waiting("ImagePullBackOff", text));
        }
        events.normal(regarding, "Pulling", format!("Pulling image \"{image}\""));
        let started = Instant::now();
        let Ok(_permit) = self.pulls.acquire().await else {
            return Err(waiting("ErrImagePull", "the kubelet is stopping".to_owned()));
        };
        let pulling = Instant::now();
        let mut outcome = Err("no credentials were tried".to_owned());
        let of_pod = credentials(pod, image, materials).into_iter();
        let of_node = self.providers.credentials(image).await.into_iter();
        // At last without any.
        for auth in of_pod.chain(of_node).map(Some).chain([None]) {
            outcome = self.runtime.pull(image, auth).await.map_err(|e| e.in_short());
            if outcome.is_ok() {
                break;
            }
        }
        match outcome {
            Ok(reference) => {
                self.failures.lock().remove(&key);
                let took = |d: Duration| {
                    component_base::flags::show_go_duration(Duration::from_millis(
                        u64::try_from(d.as_millis()).unwrap_or_default(),
                    ))
                };
                let (alone, whole) = (took(pulling.elapsed()), took(started.elapsed()));
                let found = self.runtime.image(&reference).await.ok().flatten();
                let found = found.unwrap_or_else(|| Image { id: reference, ..Image::default() });
                let text = format!(
                    "Successfully pulled image \"{image}\" in {alone} ({whole} including waiting). Image size: {} bytes.",
                    found.size
                );
                events.normal(regarding, "Pulled", text);
                Ok(found)
            }
            Err(message) => {
                let mut failures = self.failures.lock();
                let wait = failures.get(&key).map_or(FIRST_WAIT, |f| (f.wait * 2).min(LONGEST_WAIT));
                failures.insert(key, Failure { until: Instant::now() + wait, wait, message: message.clone() });
                events.warning(regarding, "Failed", format!("Failed to pull image \"{image}\": {message}"));
                Err(waiting("ErrImagePull", message))
            }
        }
    }

    /// How long until a pull of this image may be tried again.
    pub(crate) fn backoff_left(&self, pod_uid: &str, image: &str) -> Duration {
        let failures = self.failures.lock();
        failures
            .get(&format!("{pod_uid}/{image}"))
            .map(|f| f.until.saturating_duration_since(Instant::now()))
            .unwrap_or_default()
    }

    pub(crate) fn forget(&self, pod_uid: &str) {
        self.failures.lock().retain(|key, _| !key.starts_with(&format!("{pod_uid}/")));
    }
}

/// The credentials of the pod's pull secrets that are for this image's registry.
fn credentials(pod: &Pod, image: &str, materials: &Materials) -> Vec<AuthConfig> {
    let names = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).map(|s| &s.name);
    names
        .filter_map(|name| materials.secrets.get(name))
        .flat_map(|secret| {
            let modern =
                secret.get(".dockerconfigjson").and_then(|d| serde_json::from_slice::<serde_json::Value>(d).ok());
            let legacy = secret.get(".dockercfg").and_then(|d| serde_json::from_slice::<serde_json::Value>(d).ok());
            modern.map(|m| m["auths"].clone()).or(legacy)
        })
        .flat_map(|auths| matching(&auths, image))
        .collect()
}

fn matching(auths: &serde_json::Value, image: &str) -> Vec<AuthConfig> {
    let registry = registry_of(image);
    let entries = auths.as_object().into_iter().flatten();
    entries
        .filter(|(server, _)| {
            let host = server.trim_start_matches("https://").trim_start_matches("http://");
            let host = host.split('/').next().unwrap_or_default();
            host == registry || (registry == "docker.io" && host.ends_with("docker.io"))
        })
        .map(|(server, entry)| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            let decoded =
                STANDARD.decode(text("auth")).ok().and_then(|d| String::from_utf8(d).ok()).unwrap_or_default();
            let (user, password) = decoded.split_once(':').unwrap_or_default();
            let or = |given: String, other: &str| if given.is_empty() { other.to_owned() } else { given };
            AuthConfig {
                username: or(text("username"), user),
                password: or(text("password"), password),
                server_address: server.clone(),
                identity_token: text("identitytoken"),
                registry_token: text("registrytoken"),
                ..AuthConfig::default()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_follows_the_tag() {
        let check = |image: &str, want| {
            assert_eq!(policy_of(&Container { image: Some(image.into()), ..Container::default() }), want, "{image}");
        };
        check("web", Policy::Always);
        check("localhost:5000/web", Policy::Always);
        check("web:latest", Policy::Always);
        check("web:1", Policy::IfNotPresent);
        check("web@sha256:00", Policy::IfNotPresent);
    }

    #[test]
    fn credentials_go_only_to_their_registry() {
        let auths = serde_json::json!({
            "registry.example.com": {"auth": STANDARD.encode("me:secret")},
            "https://other.example.com/v1/": {"username": "you", "password": "x"}});
        let found = matching(&auths, "registry.example.com/a/b:1");
        assert_eq!((found.len(), found[0].username.as_str(), found[0].password.as_str()), (1, "me", "secret"));
        assert_eq!(matching(&auths, "other.example.com/a")[0].username, "you");
        assert!(matching(&auths, "a/b").is_empty());
        let auths = serde_json::json!({"https://index.docker.io/v1/": {"username": "hub", "password": "x"}});
        assert_eq!(matching(&auths, "busybox:1.36").len(), 1);
        assert!(matching(&auths, "localhost:5000/busybox:1.36").is_empty());
    }
}
