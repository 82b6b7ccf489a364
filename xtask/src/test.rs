//! `cargo xtask test`: installs what the tests need, runs every test and every recorded answer, and ends with the sums.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{debian, golden, shell};

/// What a runner has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, more: Count) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    debian::install(&[debian::NODE, debian::TEST].concat())?;
    install_python_client()?;
    let (mut count, ended_well) = cargo_test(args)?;
    if args.is_empty() {
        count += golden::run()?;
    }
    println!();
    println!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if !ended_well || count.failed > 0 {
        bail!("not every test passed");
    }
    Ok(())
}

/// Runs the workspace's tests; the runner's output goes on to ours.
fn cargo_test(args: &[String]) -> Result<(Count, bool)> {
    let mut runner = shell::command("cargo")
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(args)
        .current_dir(shell::root())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut count = Count::default();
    let stdout = runner.stdout.take().context("the runner's output is lost")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if let Some(more) = counted(&line) {
            count += more;
        }
    }
    Ok((count, runner.wait()?.success()))
}

/// What a closing line of one test binary says: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn counted(line: &str) -> Option<Count> {
    let (_, figures) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let figure = |name: &str| {
        let part = figures.split("; ").find_map(|part| part.strip_suffix(name));
        part.and_then(|number| number.trim().parse().ok())
    };
    Some(Count { passed: figure(" passed")?, failed: figure(" failed")?, skipped: figure(" ignored")? })
}

/// The public Python client, in a virtual environment of our own: a client that none of us wrote.
fn install_python_client() -> Result<()> {
    let venv = shell::root().join("target/test-python");
    if !venv.join("bin/python").exists() {
        shell::run("python3", &["-m".as_ref(), "venv".as_ref(), venv.as_os_str()])?;
    }
    let python = python();
    if shell::output(&python, &["-c", "import kubernetes, yaml"]).is_err() {
        shell::run(&python, &["-m", "pip", "install", "--quiet", "kubernetes", "pyyaml"])?;
    }
    Ok(())
}

/// The interpreter of that environment.
pub(crate) fn python() -> String {
    shell::root().join("target/test-python/bin/python").to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binarys_closing_line_is_read() {
        let line = "test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 74.40s";
        assert_eq!(counted(line), Some(Count { passed: 4, failed: 2, skipped: 1 }));
        assert_eq!(counted("running 3 tests"), None);
    }
}
