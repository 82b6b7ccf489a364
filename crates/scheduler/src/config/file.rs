//! `KubeSchedulerConfiguration` of kubescheduler.config.k8s.io/v1, as it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::config::ClientOptions;
use client::leader_election::LeaseConfig;
use component_base::config_file::{self, ConfigError};
use component_base::feature_gates::FeatureGates;
use component_base::flags::{go_duration, show_go_duration};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Config;
use super::extender::{ExtenderConfig, ExtenderTls, ManagedResource};
use super::profile::{ExtensionPoint, PluginSet, ProfileConfig};
use crate::framework::Registry;
use crate::queue::QueueConfig;

pub(crate) fn load(path: &Path) -> Result<FileConfig, ConfigError> {
    config_file::load(path, &["kubescheduler.config.k8s.io/v1"], "KubeSchedulerConfiguration")
}

/// Go's form of a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(crate) Duration);

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        go_duration(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show_go_duration(self.0))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FileConfig {
    /// Taken, and of no meaning here: a cycle is one thread's work.
    pub(crate) parallelism: i32,
    pub(crate) leader_election: LeaderElection,
    pub(crate) client_connection: ClientConnection,
    pub(crate) enable_profiling: bool,
    pub(crate) enable_contention_profiling: bool,
    pub(crate) percentage_of_nodes_to_score: Option<i32>,
    pub(crate) pod_initial_backoff_seconds: i64,
    pub(crate) pod_max_backoff_seconds: i64,
    pub(crate) profiles: Vec<FileProfile>,
    pub(crate) extenders: Vec<FileExtender>,
    pub(crate) delay_cache_until_active: bool,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self {
            parallelism: 16,
            leader_election: LeaderElection::default(),
            client_connection: ClientConnection::default(),
            enable_profiling: true,
            enable_contention_profiling: true,
            percentage_of_nodes_to_score: None,
            pod_initial_backoff_seconds: 1,
            pod_max_backoff_seconds: 10,
            profiles: Vec::new(),
            extenders: Vec::new(),
            delay_cache_until_active: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LeaderElection {
    pub(crate) leader_elect: bool,
    pub(crate) lease_duration: GoDuration,
    pub(crate) renew_deadline: GoDuration,
    pub(crate) retry_period: GoDuration,
    pub(crate) resource_lock: String,
    pub(crate) resource_name: String,
    pub(crate) resource_namespace: String,
}

impl Default for LeaderElection {
    fn default() -> Self {
        let seconds = |n| GoDuration(Duration::from_secs(n));
        Self {
            leader_elect: true,
            lease_duration: seconds(15),
            renew_deadline: seconds(10),
            retry_period: seconds(2),
            resource_lock: "leases".to_owned(),
            resource_name: "kube-scheduler".to_owned(),
            resource_namespace: "kube-system".to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClientConnection {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) accept_content_types: String,
    pub(crate) content_type: String,
    pub(crate) qps: f64,
    pub(crate) burst: i64,
}

impl Default for ClientConnection {
    fn default() -> Self {
        Self {
            kubeconfig: PathBuf::new(),
            accept_content_types: String::new(),
            content_type: "application/vnd.kubernetes.protobuf".to_owned(),
            qps: 50.0,
            burst: 100,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FileProfile {
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percentage_of_nodes_to_score: Option<i32>,
    plugins: FilePlugins,
    plugin_config: Vec<FilePluginConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FilePlugins {
    pre_enqueue: FilePluginSet,
    queue_sort: FilePluginSet,
    pre_filter: FilePluginSet,
    filter: FilePluginSet,
    post_filter: FilePluginSet,
    pre_score: FilePluginSet,
    score: FilePluginSet,
    reserve: FilePluginSet,
    permit: FilePluginSet,
    pre_bind: FilePluginSet,
    bind: FilePluginSet,
    post_bind: FilePluginSet,
    multi_point: FilePluginSet,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FilePluginSet {
    enabled: Vec<FilePlugin>,
    disabled: Vec<FilePlugin>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FilePlugin {
    name: String,
    weight: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FilePluginConfig {
    name: String,
    args: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FileExtender {
    url_prefix: String,
    filter_verb: String,
    preempt_verb: String,
    prioritize_verb: String,
    weight: i64,
    bind_verb: String,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<FileTls>,
    http_timeout: GoDuration,
    node_cache_capable: bool,
    managed_resources: Vec<FileManagedResource>,
    ignorable: bool,
}

impl Default for FileExtender {
    fn default() -> Self {
        Self {
            url_prefix: String::new(),
            filter_verb: String::new(),
            preempt_verb: String::new(),
            prioritize_verb: String::new(),
            weight: 0,
            bind_verb: String::new(),
            enable_https: false,
            tls_config: None,
            http_timeout: GoDuration(Duration::from_secs(5)),
            node_cache_capable: false,
            managed_resources: Vec::new(),
            ignorable: false,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileTls {
    insecure: bool,
    server_name: String,
    cert_file: PathBuf,
    key_file: PathBuf,
    ca_file: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileManagedResource {
    name: String,
    ignored_by_scheduler: bool,
}

impl FileConfig {
    /// Checks everything together and fills in what was left out. `identity` is this instance's name in leader election.
    pub(crate) fn complete(mut self, registry: Registry, identity: &str) -> Result<Config, Vec<String>> {
        let mut mistakes = Vec::new();
        if self.parallelism <= 0 {
            mistakes.push(invalid("parallelism", self.parallelism, "should be an integer value greater than zero"));
        }
        let seconds = |value: i64| u64::try_from(value).ok().filter(|n| *n > 0).map(Duration::from_secs);
        let initial_backoff = seconds(self.pod_initial_backoff_seconds);
        let max_backoff = seconds(self.pod_max_backoff_seconds);
        if initial_backoff.is_none() {
            let value = self.pod_initial_backoff_seconds;
            mistakes.push(invalid("podInitialBackoffSeconds", value, "must be greater than 0"));
        }
        if max_backoff < initial_backoff {
            mistakes.push(invalid(
                "podMaxBackoffSeconds",
                self.pod_max_backoff_seconds,
                "must be greater than or equal to PodInitialBackoffSeconds",
            ));
        }
        let all = percentage("percentageOfNodesToScore", self.percentage_of_nodes_to_score, &mut mistakes);
        let lease = self.lease(identity, &mut mistakes);
        if self.profiles.is_empty() {
            self.profiles.push(FileProfile::default());
        }
        let mut profiles = profiles_of(&self.profiles, &registry, all, &mut mistakes);
        let extenders = extenders_of(&self.extenders, &mut mistakes);
        leave_to_extenders(&mut profiles, &extenders);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let shown = serde_json::json!({ "componentconfig": self });
        let defaults = QueueConfig::default();
        Ok(Config {
            kubeconfig: Some(self.client_connection.kubeconfig).filter(|path| !path.as_os_str().is_empty()),
            master: None,
            client: ClientOptions::limited(
                "kube-scheduler",
                self.client_connection.qps,
                u32::try_from(self.client_connection.burst).unwrap_or(u32::MAX),
            ),
            leader_election: lease.filter(|_| self.leader_election.leader_elect && !identity.is_empty()),
            serving: None,
            profiles,
            extenders,
            queue: QueueConfig {
                initial_backoff: initial_backoff.unwrap_or(defaults.initial_backoff),
                max_backoff: max_backoff.unwrap_or(defaults.max_backoff),
                ..defaults
            },
            feature_gates: FeatureGates::default(),
            registry,
            shown,
            flags: Vec::new(),
        })
    }

    fn lease(&self, identity: &str, mistakes: &mut Vec<String>) -> Option<LeaseConfig> {
        let election = &self.leader_election;
        if !election.leader_elect {
            return None;
        }
        let lease = LeaseConfig {
            namespace: election.resource_namespace.clone(),
            lease_duration: election.lease_duration.0,
            renew_deadline: election.renew_deadline.0,
            retry_period: election.retry_period.0,
            ..LeaseConfig::new(&election.resource_name, identity)
        };
        mistakes.extend(lease.validate().err().map(|why| format!("leaderElection: {why}")));
        if election.resource_lock != "leases" {
            let value = &election.resource_lock;
            mistakes.push(format!("leaderElection.resourceLock: Invalid value: {value:?}: must be \"leases\""));
        }
        for (field, value) in
            [("resourceName", &election.resource_name), ("resourceNamespace", &election.resource_namespace)]
        {
            if value.is_empty() {
                mistakes.push(format!("leaderElection.{field}: Required value"));
            }
        }
        Some(lease)
    }
}

fn invalid(field: &str, value: impl std::fmt::Display, why: &str) -> String {
    format!("{field}: Invalid value: {value}: {why}")
}

/// 0 means "as many as is good", which here is all.
fn percentage(field: &str, value: Option<i32>, mistakes: &mut Vec<String>) -> Option<u32> {
    let value = value?;
    match u32::try_from(value) {
        Ok(percentage @ 0..=100) => Some(percentage).filter(|percentage| *percentage != 0),
        _ => {
            mistakes.push(invalid(field, value, "not in valid range [0-100]"));
            None
        }
    }
}

fn profiles_of(
    profiles: &[FileProfile],
    registry: &Registry,
    all: Option<u32>,
    mistakes: &mut Vec<String>,
) -> Vec<ProfileConfig> {
    let mut names = BTreeSet::new();
    let mut complete = Vec::new();
    for (at, profile) in profiles.iter().enumerate() {
        let path = format!("profiles[{at}]");
        let name = match &profile.scheduler_name {
            Some(name) if name.is_empty() => {
                mistakes.push(format!("{path}.schedulerName: Required value"));
                continue;
            }
            Some(name) => name.as_str(),
            None if profiles.len() == 1 => "default-scheduler",
            None => {
                mistakes.push(format!("{path}.schedulerName: Required value"));
                continue;
            }
        };
        if !names.insert(name) {
            mistakes.push(format!("{path}.schedulerName: Duplicate value: {name:?}"));
        }
        let own = format!("{path}.percentageOfNodesToScore");
        let mut config = ProfileConfig::new(name);
        config.percentage_of_nodes_to_score = percentage(&own, profile.percentage_of_nodes_to_score, mistakes).or(all);
        config.multi_point = merged(&config.multi_point, &profile.plugins.multi_point);
        config.points = points_of(&profile.plugins);
        for name in config.enabled_anywhere() {
            if !registry.has(name) {
                mistakes.push(format!("{path}.plugins: Invalid value: {name:?}: plugin does not exist"));
            }
        }
        config.args = args_of(&profile.plugin_config, &path, mistakes);
        complete.push(config);
    }
    complete
}

fn args_of(
    configs: &[FilePluginConfig],
    path: &str,
    mistakes: &mut Vec<String>,
) -> BTreeMap<String, serde_json::Value> {
    let mut args = BTreeMap::new();
    for (at, config) in configs.iter().enumerate() {
        if args.insert(config.name.clone(), config.args.clone()).is_some() {
            mistakes.push(format!("{path}.pluginConfig[{at}]: Duplicate value: {:?}", config.name));
        }
    }
    args
}

/// NodeResourcesFit ignores the resources that extenders see to.
fn leave_to_extenders(profiles: &mut [ProfileConfig], extenders: &[ExtenderConfig]) {
    let managed = extenders.iter().flat_map(|extender| &extender.managed_resources);
    let names: Vec<&String> = managed.filter(|own| own.ignored_by_scheduler).map(|own| &own.name).collect();
    if names.is_empty() {
        return;
    }
    for profile in profiles {
        let args = profile.args.entry("NodeResourcesFit".to_owned()).or_default();
        if args.is_null() {
            *args = serde_json::json!({});
        }
        if let Some(args) = args.as_object_mut() {
            let ignored = args.entry("ignoredResources").or_insert_with(|| serde_json::json!([]));
            if let Some(ignored) = ignored.as_array_mut() {
                ignored.extend(names.iter().map(|name| serde_json::json!(name)));
            }
        }
    }
}

fn set_of(set: &FilePluginSet) -> PluginSet {
    PluginSet {
        enabled: set.enabled.iter().map(|plugin| (plugin.name.clone(), plugin.weight)).collect(),
        disabled: set.disabled.iter().map(|plugin| plugin.name.clone()).collect(),
    }
}

/// The default plugins as the file changes them: disabled ones go, ones that are named again take over the weight and
/// keep their place, others follow.
fn merged(defaults: &PluginSet, file: &FilePluginSet) -> PluginSet {
    let custom = set_of(file);
    let mut enabled = Vec::new();
    if !custom.disabled.contains("*") {
        for (name, weight) in &defaults.enabled {
            if custom.disabled.contains(name) {
                continue;
            }
            let again = custom.enabled.iter().find(|(own, _)| own == name);
            enabled.push((name.clone(), again.map_or(*weight, |(_, weight)| *weight)));
        }
    }
    for (name, weight) in custom.enabled {
        if !enabled.iter().any(|(own, _)| *own == name) {
            enabled.push((name, weight));
        }
    }
    PluginSet { enabled, disabled: custom.disabled }
}

fn points_of(plugins: &FilePlugins) -> BTreeMap<ExtensionPoint, PluginSet> {
    use ExtensionPoint as Point;
    [
        (Point::PreEnqueue, &plugins.pre_enqueue),
        (Point::QueueSort, &plugins.queue_sort),
        (Point::PreFilter, &plugins.pre_filter),
        (Point::Filter, &plugins.filter),
        (Point::PostFilter, &plugins.post_filter),
        (Point::PreScore, &plugins.pre_score),
        (Point::Score, &plugins.score),
        (Point::Reserve, &plugins.reserve),
        (Point::Permit, &plugins.permit),
        (Point::PreBind, &plugins.pre_bind),
        (Point::Bind, &plugins.bind),
        (Point::PostBind, &plugins.post_bind),
    ]
    .into_iter()
    .map(|(point, set)| (point, set_of(set)))
    .filter(|(_, set)| *set != PluginSet::default())
    .collect()
}

fn extenders_of(extenders: &[FileExtender], mistakes: &mut Vec<String>) -> Vec<ExtenderConfig> {
    let mut complete = Vec::new();
    let mut binders = 0;
    for (at, extender) in extenders.iter().enumerate() {
        let path = format!("extenders[{at}]");
        if extender.url_prefix.is_empty() {
            mistakes.push(format!("{path}.urlPrefix: Required value"));
        }
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            mistakes.push(invalid(
                &format!("{path}.weight"),
                extender.weight,
                "must have a positive weight applied to it",
            ));
        }
        binders += usize::from(!extender.bind_verb.is_empty());
        let mut names = BTreeSet::new();
        for (at, resource) in extender.managed_resources.iter().enumerate() {
            let path = format!("{path}.managedResources[{at}].name");
            if !crate::resources::is_extended(&resource.name) {
                let name = &resource.name;
                mistakes.push(format!("{path}: Invalid value: {name:?}: {name} is not an extended resource"));
            }
            if !names.insert(&resource.name) {
                mistakes.push(format!("{path}: Duplicate value: {:?}", resource.name));
            }
        }
        let file = |path: &PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
        let tls = extender.tls_config.as_ref().map(|tls| ExtenderTls {
            insecure: tls.insecure,
            server_name: Some(tls.server_name.clone()).filter(|name| !name.is_empty()),
            ca: file(&tls.ca_file),
            certificate: file(&tls.cert_file).zip(file(&tls.key_file)),
        });
        complete.push(ExtenderConfig {
            url_prefix: extender.url_prefix.clone(),
            filter_verb: extender.filter_verb.clone(),
            preempt_verb: extender.preempt_verb.clone(),
            prioritize_verb: extender.prioritize_verb.clone(),
            weight: extender.weight,
            bind_verb: extender.bind_verb.clone(),
            tls: tls.or(extender.enable_https.then(ExtenderTls::default)),
            timeout: extender.http_timeout.0,
            node_cache_capable: extender.node_cache_capable,
            managed_resources: extender
                .managed_resources
                .iter()
                .map(|r| ManagedResource { name: r.name.clone(), ignored_by_scheduler: r.ignored_by_scheduler })
                .collect(),
            ignorable: extender.ignorable,
        });
    }
    if binders > 1 {
        mistakes.push(invalid(
            "extenders",
            format!("found {binders} extenders implementing bind"),
            "only one extender can implement bind",
        ));
    }
    complete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(text: &str) -> Result<Config, String> {
        let text = format!("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{text}");
        let versions = &["kubescheduler.config.k8s.io/v1"];
        let file: FileConfig = config_file::parse(&text, Path::new("s.yaml"), versions, "KubeSchedulerConfiguration")
            .map_err(|err| err.to_string())?;
        file.complete(crate::plugins::in_tree(), "me").map_err(|mistakes| mistakes.join("; "))
    }

    #[test]
    fn what_is_left_out_has_upstreams_default() {
        let config = complete("").unwrap();
        let [profile] = &*config.profiles else { panic!("one profile") };
        assert_eq!(*profile, ProfileConfig::new("default-scheduler"));
        assert_eq!(config.queue.max_backoff, Duration::from_secs(10));
        assert_eq!(config.leader_election.unwrap().name, "kube-scheduler");
        assert_eq!((config.client.qps, config.client.burst), (50.0, 100));
        assert_eq!(config.shown["componentconfig"]["leaderElection"]["leaseDuration"], "15s");
    }

    #[test]
    fn profiles_change_the_default_plugins() {
        let config = complete(
            "profiles:\n- schedulerName: a\n  plugins:\n    multiPoint:\n      enabled: [{name: NodeAffinity, weight: 7}]\n      \
             disabled: [{name: ImageLocality}]\n    score:\n      disabled: [{name: '*'}]\n      enabled: [{name: NodeResourcesFit, weight: 5}]\n",
        )
        .unwrap();
        let profile = &config.profiles[0];
        let names = |point| {
            profile.enabled_at(point).into_iter().map(|p| format!("{}={}", p.name, p.weight)).collect::<Vec<_>>()
        };
        assert_eq!(names(ExtensionPoint::Score), ["NodeResourcesFit=5"]);
        let filters = names(ExtensionPoint::Filter);
        assert!(filters.contains(&"NodeAffinity=7".to_owned()), "{filters:?}");
        assert!(!filters.iter().any(|name| name.starts_with("ImageLocality")), "{filters:?}");
    }

    #[test]
    fn all_mistakes_are_told_together() {
        let err = complete(
            "parallelism: 0\npercentageOfNodesToScore: 101\npodInitialBackoffSeconds: 20\nprofiles:\n- schedulerName: a\n- schedulerName: a\n  \
             plugins: {filter: {enabled: [{name: Nonsense}]}}\nextenders:\n- {urlPrefix: 'http://x', prioritizeVerb: p}\n",
        )
        .err()
        .unwrap();
        for part in [
            "parallelism: Invalid value: 0: should be an integer value greater than zero",
            "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
            "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds",
            "profiles[1].schedulerName: Duplicate value: \"a\"",
            "profiles[1].plugins: Invalid value: \"Nonsense\": plugin does not exist",
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ] {
            assert!(err.contains(part), "{part} is not in {err}");
        }
    }

    #[test]
    fn unknown_fields_are_named() {
        let err = complete("percentOfNodes: 1\nprofiles: [{plugins: {filters: {}}}]\n").err().unwrap();
        assert!(err.contains("unknown field \"percentOfNodes\""), "{err}");
        assert!(err.contains("unknown field \"profiles.0.plugins.filters\""), "{err}");
    }
}
