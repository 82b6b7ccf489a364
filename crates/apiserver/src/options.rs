//! kube-apiserver's flags, with upstream's names and defaults, and how they complete to a [`Config`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use component_base::feature_gates::FeatureGates;
use component_base::flags::{go_duration, key_values};
use component_base::tls::Spoken;
use ipnet::IpNet;

use crate::config::{
    AuditConfig, AuditLogConfig, AuditMode, AuditWebhookConfig, AuthenticationConfig, AuthorizationConfig,
    AuthorizationWebhookConfig, Config, EncryptionConfig, EtcdConfig, KubeletConfig, OidcConfig, RequestHeaderConfig,
    SeatsConfig, ServiceAccountConfig, ServiceConfig, ServingConfig, StorageEncoding, StoreConfig, TokenWebhookConfig,
};
use crate::runtime_config::RuntimeConfig;
use crate::server::Error;

/// The command line of kube-apiserver.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube-apiserver", about = "The Kubernetes API server", disable_version_flag = true)]
pub struct Flags {
    /// etcd servers to connect with (scheme://ip:port), separated by commas; without any the embedded store is used
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    /// Prefix of all keys in etcd
    #[arg(long, default_value = "/registry")]
    pub etcd_prefix: String,
    /// How often old revisions of etcd are compacted; 0 leaves that to others
    #[arg(long, value_parser = go_duration, default_value = "5m0s")]
    pub etcd_compaction_interval: Duration,
    /// How long the store may take to answer a health check
    #[arg(long, value_parser = go_duration, default_value = "2s")]
    pub etcd_healthcheck_timeout: Duration,
    #[arg(long, value_parser = go_duration, default_value = "2s")]
    pub etcd_readycheck_timeout: Duration,
    /// Encoding of what is stored in etcd
    #[arg(long, default_value = "application/vnd.kubernetes.protobuf")]
    pub storage_media_type: String,
    /// Directory of the embedded store
    #[arg(long, default_value = "/var/lib/kelson/apiserver")]
    pub data_dir: PathBuf,
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub encryption_provider_config_automatic_reload: bool,
    #[arg(long, value_parser = go_duration, default_value = "1h0m0s")]
    pub event_ttl: Duration,

    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// The address that members of the cluster reach this server by
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    #[arg(long)]
    pub external_hostname: Option<String>,
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// Where self-signed serving certificates are kept
    #[arg(long, default_value = "/var/run/kubernetes")]
    pub cert_dir: PathBuf,
    #[arg(long)]
    pub tls_min_version: Option<String>,
    #[arg(long, value_delimiter = ',')]
    pub tls_cipher_suites: Vec<String>,
    #[arg(long, value_parser = go_duration, default_value = "1m0s")]
    pub request_timeout: Duration,
    #[arg(long, default_value_t = 1800)]
    pub min_request_timeout: u64,
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: usize,
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_priority_and_fairness: bool,
    #[arg(long, value_parser = go_duration, default_value = "0s")]
    pub shutdown_delay_duration: Duration,
    #[arg(long, default_value_t = 0.0)]
    pub goaway_chance: f64,
    #[arg(long, default_value_t = 0)]
    pub http2_max_streams_per_connection: u32,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: bool,
    #[arg(long, default_value_t = 1)]
    pub apiserver_count: u32,
    #[arg(long, default_value = "lease")]
    pub endpoint_reconciler_type: String,

    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_bootstrap_token_auth: bool,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub anonymous_auth: bool,
    #[arg(long)]
    pub authentication_config: Option<PathBuf>,
    #[arg(long)]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    #[arg(long, default_value = "v1beta1")]
    pub authentication_token_webhook_version: String,
    #[arg(long, value_parser = go_duration, default_value = "2m0s")]
    pub authentication_token_webhook_cache_ttl: Duration,
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    #[arg(long)]
    pub oidc_issuer_url: Option<String>,
    #[arg(long)]
    pub oidc_client_id: Option<String>,
    #[arg(long)]
    pub oidc_ca_file: Option<PathBuf>,
    #[arg(long, default_value = OIDC_USERNAME_CLAIM)]
    pub oidc_username_claim: String,
    #[arg(long)]
    pub oidc_username_prefix: Option<String>,
    #[arg(long)]
    pub oidc_groups_claim: Option<String>,
    #[arg(long)]
    pub oidc_groups_prefix: Option<String>,
    #[arg(long, value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = OIDC_SIGNING_ALG)]
    pub oidc_signing_algs: Vec<String>,
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_extra_headers_prefix: Vec<String>,
    #[arg(long)]
    pub proxy_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub proxy_client_key_file: Option<PathBuf>,

