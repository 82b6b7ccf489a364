//! Files of configuration that are read again when they change.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use component_base::metrics::prometheus_client;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReloadLabels {
    status: &'static str,
}

/// Puts a text in force, or says why it cannot be.
type Apply = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// A file, and what is made of it.
pub(crate) struct Reloading {
    pub path: PathBuf,
    /// `authentication`, `authorization`, `encryption`: what metrics and logs call it.
    pub what: &'static str,
    apply: Apply,
    reloads: Family<ReloadLabels, Counter>,
}

impl Reloading {
    pub(crate) fn new(
        path: PathBuf,
        what: &'static str,
        apply: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Reloading { path, what, apply: Box::new(apply), reloads: Family::default() }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            format!("apiserver_{}_config_controller_automatic_reloads", self.what),
            "How often the configuration was read again, by outcome",
            self.reloads.clone(),
        );
    }

    /// What changes with the file; a file that is replaced by another is another.
    fn state(&self) -> Option<(SystemTime, u64)> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    /// Looks at the file until `halt`; what cannot be used leaves what was before in force.
    pub(crate) async fn follow(self, halt: CancellationToken) {
        let mut state = self.state();
        let mut text = std::fs::read_to_string(&self.path).ok();
        while halt.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let now = self.state();
            if now == state {
                continue;
            }
            state = now;
            let Ok(read) = std::fs::read_to_string(&self.path) else { continue };
            if text.as_ref() == Some(&read) {
                continue;
            }
            let status = match (self.apply)(&read) {
                Ok(()) => {
                    tracing::info!(what = self.what, path = %self.path.display(), "the configuration changed and was read again");
                    "success"
                }
                Err(why) => {
                    tracing::error!(what = self.what, path = %self.path.display(), why, "the changed configuration cannot be used");
                    "failure"
                }
            };
            self.reloads.get_or_create(&ReloadLabels { status }).inc();
            text = Some(read);
        }
    }
}
