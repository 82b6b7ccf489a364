//! What a server is configured with: complete, checked, without anything left to default.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use component_base::feature_gates::FeatureGates;
use component_base::tls::Spoken;
use ipnet::IpNet;
use storage::Storage;

use crate::runtime_config::RuntimeConfig;

#[derive(Clone)]
pub struct Config {
    pub store: StoreConfig,
    /// `None`: reached from inside its process only.
    pub serving: Option<ServingConfig>,
    pub authentication: AuthenticationConfig,
    pub service_accounts: ServiceAccountConfig,
    pub authorization: AuthorizationConfig,
    pub enable_admission_plugins: Vec<String>,
    pub disable_admission_plugins: Vec<String>,
    /// An `AdmissionConfiguration`.
    pub admission_config_file: Option<PathBuf>,
    pub default_not_ready_toleration_seconds: i64,
    pub default_unreachable_toleration_seconds: i64,
    pub allow_privileged: bool,
    pub services: ServiceConfig,
    pub kubelet: KubeletConfig,
    /// Certificate and key by which this server proves itself to aggregated servers.
    pub proxy_client: Option<(PathBuf, PathBuf)>,
    /// How long an Event lives.
    pub event_ttl: Duration,
    /// How long the store may take to answer when `/healthz` and `/livez` ask, and when `/readyz` asks.
    pub store_health_timeout: Duration,
    pub store_ready_timeout: Duration,
    /// How long a request may take that is not long-running.
    pub request_timeout: Duration,
    pub seats: SeatsConfig,
    /// How long the server goes on serving after it was told to stop; `/readyz` fails meanwhile.
    pub shutdown_delay: Duration,
    /// `host:port` that clients outside reach the server by; `None`: whatever they asked for.
    pub external_address: Option<String>,
    pub audit: AuditConfig,
    pub encryption: Option<EncryptionConfig>,
    /// A `TracingConfiguration`.
    pub tracing: Option<PathBuf>,
    pub feature_gates: FeatureGates,
    pub runtime_config: RuntimeConfig,
}

/// How many requests that are not long-running are answered at once.
#[derive(Clone, Debug)]
pub struct SeatsConfig {
    pub reading: usize,
    pub mutating: usize,
    /// Both share their seats, and requests wait for one. Else each has its own, zero being no limit, and nobody waits.
    pub waiting: bool,
}

/// What is written down of requests.
#[derive(Clone, Debug, Default)]
pub struct AuditConfig {
    pub policy_file: Option<PathBuf>,
    pub log: Option<AuditLogConfig>,
    pub webhook: Option<AuditWebhookConfig>,
}

/// When an event is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditMode {
    /// In its own time.
    Batch,
    /// Before the request goes on.
    Blocking,
    /// The same; and a request does not go on whose reception cannot be written down.
    BlockingStrict,
}

#[derive(Clone, Debug)]
pub struct AuditLogConfig {
    /// `-`: standard output.
    pub path: PathBuf,
    pub mode: AuditMode,
    /// Zero: files that were put aside are kept, however old.
    pub max_age: Duration,
    /// Zero: however many.
    pub max_backups: usize,
    /// In MiB.
    pub max_size: u64,
}

#[derive(Clone, Debug)]
pub struct AuditWebhookConfig {
    /// A kubeconfig.
    pub config_file: PathBuf,
    pub mode: AuditMode,
    pub initial_backoff: Duration,
    pub buffer_size: usize,
    pub max_batch_size: usize,
    pub max_batch_wait: Duration,
}

/// How some resources are encrypted in the store.
#[derive(Clone, Debug)]
pub struct EncryptionConfig {
    /// An `EncryptionConfiguration`.
    pub file: PathBuf,
    /// The file is read again when it changes.
    pub reload: bool,
}

/// Where the state of the cluster is.
#[derive(Clone)]
pub enum StoreConfig {
    /// The embedded engine in this directory.
    Embedded {
        dir: PathBuf,
    },
    Etcd(EtcdConfig),
    /// An engine that somebody else opened.
    Given(Arc<dyn Storage>),
}

#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// URLs of the members.
    pub servers: Vec<String>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Stands for `/registry` in every key.
    pub prefix: String,
    /// `None`: old revisions are compacted by somebody else.
    pub compaction_interval: Option<Duration>,
    pub encoding: StorageEncoding,
}

