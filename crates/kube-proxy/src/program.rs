//! Running the programs that write rules.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("cannot run {program}")]
    Run { program: String, source: std::io::Error },
    #[error("{program}: {said}")]
    Refused { program: String, said: String },
}

/// Runs a program with this input. Gives what it says if it succeeds.
pub(crate) async fn run(program: &str, args: &[&str], input: &str) -> Result<String, Failed> {
    let failed = |source| Failed::Run { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that ends early says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), done) = tokio::join!(feed, child.wait_with_output());
    let done = done.map_err(failed)?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&done.stderr);
    let said = complaint.lines().take(4).collect::<Vec<_>>().join("; ");
    Err(Failed::Refused { program: program.to_owned(), said })
}
