//! Compiles the pause program for the same machine, freestanding and static, so that the binary can carry its image.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=pause/pause.rs");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("pause");
    let done = Command::new(env::var("RUSTC").expect("cargo sets RUSTC"))
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=pause", "--target"])
        .arg(env::var("TARGET").expect("cargo sets TARGET"))
        .args(["-Cpanic=abort", "-Copt-level=s", "-Cstrip=symbols", "-Crelocation-model=static"])
        .args([
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-static",
            "-Clink-arg=-Wl,--build-id=none",
        ])
        .arg("-o")
        .arg(&out)
        .arg("pause/pause.rs")
        .status();
    match done {
        Ok(status) if status.success() => println!("cargo::rustc-env=KELSON_PAUSE={}", out.display()),
        Ok(status) => panic!("compiling pause.rs ended with {status}"),
        Err(e) => panic!("cannot run rustc for pause.rs: {e}"),
    }
}
