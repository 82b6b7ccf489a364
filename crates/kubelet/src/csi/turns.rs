//! Who works on a volume: one pod at a time, so that none takes the volume's stage away while another comes to use it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

#[derive(Default)]
pub(super) struct Turns(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the volume's turn, which ends with what is given.
    pub(super) async fn take(&self, device: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut all = self.0.lock();
            all.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(all.entry(device.to_owned()).or_default())
        };
        turn.lock_owned().await
    }
}
