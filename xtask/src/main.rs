//! The developer's one entry: a trial cluster, the tests, the layer check. `cargo xtask --help` lists the commands.

#![expect(clippy::print_stdout, reason = "a command-line tool talks to its user")]

mod debian;
mod descriptions;
mod down;
mod golden;
mod layers;
mod shell;
mod test;
mod trial;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Builds, tries and tests Kelson", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings up a trial cluster and runs examples/hello.yaml on it.
    ///
    /// What it changes on this machine: installs Debian packages (containerd, runc, CNI plugins, nftables, conntrack,
    /// iproute2, busybox-static and, if there is no kubectl, kubernetes-client), builds in release mode, makes the network
    /// namespace `kelson-trial` joined to the host by the veth pair `kelson-trial0` (198.18.77.1/30), keeps all state below
    /// target/trial, and leaves the cluster running. Must run as root. `cargo xtask down` removes all of it but the packages.
    Up,
    /// Stops the trial cluster and removes everything that `up` made, except Debian packages.
    Down,
    /// Installs what the tests need and runs every test.
    ///
    /// What it changes on this machine: installs Debian packages (those of `up`, etcd-server, etcd-client, curl, openssl, python3-yaml,
    /// python3-venv), puts the Python `kubernetes` package into target/test-python, and makes network namespaces named
    /// `kelson-test-…` that are removed again. Must run as root.
    Test {
        /// Passed on to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Checks that no crate imports another one that it must not know (the table is in ARCHITECTURE.md).
    CheckLayers,
    /// Writes `crates/apiserver/data/descriptions.txt` anew, for another release of the k8s-openapi crate.
    Descriptions,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Up => up::run(),
        Command::Down => down::run(),
        Command::Test { args } => test::run(&args),
        Command::CheckLayers => layers::run(),
        Command::Descriptions => descriptions::run(),
    }
}