/// How objects of the built-in kinds are written; either is read. Custom resources are always JSON, and so are the kinds
/// that extend the API, as upstream has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageEncoding {
    Json,
    Protobuf,
}

impl StorageEncoding {
    /// By the value of `--storage-media-type`.
    #[must_use]
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json" => Some(StorageEncoding::Json),
            "application/vnd.kubernetes.protobuf" => Some(StorageEncoding::Protobuf),
            _ => None,
        }
    }
}

impl StoreConfig {
    /// What the engine gets to store. The embedded one shares its memory with the caches: it holds what they hold.
    #[must_use]
    pub fn encoding(&self) -> StorageEncoding {
        match self {
            StoreConfig::Etcd(etcd) => etcd.encoding,
            StoreConfig::Embedded { .. } | StoreConfig::Given(_) => StorageEncoding::Json,
        }
    }
}

/// How the server is reached through sockets.
#[derive(Clone, Debug)]
pub struct ServingConfig {
    pub address: SocketAddr,
    /// Certificate and key. `None`: a self-signed pair, kept in `cert_dir` if there is one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    pub cert_dir: Option<PathBuf>,
    pub self_signed_hosts: Vec<String>,
    /// Versions and cipher suites of TLS.
    pub spoken: Spoken,
    pub client_ca_file: Option<PathBuf>,
    pub requestheader_client_ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default)]
pub struct AuthenticationConfig {
    pub anonymous: bool,
    pub token_auth_file: Option<PathBuf>,
    pub bootstrap_tokens: bool,
    /// What a token must be meant for, unless its authenticator says otherwise.
    pub api_audiences: Vec<String>,
    /// Proxies that speak for their users, if there are any.
    pub request_header: Option<RequestHeaderConfig>,
    /// An `AuthenticationConfiguration`.
    pub config_file: Option<PathBuf>,
    pub oidc: Option<OidcConfig>,
    pub webhook: Option<TokenWebhookConfig>,
}

/// The one issuer of tokens that flags can name.
#[derive(Clone, Debug, Default)]
pub struct OidcConfig {
    pub issuer_url: String,
    pub client_id: String,
    pub ca_file: Option<PathBuf>,
    pub username_claim: String,
    /// `-`: none. `None`: the issuer, unless the name is an address.
    pub username_prefix: Option<String>,
    pub groups_claim: Option<String>,
    pub groups_prefix: String,
    /// `claim=value`.
    pub required_claims: Vec<String>,
    pub signing_algorithms: Vec<String>,
}

/// A server that is asked about tokens.
#[derive(Clone, Debug)]
pub struct TokenWebhookConfig {
    /// A kubeconfig.
    pub config_file: PathBuf,
    /// Of `TokenReview`.
    pub version: String,
    pub cache_ttl: Duration,
}

#[derive(Clone, Debug, Default)]
pub struct RequestHeaderConfig {
    /// Common names of the proxies' certificates; empty: any that the authority signed.
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_headers_prefix: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct ServiceAccountConfig {
    /// The first one signs; all are accepted.
    pub issuers: Vec<String>,
    /// Public (or private) keys that tokens are verified with.
    pub key_files: Vec<PathBuf>,
    pub signing_key_file: Option<PathBuf>,
    pub lookup: bool,
    /// Zero: no limit.
    pub max_expiration: Duration,
    pub extend_expiration: bool,
    pub jwks_uri: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct AuthorizationConfig {
    /// Upstream's modes, in order.
    pub modes: Vec<String>,
    /// An `AuthorizationConfiguration`.
    pub config_file: Option<PathBuf>,
    pub webhook: Option<AuthorizationWebhookConfig>,
}

/// The one server that the mode `Webhook` asks.
#[derive(Clone, Debug)]
pub struct AuthorizationWebhookConfig {
    /// A kubeconfig.
    pub config_file: PathBuf,
    /// Of `SubjectAccessReview`.
    pub version: String,
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
}

#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// One range, or one of each family; the first is the primary family.
    pub cluster_ip_ranges: Vec<IpNet>,
    /// First and last, inclusive.
    pub node_ports: (u16, u16),
    /// Where the `kubernetes` Service leads.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
}

#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// Certificate and key by which this server proves itself to kubelets.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Who signs kubelets' serving certificates; `None`: they are not verified, as upstream has it.
    pub certificate_authority: Option<PathBuf>,
    /// Which of a node's addresses to use, best first.
    pub address_types: Vec<String>,
    pub timeout: Duration,
}
