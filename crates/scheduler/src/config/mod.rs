//! What a scheduler runs with, complete: no field means "the default".

mod args;
mod extender;
mod file;
mod profile;

use std::path::PathBuf;

use client::config::ClientOptions;
use client::leader_election::LeaseConfig;
use component_base::feature_gates::FeatureGates;
use component_base::secure_port::SecurePort;

pub use args::decode as decode_args;
pub use extender::{ExtenderConfig, ManagedResource};
pub(crate) use file::{FileConfig, load};
pub use profile::{Enabled, ExtensionPoint, PluginSet, ProfileConfig};

use crate::framework::Registry;
use crate::queue::QueueConfig;

#[derive(Clone)]
pub struct Config {
    /// Where the API server is and who we are; `None` when a client is handed in.
    pub kubeconfig: Option<PathBuf>,
    /// Overrides the kubeconfig's server.
    pub master: Option<String>,
    pub client: ClientOptions,
    /// Runs unelected without one.
    pub leader_election: Option<LeaseConfig>,
    /// Serves no health and metrics without one.
    pub serving: Option<SecurePort>,
    pub profiles: Vec<ProfileConfig>,
    pub extenders: Vec<ExtenderConfig>,
    pub queue: QueueConfig,
    pub feature_gates: FeatureGates,
    /// The plugins that profiles can name: those of this crate, and whatever else was added.
    pub registry: Registry,
    /// The configuration as `/configz` shows it.
    pub shown: serde_json::Value,
    /// Flags as `/flagz` shows them.
    pub flags: Vec<(String, String)>,
}

impl Default for Config {
    /// Upstream's defaults, without a server and an election.
    fn default() -> Self {
        FileConfig::default()
            .complete(crate::plugins::in_tree(), "")
            .unwrap_or_else(|mistakes| unreachable!("the defaults are right, but: {}", mistakes.join("; ")))
    }
}
