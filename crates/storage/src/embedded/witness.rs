//! What tells a damaged log from one that merely ends in an unfinished write.
//!
//! The log cuts off an unfinished group at its end when it is opened: a crash leaves one, and nobody was told that it was
//! stored. Damage to the last groups looks the same to it. Two things give that away: a note of the revision that the store
//! had reached when it was last closed or opened, beside the log, and the size that the log has lost.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Revision, StorageError};

/// Holds a revision in decimal that was durable when it was written.
const FILE: &str = "reached";

/// Refuses a log that has forgotten what it held.
///
/// # Errors
/// [`StorageError::Corrupt`], saying what an operator can do.
pub(super) fn check(dir: &Path, loaded: Revision) -> Result<(), StorageError> {
    let file = dir.join(FILE);
    let noted = match fs::read_to_string(&file) {
        Ok(text) => text.trim().parse::<u64>().ok(),
        Err(_) => None,
    };
    match noted {
        Some(reached) if reached > loaded.0 => Err(StorageError::Corrupt {
            reason: format!(
                "{} reached revision {reached} and now ends at {}: its last writes are lost; restore a snapshot, or remove \
                 {} to go on without them",
                dir.display(),
                loaded.0,
                file.display()
            ),
        }),
        _ => Ok(()),
    }
}

/// Notes a durable revision.
///
/// # Errors
/// When the note cannot be written; the one before it stays.
pub(super) fn note(dir: &Path, reached: Revision) -> std::io::Result<()> {
    let fresh = dir.join("reached.new");
    let mut file = fs::File::create(&fresh)?;
    writeln!(file, "{}", reached.0)?;
    file.sync_all()?;
    fs::rename(fresh, dir.join(FILE))?;
    fs::File::open(dir)?.sync_all()
}

/// The part of the log that is written to: its name and its size in bytes.
pub(super) fn tail_of(dir: &Path) -> Option<(PathBuf, u64)> {
    let journals = fs::read_dir(dir).ok()?.filter_map(|entry| {
        let path = entry.ok()?.path();
        let number: u64 = path.file_stem()?.to_str()?.parse().ok()?;
        (path.extension()? == "jnl").then_some((number, path))
    });
    let (_, path) = journals.max()?;
    let size = path.metadata().ok()?.len();
    Some((path, size))
}

/// Says how much was cut off the tail that was there before the log was opened.
pub(super) fn report_cut(before: Option<(PathBuf, u64)>) {
    let Some((path, size)) = before else { return };
    let cut = size.saturating_sub(path.metadata().map_or(size, |m| m.len()));
    if cut > 0 {
        tracing::warn!(file = %path.display(), bytes = cut, "the log ended in an unfinished write, which was cut off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_forgot_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path(), Revision(1)).is_ok());
        note(dir.path(), Revision(7)).unwrap();
        assert!(check(dir.path(), Revision(7)).is_ok());
        let error = check(dir.path(), Revision(6)).unwrap_err().to_string();
        assert!(error.contains("reached revision 7 and now ends at 6"), "{error}");
    }
}
