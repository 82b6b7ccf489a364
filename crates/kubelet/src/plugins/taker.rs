//! Who looks after a plugin of which kind.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::registry::{Plugin, Takes};
use crate::context::Context;
use crate::dra::drivers;

/// What the registry's finds are handed to.
pub(crate) struct Taker {
    pub context: Arc<Context>,
    pub stop: CancellationToken,
}

impl Takes for Taker {
    async fn came(&self, plugin: Plugin) -> Result<(), String> {
        match plugin.kind.as_str() {
            "CSIPlugin" => self.context.drivers.came(&self.context, &plugin).await,
            "DRAPlugin" => drivers::came(&self.context, &plugin, &self.stop),
            "DevicePlugin" => {
                crate::devices::check(&plugin.versions, &plugin.name)?;
                let (devices, stop) = (Arc::clone(&self.context.devices), self.stop.clone());
                tokio::spawn(async move {
                    stop.run_until_cancelled(devices.follow(plugin.name, &plugin.endpoint, None)).await
                });
                Ok(())
            }
            other => Err(format!("no handler registered for plugin type: {other}")),
        }
    }

    async fn gone(&self, plugin: Plugin) {
        match plugin.kind.as_str() {
            "CSIPlugin" => self.context.drivers.gone(&self.context, &plugin).await,
            "DRAPlugin" => drivers::gone(&self.context, &plugin, &self.stop),
            _ => {} // the stream of a device plugin ends with it
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_device_plugin_may_not_be_called_as_it_likes() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        stop.cancel(); // nobody is there to be followed
        let taker = Taker { context: Arc::new(Context::alone(dir.path())), stop };
        let came = async |name: &str, version: &str| {
            let plugin = Plugin {
                kind: "DevicePlugin".to_owned(),
                name: name.to_owned(),
                versions: vec![version.to_owned()],
                endpoint: dir.path().join("none.sock"),
                found_at: dir.path().join("none.sock"),
            };
            taker.came(plugin).await
        };
        assert_eq!(came("example.com/toy", "v1beta1").await, Ok(()));
        assert_eq!(came("cpu", "v1beta1").await, Err("the ResourceName \"cpu\" is invalid".to_owned()));
        assert!(came("example.com/toy", "v1alpha").await.is_err());
    }
}
