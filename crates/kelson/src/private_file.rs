//! Files that appear whole or not at all, with the permissions that they must have.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};

/// A directory for its owner only; one that exists is left as it is.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Replaces a file that only its owner may read.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content, 0o600)
}

/// Replaces a file that everybody may read.
pub(crate) fn write_public(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content, 0o644)
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let new = path.with_extension("new");
    let written = (|| {
        let _ = fs::remove_file(&new); // left by a run that was killed; its mode must not be inherited
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}
