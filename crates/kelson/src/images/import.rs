//! Importing archives into the namespace of containerd that Kubernetes uses.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Imports an OCI or Docker archive that is in memory.
pub(crate) async fn import_archive(socket: &Path, archive: &[u8]) -> Result<()> {
    let mut child =
        ctr(socket, "-").stdin(Stdio::piped()).spawn().context("cannot run ctr, which comes with containerd")?;
    let mut stdin = child.stdin.take().context("ctr has no standard input")?;
    let (sent, done) = tokio::join!(
        async {
            stdin.write_all(archive).await?;
            drop(stdin);
            std::io::Result::Ok(())
        },
        child.wait_with_output()
    );
    report("the archive", &done?)?;
    sent.context("ctr did not read the whole archive")
}

/// Imports a file, `-` for standard input.
pub(crate) async fn import_file(socket: &Path, file: &Path) -> Result<()> {
    let file_name = file.to_string_lossy();
    let done = ctr(socket, &file_name).output().await.context("cannot run ctr, which comes with containerd")?;
    report(&file_name, &done)
}

/// Imports every `*.tar` of a directory, in the order of their names. A directory that does not exist holds none.
pub(crate) async fn import_directory(socket: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut archives: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| is_archive(p)).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", dir.display())),
    };
    archives.sort();
    for archive in &archives {
        import_file(socket, archive).await?;
    }
    Ok(archives)
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "tar")
}

fn ctr(socket: &Path, file: &str) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "k8s.io", "images", "import", "--all-platforms", file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn report(what: &str, done: &std::process::Output) -> Result<()> {
    if !done.status.success() {
        bail!("importing {what} failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}
