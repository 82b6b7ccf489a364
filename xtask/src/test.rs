//! `cargo xtask test`: installs what the tests need, runs all of them, and leaves the last word to the runner.

use anyhow::Result;

use crate::{debian, shell};

pub(crate) fn run(args: &[String]) -> Result<()> {
    debian::install(&[debian::NODE, debian::TEST].concat())?;
    install_python_client()?;
    // The cluster tests drive the real binary.
    shell::run("cargo", &["build", "--package=kelson"])?;
    let mut all = vec!["test".to_owned(), "--workspace".to_owned(), "--no-fail-fast".to_owned()];
    all.extend(args.iter().cloned());
    shell::run("cargo", &all)
}

/// The public Python client, in a virtual environment of our own: a client that none of us wrote.
fn install_python_client() -> Result<()> {
    let venv = shell::root().join("target/test-python");
    if !venv.join("bin/python").exists() {
        shell::run("python3", &["-m".as_ref(), "venv".as_ref(), venv.as_os_str()])?;
    }
    let python = venv.join("bin/python").to_string_lossy().into_owned();
    if shell::output(&python, &["-c", "import kubernetes, yaml"]).is_err() {
        shell::run(&python, &["-m", "pip", "install", "--quiet", "kubernetes", "pyyaml"])?;
    }
    Ok(())
}