    #[arg(long, value_delimiter = ',')]
    pub service_account_issuer: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub service_account_key_file: Vec<PathBuf>,
    #[arg(long)]
    pub service_account_signing_key_file: Option<PathBuf>,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub service_account_lookup: bool,
    #[arg(long, value_parser = go_duration, default_value = "0s")]
    pub service_account_max_token_expiration: Duration,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub service_account_extend_token_expiration: bool,
    #[arg(long)]
    pub service_account_jwks_uri: Option<String>,

    /// AlwaysAllow, AlwaysDeny, Webhook, RBAC, Node, in order
    #[arg(long, value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    #[arg(long)]
    pub authorization_config: Option<PathBuf>,
    #[arg(long)]
    pub authorization_webhook_config_file: Option<PathBuf>,
    #[arg(long, default_value = "v1beta1")]
    pub authorization_webhook_version: String,
    #[arg(long, value_parser = go_duration, default_value = "5m0s")]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    #[arg(long, value_parser = go_duration, default_value = "30s")]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,

    #[arg(long, value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    #[arg(long)]
    pub admission_control_config_file: Option<PathBuf>,
    #[arg(long, default_value_t = 300)]
    pub default_not_ready_toleration_seconds: i64,
    #[arg(long, default_value_t = 300)]
    pub default_unreachable_toleration_seconds: i64,

    /// One range, or one of each family
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<IpNet>,
    #[arg(long, value_parser = port_range, default_value = "30000-32767")]
    pub service_node_port_range: (u16, u16),
    #[arg(long, default_value_t = 0)]
    pub kubernetes_service_node_port: u16,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_privileged: bool,

    #[arg(long)]
    pub kubelet_client_certificate: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    #[arg(long, value_delimiter = ',', default_value = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP")]
    pub kubelet_preferred_address_types: Vec<String>,
    #[arg(long, value_parser = go_duration, default_value = "5s")]
    pub kubelet_timeout: Duration,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_aggregator_routing: bool,

    #[arg(long)]
    pub audit_policy_file: Option<PathBuf>,
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxage: u32,
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxbackup: u32,
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxsize: u32,
    #[arg(long, default_value = "json")]
    pub audit_log_format: String,
    #[arg(long, default_value = "blocking")]
    pub audit_log_mode: String,
    #[arg(long)]
    pub audit_webhook_config_file: Option<PathBuf>,
    #[arg(long, default_value = "batch")]
    pub audit_webhook_mode: String,
    #[arg(long, value_parser = go_duration, default_value = "10s")]
    pub audit_webhook_initial_backoff: Duration,
    #[arg(long, default_value_t = 10_000)]
    pub audit_webhook_batch_buffer_size: usize,
    #[arg(long, default_value_t = 400)]
    pub audit_webhook_batch_max_size: usize,
    #[arg(long, value_parser = go_duration, default_value = "30s")]
    pub audit_webhook_batch_max_wait: Duration,
    #[arg(long)]
    pub tracing_config_file: Option<PathBuf>,
    #[arg(long)]
    pub egress_selector_config_file: Option<PathBuf>,

