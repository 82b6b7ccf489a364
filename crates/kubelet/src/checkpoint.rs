//! Files in which managers of resources keep what they gave, in upstream's form: JSON with a sum of what the Go structure
//! looks like when it is printed, so that either kubelet can go on with the other's.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Debug, thiserror::Error)]
#[error(
    "could not restore state from checkpoint: {why}, please drain this node and delete the {what} checkpoint file {file:?} before restarting Kubelet"
)]
pub(crate) struct Unreadable {
    pub why: String,
    pub what: &'static str,
    pub file: PathBuf,
}

/// What is kept in a file of this form.
pub(crate) trait Checkpoint: Serialize + DeserializeOwned {
    /// The structure as Go's spew prints it, without a sum.
    fn printed(&self) -> String;
    fn sum(&mut self) -> &mut u32;
}

/// FNV-1a of 32 bits.
pub(crate) fn sum_of(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What the file holds; nothing where there is none. `what` names the manager.
pub(crate) fn read<C: Checkpoint>(file: &Path, what: &'static str) -> Result<Option<C>, Unreadable> {
    let unreadable = |why: String| Unreadable { why, what, file: file.to_owned() };
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let mut found: C = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
    // A sum of zero is that of files from before there were sums.
    let sum = std::mem::take(found.sum());
    if sum != 0 && sum != sum_of(&found.printed()) {
        return Err(unreadable("checkpoint is corrupted".to_owned()));
    }
    Ok(Some(found))
}

/// Whole or not at all.
pub(crate) fn write<C: Checkpoint>(file: &Path, mut state: C) {
    *state.sum() = sum_of(&state.printed());
    let fresh = file.with_extension("new");
    let written = serde_json::to_vec(&state)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::write(&fresh, text))
        .and_then(|()| std::fs::rename(&fresh, file));
    if let Err(error) = written {
        tracing::error!(%error, file = %file.display(), "who has what could not be written down");
    }
}
