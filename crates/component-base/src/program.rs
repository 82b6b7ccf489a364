//! Running other programs to their end.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("cannot run {program}")]
    Run { program: String, source: std::io::Error },
    #[error("{program}: {said}")]
    Refused { program: String, said: String },
}

/// Runs a program with this input, which it is fed while it is listened to. Gives what it says if it succeeds; it ends when nobody
/// waits for it any more.
///
/// # Errors
/// When there is no such program, or with the first lines of its complaint.
pub async fn run(program: &str, args: &[&str], input: &str) -> Result<String, Failed> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_may_speak_before_it_has_heard_everything() {
        let much = "a line\n".repeat(1 << 17); // more than pipes hold
        assert_eq!(run("cat", &[], &much).await.unwrap(), much);
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said() {
        let refused = run("sh", &["-c", "echo no >&2; echo never >&2; exit 3"], "unread").await.unwrap_err();
        assert_eq!(refused.to_string(), "sh: no; never");
        assert!(matches!(run("kelson-has-no-such-program", &[], "").await, Err(Failed::Run { .. })));
    }
}