    #[arg(long, value_parser = feature_gates, default_value = "")]
    pub feature_gates: FeatureGates,
    /// Versions and resources to switch on and off: api/all=true, GROUP/VERSION=false …
    #[arg(long, value_parser = key_values_flag, default_value = "")]
    pub runtime_config: KeyValues,
    /// Verbosity of the log
    #[arg(long, short, default_value_t = 0)]
    pub v: i32,
    #[arg(long, default_value = "text")]
    pub logging_format: String,
}

const OIDC_USERNAME_CLAIM: &str = "sub";
const OIDC_SIGNING_ALG: &str = "RS256";

/// How large the audit log becomes before it is put aside, in MiB.
const DEFAULT_LOG_MIB: u64 = 100;

fn audit_mode(text: &str) -> AuditMode {
    match text {
        "batch" => AuditMode::Batch,
        "blocking-strict" => AuditMode::BlockingStrict,
        _ => AuditMode::Blocking,
    }
}

/// `a=b,c=d`, in order of the keys.
pub(crate) type KeyValues = std::collections::BTreeMap<String, String>;

fn key_values_flag(text: &str) -> Result<KeyValues, String> {
    key_values(text)
}

fn feature_gates(text: &str) -> Result<FeatureGates, String> {
    text.parse().map_err(|e: component_base::feature_gates::GateError| e.to_string())
}

/// `first-last`, inclusive, as upstream takes it; also `first+size`.
fn port_range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{text:?} is not a valid port range");
    let number = |part: &str| part.trim().parse::<u16>().map_err(|_| wrong());
    let (first, last) = match (text.split_once('-'), text.split_once('+')) {
        (Some((first, last)), _) => (number(first)?, number(last)?),
        (None, Some((first, size))) => {
            let first = number(first)?;
            (first, first.checked_add(number(size)?).ok_or_else(wrong)?)
        }
        (None, None) => (number(text)?, number(text)?),
    };
    if first <= last { Ok((first, last)) } else { Err(wrong()) }
}

impl Flags {
    /// Is any `--oidc-…` flag there that says more than its default?
    fn names_oidc(&self) -> bool {
        let texts = [
            &self.oidc_issuer_url,
            &self.oidc_client_id,
            &self.oidc_username_prefix,
            &self.oidc_groups_claim,
            &self.oidc_groups_prefix,
        ];
        texts.into_iter().any(Option::is_some)
            || self.oidc_ca_file.is_some()
            || self.oidc_username_claim != OIDC_USERNAME_CLAIM
            || !self.oidc_required_claim.is_empty()
            || self.oidc_signing_algs != [OIDC_SIGNING_ALG]
    }

