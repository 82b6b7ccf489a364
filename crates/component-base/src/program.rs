//! Running other programs to their end.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::process::Stdio;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("cannot run {program}")]
    Run { program: String, source: std::io::Error },
    #[error("{program}: {said}")]
    Refused { program: String, said: String },
}

/// Runs a program with this input. Gives what it says if it succeeds; it ends when nobody waits for it any more.
///
/// The program finds its input whole: one that takes orders would carry out half of them if we ended while we speak.
///
/// # Errors
/// When there is no such program, or with the first lines of its complaint.
pub async fn run(program: &str, args: &[&str], input: &str) -> Result<String, Failed> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command, program, input).await
}

/// As [`run`], a command that is already put together; `program` is what it is called in a complaint.
///
/// # Errors
/// When there is no such program, or with the first lines of its complaint.
pub async fn run_command(mut command: Command, program: &str, input: &str) -> Result<String, Failed> {
    let failed = |source| Failed::Run { program: program.to_owned(), source };
    let stdin = if input.is_empty() { Stdio::null() } else { whole(input).map_err(failed)?.into() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let done = command.output().await.map_err(failed)?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&done.stderr);
    let said = complaint.lines().take(4).collect::<Vec<_>>().join("; ");
    Err(Failed::Refused { program: program.to_owned(), said })
}

/// A file in memory that begins with this text.
fn whole(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_is_told_everything_before_it_starts() {
        let orders = "add this\nremove that\n";
        assert_eq!(run("stat", &["--dereference", "--format=%s", "/dev/stdin"], orders).await.unwrap(), "21\n");
        assert_eq!(run("cat", &["/dev/stdin"], orders).await.unwrap(), orders);
        assert_eq!(run("cat", &[], "").await.unwrap(), "");
    }

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
