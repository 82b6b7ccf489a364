//! kube-controller-manager: the loops that bring a cluster from what is to what its users asked for.
//!
//! One module per controller, named as upstream names it. Each has a pure planning core and a thin layer that acts; what
//! runs is the list in [`registry`]. Must not know: other components, the store.
//!
//! Entry points: [`Flags`], [`Config`], [`run`].
//!
//! Invariants:
//! - A controller decides from its caches and the object's current state alone; it remembers nothing that it could
//!   compute again, except which of its own writes its cache does not show yet.
//! - Every write carries what makes it safe on a stale cache: a resourceVersion, a uid, or a name that is taken once.
//! - Controllers share informers: one watch per kind, however many of them read it.

mod attach_detach;
mod bootstrap_token;
mod certificatesigningrequest;
mod clusterrole_aggregation;
mod config;
mod config_file;
mod context;
mod controller_flags;
mod credentials;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taint_eviction;
mod discovery;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod ephemeral_volume;
mod error;
mod expectations;
mod finalizers;
mod flags;
mod garbage_collector;
mod history;
mod horizontal_pod_autoscaler;
mod job;
mod kube_apiserver_serving_clustertrustbundle_publisher;
mod legacy_serviceaccount_token_cleaner;
mod namespace;
mod node_fit;
mod node_ipam;
mod node_lifecycle;
mod owner;
mod persistentvolume_binder;
mod persistentvolume_expander;
mod pod;
mod pod_claims;
mod pod_control;
mod pod_garbage_collector;
mod pod_resources;
mod pod_template;
mod protection;
mod registry;
mod replicaset;
mod resourceclaim;
mod resourcequota;
mod root_ca_certificate_publisher;
mod run;
mod scaling;
mod selector;
mod selinux_warning;
mod service_cidr;
mod serviceaccount;
mod serviceaccount_token;
mod statefulset;
mod storage_version_migrator;
mod storageversion_garbage_collector;
mod taint_eviction;
mod ttl;
mod ttl_after_finished;
mod validatingadmissionpolicy_status;

pub use certificatesigningrequest::Authority;
pub use config::{AttachDetachConfig, ClusterSigning, Config, ControllerList, Credentials};
pub use config_file::with_config_file;
pub use controller_flags::ControllerFlags;
pub use flags::{Flags, FlagsError};
pub use horizontal_pod_autoscaler::AutoscalerConfig;
pub use node_ipam::NodeIpamConfig;
pub use node_lifecycle::{NodeLifecycleConfig, Rates};
pub use run::{Error, run};
pub use serviceaccount_token::{KeyError, TokenSigner};