    /// Checks the flags as a whole and fills in what follows from others.
    ///
    /// # Errors
    /// All mistakes together, one a line.
    pub fn complete(self) -> Result<Config, Error> {
        let mut wrong = Vec::new();
        let oidc = self.names_oidc();
        let certificate = match (self.tls_cert_file, self.tls_private_key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                wrong.push("--tls-cert-file and --tls-private-key-file must be given together".to_owned());
                None
            }
        };
        let spoken = Spoken::of_flags(self.tls_min_version.as_deref(), &self.tls_cipher_suites);
        let spoken = spoken.unwrap_or_else(|mistakes| {
            wrong.extend(mistakes);
            Spoken::default()
        });
        let runtime_config = RuntimeConfig::parse(&self.runtime_config).unwrap_or_else(|mistakes| {
            wrong.extend(mistakes);
            RuntimeConfig::default()
        });
        for mode in &self.authorization_mode {
            if !["AlwaysAllow", "AlwaysDeny", "ABAC", "Webhook", "RBAC", "Node"].contains(&mode.as_str()) {
                wrong.push(format!("authorization-mode {mode:?} is not a valid mode"));
            }
        }
        if self.authentication_config.is_some() && oidc {
            wrong.push("authentication-config file and oidc-* flags are mutually exclusive".to_owned());
        }
        if oidc && (self.oidc_issuer_url.is_none() || self.oidc_client_id.is_none()) {
            wrong.push(
                "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set"
                    .to_owned(),
            );
        }
        for (flag, version) in [
            ("authentication-token-webhook-version", &self.authentication_token_webhook_version),
            ("authorization-webhook-version", &self.authorization_webhook_version),
        ] {
            if !["v1", "v1beta1"].contains(&version.as_str()) {
                wrong.push(format!("--{flag} must be v1 or v1beta1, got {version:?}"));
            }
        }
        for (flag, mode) in [("audit-log-mode", &self.audit_log_mode), ("audit-webhook-mode", &self.audit_webhook_mode)]
        {
            if !["batch", "blocking", "blocking-strict"].contains(&mode.as_str()) {
                wrong
                    .push(format!("invalid audit --{flag} {mode}, allowed modes are batch, blocking, blocking-strict"));
            }
        }
        if self.audit_log_format != "json" {
            wrong.push(format!("invalid audit log format {}, allowed formats are json", self.audit_log_format));
        }
        let webhook_mode = self.authorization_mode.iter().any(|mode| mode == "Webhook");
        if webhook_mode && self.authorization_webhook_config_file.is_none() {
            wrong.push("authorization-mode Webhook's authorization config file not passed".to_owned());
        }
        if !webhook_mode && self.authorization_webhook_config_file.is_some() {
            wrong.push("cannot specify --authorization-webhook-config-file without mode Webhook".to_owned());
        }
        if !self.authorization_mode.is_empty() && self.authorization_config.is_some() {
            wrong.push("--authorization-config can not be specified when --authorization-mode is specified".to_owned());
        }
        if self.egress_selector_config_file.is_some() {
            wrong.push("--egress-selector-config-file is not supported by this server".to_owned());
        }
        let mut ranges = self.service_cluster_ip_range;
        if ranges.is_empty() {
            ranges.push(IpNet::V4(ipnet::Ipv4Net::new_assert([10, 0, 0, 0].into(), 24)));
        }
        if ranges.len() > 2 || (ranges.len() == 2 && ranges[0].addr().is_ipv4() == ranges[1].addr().is_ipv4()) {
            wrong.push("--service-cluster-ip-range must be one range, or one of each family".to_owned());
        }
        if self.etcd_servers.is_empty() && self.etcd_cafile.is_some() {
            wrong.push("--etcd-servers must be specified".to_owned());
        }
        let encoding = StorageEncoding::of_media_type(&self.storage_media_type).unwrap_or_else(|| {
            wrong.push(format!(
                "--storage-media-type {:?} invalid, allowed values: application/json, application/vnd.kubernetes.protobuf",
                self.storage_media_type
            ));
            StorageEncoding::Protobuf
        });
        if self.enable_priority_and_fairness && self.max_requests_inflight + self.max_mutating_requests_inflight == 0 {
            wrong.push("--max-requests-inflight and --max-mutating-requests-inflight must not both be 0".to_owned());
        }
        if !wrong.is_empty() {
            return Err(Error::Config(wrong.join("\n")));
        }
        let advertise = self.advertise_address.unwrap_or_else(|| choose_advertise_address(self.bind_address));
        let store = if self.etcd_servers.is_empty() {
            StoreConfig::Embedded { dir: self.data_dir }
        } else {
            StoreConfig::Etcd(EtcdConfig {
                servers: self.etcd_servers,
                ca_file: self.etcd_cafile,
                cert_file: self.etcd_certfile,
                key_file: self.etcd_keyfile,
                prefix: self.etcd_prefix,
                compaction_interval: (!self.etcd_compaction_interval.is_zero())
                    .then_some(self.etcd_compaction_interval),
                encoding,
            })
        };
        let mut self_signed_hosts: Vec<String> = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(str::to_owned)
        .into();
        self_signed_hosts.extend([advertise.to_string(), "127.0.0.1".to_owned()]);
        self_signed_hosts.extend(ranges.iter().map(|range| crate::bootstrap::service_address(range).to_string()));
        let oidc = self.oidc_issuer_url.zip(self.oidc_client_id).map(|(issuer_url, client_id)| OidcConfig {
            issuer_url,
            client_id,
            ca_file: self.oidc_ca_file,
            username_claim: self.oidc_username_claim,
            username_prefix: self.oidc_username_prefix,
            groups_claim: self.oidc_groups_claim,
            groups_prefix: self.oidc_groups_prefix.unwrap_or_default(),
            required_claims: self.oidc_required_claim,
            signing_algorithms: self.oidc_signing_algs,
        });
        let audit = AuditConfig {
            policy_file: self.audit_policy_file,
            log: self.audit_log_path.map(|path| AuditLogConfig {
                path,
                mode: audit_mode(&self.audit_log_mode),
                max_age: Duration::from_secs(u64::from(self.audit_log_maxage) * 24 * 3600),
                max_backups: self.audit_log_maxbackup as usize,
                max_size: if self.audit_log_maxsize == 0 { DEFAULT_LOG_MIB } else { self.audit_log_maxsize.into() },
            }),
            webhook: self.audit_webhook_config_file.map(|config_file| AuditWebhookConfig {
                config_file,
                mode: audit_mode(&self.audit_webhook_mode),
                initial_backoff: self.audit_webhook_initial_backoff,
                buffer_size: self.audit_webhook_batch_buffer_size,
                max_batch_size: self.audit_webhook_batch_max_size,
                max_batch_wait: self.audit_webhook_batch_max_wait,
            }),
        };
        let encryption = self
            .encryption_provider_config
            .map(|file| EncryptionConfig { file, reload: self.encryption_provider_config_automatic_reload });
        let issuers = self.service_account_issuer;
        let api_audiences = if self.api_audiences.is_empty() { issuers.clone() } else { self.api_audiences };
        Ok(Config {
            store,
            serving: Some(ServingConfig {
                address: SocketAddr::new(self.bind_address, self.secure_port),
                certificate,
                cert_dir: Some(self.cert_dir),
                self_signed_hosts,
                spoken,
                client_ca_file: self.client_ca_file,
                requestheader_client_ca_file: self.requestheader_client_ca_file.clone(),
            }),
            authentication: AuthenticationConfig {
                anonymous: self.anonymous_auth,
                token_auth_file: self.token_auth_file,
                bootstrap_tokens: self.enable_bootstrap_token_auth,
                api_audiences,
                request_header: self.requestheader_client_ca_file.is_some().then_some(RequestHeaderConfig {
                    allowed_names: self.requestheader_allowed_names,
                    username_headers: self.requestheader_username_headers,
                    uid_headers: self.requestheader_uid_headers,
                    group_headers: self.requestheader_group_headers,
                    extra_headers_prefix: self.requestheader_extra_headers_prefix,
                }),
                config_file: self.authentication_config,
                oidc,
                webhook: self.authentication_token_webhook_config_file.map(|config_file| TokenWebhookConfig {
                    config_file,
                    version: self.authentication_token_webhook_version,
                    cache_ttl: self.authentication_token_webhook_cache_ttl,
                }),
            },
            service_accounts: ServiceAccountConfig {
                issuers,
                key_files: self.service_account_key_file,
                signing_key_file: self.service_account_signing_key_file,
                lookup: self.service_account_lookup,
                max_expiration: self.service_account_max_token_expiration,
                extend_expiration: self.service_account_extend_token_expiration,
                jwks_uri: self.service_account_jwks_uri,
            },
            authorization: AuthorizationConfig {
                modes: if self.authorization_mode.is_empty() {
                    vec!["AlwaysAllow".into()]
                } else {
                    self.authorization_mode
                },
                config_file: self.authorization_config,
                webhook: self.authorization_webhook_config_file.map(|config_file| AuthorizationWebhookConfig {
                    config_file,
                    version: self.authorization_webhook_version,
                    authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
                    unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
                }),
            },
            enable_admission_plugins: self.enable_admission_plugins,
            disable_admission_plugins: self.disable_admission_plugins,
            admission_config_file: self.admission_control_config_file,
            default_not_ready_toleration_seconds: self.default_not_ready_toleration_seconds,
            default_unreachable_toleration_seconds: self.default_unreachable_toleration_seconds,
            allow_privileged: self.allow_privileged,
            services: ServiceConfig {
                cluster_ip_ranges: ranges,
                node_ports: self.service_node_port_range,
                advertise_address: advertise,
                secure_port: self.secure_port,
            },
            kubelet: KubeletConfig {
                client_certificate: self.kubelet_client_certificate.zip(self.kubelet_client_key),
                certificate_authority: self.kubelet_certificate_authority,
                address_types: self.kubelet_preferred_address_types,
                timeout: self.kubelet_timeout,
            },
            proxy_client: self.proxy_client_cert_file.zip(self.proxy_client_key_file),
            event_ttl: self.event_ttl,
            store_health_timeout: self.etcd_healthcheck_timeout,
            store_ready_timeout: self.etcd_readycheck_timeout,
            request_timeout: self.request_timeout,
            seats: SeatsConfig {
                reading: self.max_requests_inflight,
                mutating: self.max_mutating_requests_inflight,
                waiting: self.enable_priority_and_fairness,
            },
            shutdown_delay: self.shutdown_delay_duration,
            external_address: self.external_hostname.map(|h| format!("{h}:{}", self.secure_port)),
            audit,
            encryption,
            tracing: self.tracing_config_file,
            feature_gates: self.feature_gates,
            runtime_config,
        })
    }
}

