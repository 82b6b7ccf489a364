//! The command line of kube-scheduler, with upstream's names and defaults, and what it completes to.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use component_base::config_file::ConfigError;
use component_base::feature_gates::FeatureGates;
use component_base::flags::go_duration;
use component_base::secure_port::SecurePortFlags;

use crate::config::{Config, FileConfig, load};
use crate::framework::Registry;

#[derive(Debug, thiserror::Error)]
pub enum FlagsError {
    #[error("configuration file")]
    File(#[from] ConfigError),
    /// All mistakes, each in a sentence.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

#[derive(Debug, Clone, Parser)]
#[command(name = "kube-scheduler", disable_version_flag = true)]
pub struct Flags {
    /// A KubeSchedulerConfiguration. With one, of the flags below only those of leader election and serving count.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The address of the API server; replaces the kubeconfig's.
    #[arg(long)]
    pub master: Option<String>,
    /// Path to the kubeconfig file with authorization and API server location.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[arg(long, default_value_t = 50.0)]
    pub kube_api_qps: f64,
    #[arg(long, default_value_t = 100)]
    pub kube_api_burst: i64,
    #[arg(long, default_value = "application/vnd.kubernetes.protobuf")]
    pub kube_api_content_type: String,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: bool,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub contention_profiling: bool,
    /// How long a pod may wait for a change that helps it, before it is tried again without one.
    #[arg(long, default_value = "5m0s", value_parser = go_duration)]
    pub pod_max_in_unschedulable_pods_duration: Duration,
    /// Writes the configuration to this file and ends.
    #[arg(long)]
    pub write_config_to: Option<PathBuf>,

    #[command(flatten)]
    pub secure: SecurePortFlags,
    /// 0 serves nothing.
    #[arg(long, default_value_t = 10259)]
    pub secure_port: u16,

    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: Option<bool>,
    #[arg(long, value_parser = go_duration)]
    pub leader_elect_lease_duration: Option<Duration>,
    #[arg(long, value_parser = go_duration)]
    pub leader_elect_renew_deadline: Option<Duration>,
    #[arg(long, value_parser = go_duration)]
    pub leader_elect_retry_period: Option<Duration>,
    #[arg(long)]
    pub leader_elect_resource_lock: Option<String>,
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    #[arg(long)]
    pub leader_elect_resource_namespace: Option<String>,

    /// `A=true,B=false`.
    #[arg(long)]
    pub feature_gates: Vec<FeatureGates>,
    /// `text` or `json`.
    #[arg(long, default_value = "text")]
    pub logging_format: component_base::logs::Format,
    /// Log verbosity.
    #[arg(long, short = 'v', default_value_t = 0)]
    pub v: u8,
}

impl Flags {
    /// Reads the files that the flags name and checks everything together. `identity` is this instance's name in leader
    /// election.
    ///
    /// # Errors
    /// When the file cannot be read, or anything is wrong.
    pub fn complete(self, identity: &str) -> Result<Config, FlagsError> {
        self.complete_with(crate::plugins::in_tree(), identity)
    }

    /// As [`Self::complete`], for a scheduler that has plugins of its own.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub fn complete_with(self, registry: Registry, identity: &str) -> Result<Config, FlagsError> {
        let mut file = match &self.config {
            Some(path) => load(path)?,
            None => self.without_file(),
        };
        self.elect(&mut file);
        let mut mistakes = Vec::new();
        let serving = self.secure.complete(self.secure_port, true).unwrap_or_else(|wrong| {
            mistakes.extend(wrong);
            None
        });
        let completed = file.complete(registry, identity);
        let mut config = match completed {
            Ok(config) if mistakes.is_empty() => config,
            Ok(_) => return Err(FlagsError::Invalid(mistakes)),
            Err(wrong) => {
                mistakes.extend(wrong);
                return Err(FlagsError::Invalid(mistakes));
            }
        };
        config.master = self.master;
        config.queue.max_in_unschedulable = self.pod_max_in_unschedulable_pods_duration;
        config.feature_gates = self.feature_gates.iter().fold(FeatureGates::default(), FeatureGates::overridden_by);
        if config.feature_gates.enabled(crate::plugins::GANG_SCHEDULING) {
            for profile in &mut config.profiles {
                profile.multi_point.enabled.push(("GangScheduling".to_owned(), 0));
            }
        }
        config.serving = serving;
        Ok(config)
    }

    fn without_file(&self) -> FileConfig {
        let mut file = FileConfig::default();
        file.client_connection.kubeconfig = self.kubeconfig.clone().unwrap_or_default();
        file.client_connection.qps = self.kube_api_qps;
        file.client_connection.burst = self.kube_api_burst;
        file.client_connection.content_type.clone_from(&self.kube_api_content_type);
        file.enable_profiling = self.profiling;
        file.enable_contention_profiling = self.contention_profiling;
        file
    }

    /// Flags of leader election win over the file.
    fn elect(&self, file: &mut FileConfig) {
        fn set<T: Clone>(to: &mut T, from: Option<&T>) {
            if let Some(from) = from {
                to.clone_from(from);
            }
        }
        let election = &mut file.leader_election;
        set(&mut election.leader_elect, self.leader_elect.as_ref());
        set(&mut election.lease_duration.0, self.leader_elect_lease_duration.as_ref());
        set(&mut election.renew_deadline.0, self.leader_elect_renew_deadline.as_ref());
        set(&mut election.retry_period.0, self.leader_elect_retry_period.as_ref());
        set(&mut election.resource_lock, self.leader_elect_resource_lock.as_ref());
        set(&mut election.resource_name, self.leader_elect_resource_name.as_ref());
        set(&mut election.resource_namespace, self.leader_elect_resource_namespace.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(args: &[&str]) -> Result<Config, String> {
        let flags: Flags = component_base::flags::parse("kube-scheduler", args.iter().map(ToString::to_string))
            .map_err(|(text, _)| text)?;
        flags.complete("me").map_err(|err| err.to_string())
    }

    #[test]
    fn upstreams_flags_are_taken() {
        let config = complete(&[
            "--kubeconfig=/k.conf",
            "--authentication-kubeconfig=/k.conf",
            "--leader-elect=false",
            "--kube-api-qps",
            "5000",
            "--feature-gates=A=true,B=false",
            "--v=4",
        ])
        .unwrap();
        assert_eq!(config.kubeconfig, Some("/k.conf".into()));
        assert_eq!(config.client.qps, 5000.0);
        assert!(config.leader_election.is_none());
        assert_eq!(config.serving.unwrap().address.port(), 10259);
    }

    #[test]
    fn flags_of_leader_election_win_over_the_file() {
        let file = tempfile_with(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
             leaderElection: {leaderElect: true, retryPeriod: 3s, resourceName: other}\n\
             clientConnection: {kubeconfig: /of/file}\n",
        );
        let path = file.path().to_str().unwrap().to_owned();
        let config =
            complete(&["--config", &path, "--kubeconfig=/of/flag", "--leader-elect-resource-name=mine"]).unwrap();
        let lease = config.leader_election.unwrap();
        assert_eq!((&*lease.name, lease.retry_period), ("mine", Duration::from_secs(3)));
        assert_eq!(config.kubeconfig, Some("/of/file".into()));
    }

    fn tempfile_with(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn mistakes_are_told_together() {
        let err = complete(&["--tls-cert-file=/c", "--leader-elect-renew-deadline=20s"]).err().unwrap();
        assert!(err.contains("--tls-cert-file and --tls-private-key-file go together"), "{err}");
        assert!(err.contains("leaseDuration must be greater than renewDeadline"), "{err}");
        assert_eq!(complete(&["--foo"]).err().unwrap(), "Error: unknown flag: --foo\n");
    }
}
