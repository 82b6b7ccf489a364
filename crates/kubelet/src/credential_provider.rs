//! Programs that give credentials for registries (KEP-2133): which one is asked for an image, what it is asked, and for how
//! long its answer holds.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use component_base::config_file::{self, ConfigError};
use k8s_cri::v1::AuthConfig;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long a program may take, as upstream allows.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Deserialize)]
struct File {
    providers: Vec<Provider>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    /// The program's name in the directory of such programs.
    name: String,
    /// Patterns of the images that it knows credentials for.
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Clone, Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// `Image`, `Registry` or `Global`: what the answer is good for.
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, Login>,
}

#[derive(Clone, Debug, Deserialize)]
struct Login {
    username: String,
    password: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("{}: provider {name:?}: {problem}", path.display())]
    Provider { path: PathBuf, name: String, problem: String },
}

/// An answer and until when it holds.
type Cached = (BTreeMap<String, Login>, Instant);

#[derive(Debug, Default)]
pub(crate) struct Providers {
    dir: PathBuf,
    all: Vec<Provider>,
    /// By provider and what its answer is good for.
    cache: Mutex<HashMap<(String, String), Cached>>,
}

impl Providers {
    /// Reads a `CredentialProviderConfig`; the programs are in `dir`.
    pub(crate) fn open(file: &Path, dir: &Path) -> Result<Self, Error> {
        let versions = ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
        let read: File = config_file::load(file, &versions, "CredentialProviderConfig")?;
        for provider in &read.providers {
            let wrong = |problem: &str| Error::Provider {
                path: file.to_owned(),
                name: provider.name.clone(),
                problem: problem.to_owned(),
            };
            if provider.name.is_empty() || provider.name.contains(['/', ' ']) || provider.name.starts_with('.') {
                return Err(wrong("it is no name of a program"));
            }
            if !provider.api_version.starts_with("credentialprovider.kubelet.k8s.io/") {
                return Err(wrong(&format!("unsupported apiVersion {:?}", provider.api_version)));
            }
            component_base::flags::go_duration(&provider.default_cache_duration).map_err(|e| wrong(&e))?;
        }
        Ok(Providers { dir: dir.to_owned(), all: read.providers, cache: Mutex::default() })
    }

    /// What the providers know for an image, the most specific pattern first.
    pub(crate) async fn credentials(&self, image: &str) -> Vec<AuthConfig> {
        let mut found = Vec::new();
        for provider in self.all.iter().filter(|p| p.match_images.iter().any(|pattern| matches(pattern, image))) {
            match self.ask(provider, image).await {
                Ok(logins) => {
                    let fitting = logins.iter().rev().filter(|(pattern, _)| matches(pattern, image));
                    found.extend(fitting.map(|(pattern, login)| AuthConfig {
                        username: login.username.clone(),
                        password: login.password.clone(),
                        server_address: pattern.clone(),
                        ..AuthConfig::default()
                    }));
                }
                Err(error) => tracing::warn!(provider = provider.name, error, "no credentials come from this provider"),
            }
        }
        found
    }

    async fn ask(&self, provider: &Provider, image: &str) -> Result<BTreeMap<String, Login>, String> {
        let now = Instant::now();
        for key in [image, registry_of(image), ""] {
            let key = (provider.name.clone(), key.to_owned());
            if let Some((logins, _)) = self.cache.lock().get(&key).filter(|(_, until)| now < *until) {
                return Ok(logins.clone());
            }
        }
        let answer = self.call(provider, image, TIMEOUT).await?;
        let given = answer.cache_duration.as_ref().unwrap_or(&provider.default_cache_duration);
        let lasts = component_base::flags::go_duration(given)?;
        let key = match answer.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => registry_of(image),
            "Global" => "",
            other => return Err(format!("invalid cacheKeyType {other:?}")),
        };
        if !lasts.is_zero() {
            let mut cache = self.cache.lock();
            cache.retain(|_, (_, until)| now < *until);
            cache.insert((provider.name.clone(), key.to_owned()), (answer.auth.clone(), now + lasts));
        }
        Ok(answer.auth)
    }

    async fn call(&self, provider: &Provider, image: &str, patience: Duration) -> Result<Answer, String> {
        let request = serde_json::json!({
            "apiVersion": provider.api_version, "kind": "CredentialProviderRequest", "image": image });
        let mut program = Command::new(self.dir.join(&provider.name))
            .args(&provider.args)
            .envs(provider.env.iter().map(|v| (&v.name, &v.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| e.to_string())?;
        let input = program.stdin.take();
        let ask = async {
            if let Some(mut input) = input {
                // One that does not read its request may still answer.
                let _ = input.write_all(request.to_string().as_bytes()).await;
            }
        };
        let asked = async { tokio::join!(ask, program.wait_with_output()).1 };
        let done = tokio::time::timeout(patience, asked).await;
        let done = done.map_err(|_| "it did not answer in time".to_owned())?.map_err(|e| e.to_string())?;
        if !done.status.success() {
            return Err(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim()));
        }
        let answer: serde_json::Value = serde_json::from_slice(&done.stdout).map_err(|e| e.to_string())?;
        if answer["kind"] != "CredentialProviderResponse" || answer["apiVersion"] != provider.api_version.as_str() {
            return Err(format!("its answer is a {} of {}", answer["kind"], answer["apiVersion"]));
        }
        serde_json::from_value(answer).map_err(|e| e.to_string())
    }
}