/// The address that others reach this machine by: the one that is bound, or the one that a packet to the outside would
/// come from (none is sent).
fn choose_advertise_address(bound: IpAddr) -> IpAddr {
    if !bound.is_unspecified() && !bound.is_loopback() {
        return bound;
    }
    let outward = || {
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
        socket.connect(("192.0.2.1", 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    outward().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Flags, (String, i32)> {
        component_base::flags::parse("kube-apiserver", args.iter().map(ToString::to_string))
    }

    #[test]
    fn flags_complete_to_a_configuration() {
        let flags = parse(&[
            "--data-dir=/x",
            "--bind-address=0.0.0.0",
            "--advertise-address=192.0.2.7",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            "--service-node-port-range=30000-30010",
        ]);
        let config = flags.unwrap().complete().unwrap();
        assert_eq!(config.authorization.modes, ["Node", "RBAC"]);
        assert_eq!(config.services.node_ports, (30000, 30010));
        assert!(config.allow_privileged);
        assert!(config.serving.unwrap().self_signed_hosts.contains(&"10.96.0.1".to_owned()));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse(&["--nope=1"]).unwrap_err().0, "Error: unknown flag: --nope\n");
        let wrong = parse(&["--tls-cert-file=a", "--authorization-mode=Nope"]).unwrap().complete().err().unwrap();
        assert_eq!(
            wrong.to_string(),
            "--tls-cert-file and --tls-private-key-file must be given together\nauthorization-mode \"Nope\" is not a valid mode"
        );
        assert!(port_range("9-1").is_err());
        let why = |flags: &[&str]| parse(flags).unwrap().complete().err().map(|wrong| wrong.to_string());
        let together = "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set";
        for flag in ["--oidc-issuer-url=https://x", "--oidc-groups-claim=g", "--oidc-username-claim=email"] {
            assert_eq!(why(&[flag]).as_deref(), Some(together), "{flag}");
        }
        assert_eq!(why(&["--oidc-issuer-url=https://x", "--oidc-client-id=c"]), None);
        let file = why(&["--egress-selector-config-file=x"]);
        assert_eq!(file.as_deref(), Some("--egress-selector-config-file is not supported by this server"));
        assert_eq!(why(&["--tls-min-version=1.3"]).as_deref(), Some("unknown tls version \"1.3\""));
    }
}
