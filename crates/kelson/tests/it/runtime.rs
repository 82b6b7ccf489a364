//! A node without its container runtime.

use std::process::Command;

/// Runs kelson, which must fail by itself, and gives what it says of that.
fn failure(args: &[&str], path: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kelson"));
    command.args(args.iter().map(|arg| arg.replace("DIR", &dir.to_string()))).env("PATH", path);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn up_names_what_the_host_lacks() {
    let said = failure(&["up", "--data-dir=DIR/data", "--node-ip=198.19.0.1"], "/nonexistent");
    assert!(said.contains("this host lacks containerd (Debian: containerd)"), "{said}");
}

#[test]
fn a_kubelet_says_that_nothing_answers_at_its_endpoint() {
    let args = ["kubelet", "--container-runtime-endpoint=unix:///nonexistent.sock", "--root-dir=DIR/kubelet"];
    let said = failure(&args, "/usr/bin:/bin");
    let wanted = "validate service connection: validate CRI v1 runtime API for endpoint \"unix:///nonexistent.sock\": \
                  rpc error: code = Unavailable";
    assert!(said.contains(wanted), "{said}");
}