/// Host and port of the registry that an image's name means.
pub(crate) fn registry_of(image: &str) -> &str {
    let first = image.split('/').next().unwrap_or_default();
    if image.contains('/') && (first.contains(['.', ':']) || first == "localhost") { first } else { "docker.io" }
}

/// Whether a pattern (`*.registry.example.com:8080/path`) is one of this image: each part of the host for itself, the port
/// as it is, the path as a beginning.
fn matches(pattern: &str, image: &str) -> bool {
    let pattern = pattern.split_once("://").map_or(pattern, |(_, rest)| rest);
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let registry = registry_of(image);
    let rest = image.strip_prefix(registry).unwrap_or(image).trim_start_matches('/');
    let split =
        |host: &str| host.split_once(':').map_or((host.to_owned(), String::new()), |(h, p)| (h.into(), p.into()));
    let ((wanted, wanted_port), (host, port)) = (split(host), split(registry));
    let (wanted, host): (Vec<&str>, Vec<&str>) = (wanted.split('.').collect(), host.split('.').collect());
    wanted_port == port
        && wanted.len() == host.len()
        && wanted.iter().zip(&host).all(|(pattern, part)| glob(pattern, part))
        && rest.starts_with(path)
}

/// `*` stands for any number of letters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => {
            let Some(text) = text.strip_prefix(start) else { return false };
            (0..=text.len()).filter_map(|at| text.get(at..)).any(|tail| glob(rest, tail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_matched_part_by_part() {
        let check =
            |pattern: &str, image: &str, want: bool| assert_eq!(matches(pattern, image), want, "{pattern} {image}");
        check("registry.example.com", "registry.example.com/a/b:1", true);
        check("*.example.com", "registry.example.com/a:1", true);
        check("*.com", "registry.example.com/a:1", false);
        check("reg*.example.*", "registry.example.com/a", true);
        check("registry.example.com:5000", "registry.example.com/a", false);
        check("registry.example.com:5000", "registry.example.com:5000/a", true);
        check("registry.example.com/team", "registry.example.com/team/a", true);
        check("registry.example.com/team", "registry.example.com/other/a", false);
        check("docker.io", "library/busybox:1", true);
        check("docker.io", "busybox:1.36", true);
    }

    #[tokio::test]
    async fn a_program_is_asked_once_while_its_answer_holds() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("helper");
        let script = "#!/bin/sh\ncat >> \"$(dirname \"$0\")/asked\"\necho '{\"kind\": \"CredentialProviderResponse\", \
            \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \"cacheKeyType\": \"Registry\", \
            \"auth\": {\"registry.example.com\": {\"username\": \"me\", \"password\": \"'$SECRET'\"}, \
            \"other.example.com\": {\"username\": \"you\", \"password\": \"x\"}}}'\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("config.yaml");
        let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: helper\n  \
            matchImages: ['*.example.com']\n  defaultCacheDuration: 1h\n  \
            apiVersion: credentialprovider.kubelet.k8s.io/v1\n  env: [{name: SECRET, value: opens}]\n";
        std::fs::write(&config, text).unwrap();
        let providers = Providers::open(&config, dir.path()).unwrap();
        for image in ["registry.example.com/a:1", "registry.example.com/b:1"] {
            let found = providers.credentials(image).await;
            let found: Vec<_> = found.iter().map(|a| (a.username.as_str(), a.password.as_str())).collect();
            assert_eq!(found, [("me", "opens")], "{image}");
        }
        assert!(providers.credentials("registry.example.org/a:1").await.is_empty());
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked.matches("CredentialProviderRequest").count(), 1, "{asked}");

        std::fs::write(&config, text.replace("helper", "../helper")).unwrap();
        assert!(Providers::open(&config, dir.path()).is_err());
    }

    #[tokio::test]
    async fn a_program_that_does_not_even_read_is_waited_for_no_longer() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("helper");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 3600\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let provider = Provider {
            name: "helper".into(),
            match_images: Vec::new(),
            default_cache_duration: "1h".into(),
            api_version: "credentialprovider.kubelet.k8s.io/v1".into(),
            args: Vec::new(),
            env: Vec::new(),
        };
        let providers = Providers { dir: dir.path().to_owned(), ..Providers::default() };
        // More than a pipe holds.
        let image = format!("registry.example.com/{}", "a".repeat(1 << 20));
        let answer = providers.call(&provider, &image, Duration::from_millis(100)).await;
        assert_eq!(answer.map(|a| a.auth.len()), Err("it did not answer in time".to_owned()));
    }
}
