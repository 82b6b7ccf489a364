//! `cargo xtask down`: nothing of the trial cluster stays.

use std::fs;

use anyhow::Result;

use crate::{shell, trial, up};

pub(crate) fn run() -> Result<()> {
    let dir = trial::dir();
    if dir.exists() {
        shell::run("cargo", &["build", "--quiet", "--release", "--package=kelson"])?;
        let data_dir = format!("--data-dir={}", trial::data_dir().display());
        // What the cluster wrote to the trial's network goes with the namespace.
        shell::run(&up::binary(), &["reset", &data_dir])?;
        fs::remove_dir_all(&dir)?;
    }
    if trial::namespace_exists() {
        // Its end of the veth pair goes with it, and so does ours.
        shell::run("ip", &["netns", "delete", trial::NAMESPACE])?;
    }
    println!("the trial cluster is gone");
    Ok(())
}
