//! `EncryptionConfiguration`: which resources are kept how.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use component_base::flags::go_duration;
use serde::Deserialize;

use super::kms::Kms;
use super::local::{Cipher, Local};
use super::{Provider, Way};

const VERSIONS: &[&str] = &["apiserver.config.k8s.io/v1"];
const KIND: &str = "EncryptionConfiguration";

/// The rules of a configuration, in order.
#[derive(Default)]
pub(crate) struct Rules(Vec<Rule>);

struct Rule {
    resources: Vec<String>,
    ways: Vec<Way>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    resources: Vec<ResourcesFile>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ResourcesFile {
    resources: Vec<String>,
    providers: Vec<ProviderFile>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ProviderFile {
    identity: Option<Identity>,
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    kms: Option<KmsFile>,
}

#[derive(Deserialize, Default)]
struct Identity {}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Keys {
    keys: Vec<KeyFile>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct KeyFile {
    name: String,
    secret: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct KmsFile {
    api_version: String,
    name: String,
    endpoint: String,
    timeout: Option<String>,
    #[serde(rename = "cachesize")]
    cache_size: Option<i64>,
}

impl Rules {
    /// Must be called where tasks can be spawned.
    ///
    /// # Errors
    /// All that is wrong with it, in upstream's words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let file: File =
            component_base::config_file::parse(text, Path::new(KIND), VERSIONS, KIND).map_err(|e| e.to_string())?;
        let mut wrong = Vec::new();
        if file.resources.is_empty() {
            wrong.push("resources: Required value: resource must be specified".to_owned());
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (i, file) in file.resources.into_iter().enumerate() {
            let at = format!("resources[{i}]");
            if file.resources.is_empty() {
                wrong.push(format!("{at}.resources: Required value: resources must be specified"));
            }
            for (j, resource) in file.resources.iter().enumerate() {
                check_resource(&format!("{at}.resources[{j}]"), resource, &mut wrong);
            }
            if file.providers.is_empty() {
                wrong.push(format!("{at}.providers: Required value: provider must be specified"));
            }
            let mut ways = Vec::new();
            for (j, provider) in file.providers.into_iter().enumerate() {
                ways.extend(way_of(&format!("{at}.providers[{j}]"), provider, &mut wrong));
            }
            rules.push(Rule { resources: file.resources, ways });
        }
        if wrong.is_empty() { Ok(Rules(rules)) } else { Err(wrong.join("\n")) }
    }

    /// Everything is kept one way.
    #[cfg(test)]
    pub(super) fn all(way: Way) -> Self {
        Rules(vec![Rule { resources: vec!["*.*".to_owned()], ways: vec![way] }])
    }

    /// How a group-resource is kept; the first rule that names it, as itself or with others, decides.
    pub(super) fn of(&self, resource: &str) -> Option<Vec<Way>> {
        let (_, group) = resource.split_once('.').unwrap_or((resource, ""));
        let names = |wanted: &str| {
            wanted == resource || wanted == "*.*" || wanted.strip_prefix("*.").is_some_and(|wanted| wanted == group)
        };
        self.0.iter().find(|rule| rule.resources.iter().any(|wanted| names(wanted))).map(|rule| rule.ways.clone())
    }

    pub(super) fn providers(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.0.iter().flat_map(|rule| &rule.ways).filter_map(|way| match way {
            Way::Plain => None,
            Way::Provided(provider) => Some(provider),
        })
    }
}

fn check_resource(at: &str, resource: &str, wrong: &mut Vec<String>) {
    let mut add = |why: &str| wrong.push(format!("{at}: Invalid value: {resource:?}: {why}"));
    let star = resource.contains('*');
    if star && !resource.starts_with("*.") {
        add("use '*.<group>' to encrypt all the resources from API group or '*.*' to encrypt all resources");
    }
    if resource.contains('/') {
        add("subresources of resources cannot be encrypted");
    }
    if resource.chars().any(char::is_uppercase) {
        add("resource name should not contain capital letters");
    }
    if !star && (resource == "apiserveripinfo" || resource.ends_with(".apiserver.k8s.io.")) {
        add("this resource cannot be encrypted");
    }
}

fn way_of(at: &str, file: ProviderFile, wrong: &mut Vec<String>) -> Option<Way> {
    let given = [
        file.identity.is_some(),
        file.aesgcm.is_some(),
        file.aescbc.is_some(),
        file.secretbox.is_some(),
        file.kms.is_some(),
    ];
    match given.iter().filter(|given| **given).count() {
        0 => {
            wrong.push(format!("{at}: Required value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"));
            return None;
        }
        1 => {}
        _ => {
            wrong.push(format!("{at}: Invalid value: more than one provider specified in a single element, should split into different list elements"));
            return None;
        }
    }
    if file.identity.is_some() {
        return Some(Way::Plain);
    }
    if let Some(kms) = file.kms {
        return kms_of(&format!("{at}.kms"), kms, wrong);
    }
    let local = [(Cipher::AesGcm, file.aesgcm), (Cipher::AesCbc, file.aescbc), (Cipher::Secretbox, file.secretbox)];
    let (cipher, keys) = local.into_iter().find_map(|(cipher, keys)| Some((cipher, keys?)))?;
    let at = format!("{at}.{}.keys", cipher.name());
    if keys.keys.is_empty() {
        wrong.push(format!("{at}: Required value: keys must be specified"));
    }
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for (i, key) in keys.keys.into_iter().enumerate() {
        let at = format!("{at}[{i}]");
        if key.name.is_empty() {
            wrong.push(format!("{at}.name: Required value: key must have a name"));
        }
        if key.name.contains(':') || all.iter().any(|(name, _)| *name == key.name) {
            wrong.push(format!("{at}.name: Invalid value: {:?}: names are unique and have no colon", key.name));
        }
        if key.secret.is_empty() {
            wrong.push(format!("{at}.secret: Required value: secret must be specified"));
            continue;
        }
        let Ok(secret) = STANDARD.decode(key.secret.trim()) else {
            wrong.push(format!("{at}.secret: Invalid value: \"REDACTED\": secrets must be base64 encoded"));
            continue;
        };
        if !cipher.key_sizes().contains(&secret.len()) {
            wrong.push(format!("{at}.secret: Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of {:?}", secret.len(), cipher.key_sizes()));
            continue;
        }
        all.push((key.name, secret));
    }
    (!all.is_empty()).then(|| Way::Provided(Arc::new(Local::new(cipher, all))))
}

fn kms_of(at: &str, file: KmsFile, wrong: &mut Vec<String>) -> Option<Way> {
    let before = wrong.len();
    if file.api_version != "v2" {
        let why = "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead";
        wrong.push(format!("{at}.apiVersion: Invalid value: {:?}: {why}", file.api_version));
    }
    if file.name.is_empty() {
        wrong.push(format!("{at}.name: Required value: the name cannot be empty"));
    } else if file.name.contains(':') {
        wrong.push(format!(
            "{at}.name: Invalid value: {:?}: invalid provider name {}, must not contain ':'",
            file.name, file.name
        ));
    }
    if let Some(size) = file.cache_size {
        wrong.push(format!("{at}.cachesize: Invalid value: {size}: cachesize is not supported in v2"));
    }
    let timeout = match file.timeout.as_deref().map(go_duration) {
        None => Duration::from_secs(3),
        Some(Ok(timeout)) if !timeout.is_zero() => timeout,
        Some(_) => {
            wrong.push(format!("{at}.timeout: Invalid value: {:?}: timeout should be a positive value", file.timeout));
            Duration::ZERO
        }
    };
    let Some(socket) = file.endpoint.strip_prefix("unix://").filter(|path| !path.is_empty()) else {
        wrong.push(format!(
            "{at}.endpoint: Invalid value: {:?}: unsupported scheme for KMS provider, want unix",
            file.endpoint
        ));
        return None;
    };
    // `unix:///@name` is a name in the abstract namespace for Go; here it is a path like any other.
    let socket = Path::new(socket).to_owned();
    (wrong.len() == before).then(|| Way::Provided(Kms::start(&file.name, socket, timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(rest: &str) -> Result<Rules, String> {
        Rules::parse(&format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n{rest}"))
    }

    #[test]
    fn the_first_rule_that_names_a_resource_decides() {
        let key = STANDARD.encode([7; 32]);
        let rules = rules(&format!(
            "resources:\n- resources: [secrets, '*.shop.example.com']\n  providers: [{{aescbc: {{keys: [{{name: k, secret: {key}}}]}}}}, {{identity: {{}}}}]\n- resources: ['*.*']\n  providers: [{{identity: {{}}}}]\n"
        ))
        .unwrap();
        let ways = |resource: &str| rules.of(resource).map(|ways| ways.len());
        assert_eq!(ways("secrets"), Some(2));
        assert_eq!(ways("carts.shop.example.com"), Some(2));
        assert_eq!(ways("configmaps"), Some(1));
        assert_eq!(rules.providers().count(), 1);
    }

    #[track_caller]
    fn complaints(rest: &str, want: &[&str]) {
        let wrong = rules(rest).err().unwrap_or_default();
        assert_eq!(wrong.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn all_mistakes_are_named() {
        complaints("", &["resources: Required value: resource must be specified"]);
        complaints(
            "resources:\n- resources: [Secrets]\n  providers: [{}, {aesgcm: {keys: [{name: a, secret: YQ==}]}}]\n",
            &[
                "resources[0].resources[0]: Invalid value: \"Secrets\": resource name should not contain capital letters",
                "resources[0].providers[0]: Required value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
                "resources[0].providers[1].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 1, expected one of [16, 24, 32]",
            ],
        );
        complaints(
            "resources:\n- resources: [secrets]\n  providers: [{kms: {apiVersion: v1, name: k, cachesize: 9, endpoint: 'tcp://x'}}]\n",
            &[
                "resources[0].providers[0].kms.apiVersion: Invalid value: \"v1\": KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead",
                "resources[0].providers[0].kms.cachesize: Invalid value: 9: cachesize is not supported in v2",
                "resources[0].providers[0].kms.endpoint: Invalid value: \"tcp://x\": unsupported scheme for KMS provider, want unix",
            ],
        );
    }
}
