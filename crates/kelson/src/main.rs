//! The whole of Kubernetes in one program: `kelson up`, or each component by its upstream name.
//!
//! Only this crate knows all components; it wires them and holds no logic of theirs.

#![forbid(unsafe_code)]

mod component;
mod host_network;
mod images;
mod kubeconfig;
mod pki;
mod private_file;
mod reset;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use component_base::logs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "kelson", about = "Kubernetes in one program", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a whole cluster on this machine until it is interrupted.
    Up(Box<up::Options>),
    /// Ends everything that runs below a data directory, its containers too, removes it, and takes back what was written to
    /// the host's network: rules of Services and policies, routes, the tunnel, the bridge and what CNI remembers.
    Reset {
        /// The data directory that `kelson up` was started with.
        #[arg(long, default_value = "/var/lib/kelson")]
        data_dir: PathBuf,
    },
    /// Container images without a registry.
    #[command(subcommand)]
    Images(ImagesCommand),
    /// A component by its upstream name, with upstream's flags: kube-apiserver, kube-controller-manager, kube-scheduler,
    /// kubelet, kube-proxy.
    #[command(external_subcommand)]
    Component(Vec<String>),
}

#[derive(Subcommand)]
enum ImagesCommand {
    /// Imports an OCI or Docker archive into the cluster's container runtime.
    Import {
        archive: PathBuf,
        /// The data directory that `kelson up` was started with.
        #[arg(long, default_value = "/var/lib/kelson")]
        data_dir: PathBuf,
        /// The runtime's socket; by default that of the data directory's own containerd.
        #[arg(long)]
        container_runtime_endpoint: Option<String>,
    },
    /// Packs a directory as an OCI image archive.
    Pack {
        out: PathBuf,
        rootfs: PathBuf,
        /// A reference under which the image is found; may be given several times.
        #[arg(long, required = true)]
        name: Vec<String>,
        /// A word of the entrypoint; may be given several times.
        #[arg(long, allow_hyphen_values = true)]
        entrypoint: Vec<String>,
        /// A word of the command; may be given several times.
        #[arg(long, allow_hyphen_values = true)]
        cmd: Vec<String>,
        #[arg(long)]
        env: Vec<String>,
        #[arg(long, default_value = "")]
        user: String,
    },
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    let called = args.first().map(|a| Path::new(a).file_name().unwrap_or_default().to_string_lossy().into_owned());
    if let Some(name) = called.filter(|name| component::NAMES.contains(&name.as_str())) {
        args.remove(0);
        return component::main(&name, args);
    }
    match Cli::parse().command {
        Command::Component(mut words) => {
            let name = words.remove(0);
            if component::NAMES.contains(&name.as_str()) {
                component::main(&name, words)
            } else {
                eprintln!("Error: unknown command \"{name}\" for \"kelson\"\nRun 'kelson --help' for usage.");
                ExitCode::FAILURE
            }
        }
        Command::Up(options) => report(block_on(async {
            logs::init(options.v, logs::Format::Text);
            up::run(*options, component::stop_on_signals()?).await
        })),
        Command::Reset { data_dir } => report(block_on(reset::run(&data_dir))),
        Command::Images(command) => report(block_on(images_command(command))),
    }
}

fn report(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Two workers: the machines that one program serves best are small, and more threads only cost memory.
fn block_on<F: Future>(future: F) -> F::Output {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores.max(2)).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => {
            eprintln!("Error: cannot start threads: {error}");
            std::process::exit(1)
        }
    }
}

async fn images_command(command: ImagesCommand) -> anyhow::Result<()> {
    match command {
        ImagesCommand::Import { archive, data_dir, container_runtime_endpoint } => {
            let socket = container_runtime_endpoint.map_or_else(
                || up::containerd_socket(&data_dir),
                |e| PathBuf::from(e.strip_prefix("unix://").unwrap_or(&e)),
            );
            images::import_file(&socket, &archive).await
        }
        ImagesCommand::Pack { out, rootfs, name, entrypoint, cmd, env, user } => {
            let mut layer = tar::Builder::new(Vec::new());
            layer.follow_symlinks(false);
            layer.append_dir_all(".", &rootfs)?;
            let image = images::Image { names: name, entrypoint, cmd, env, user, working_dir: String::new() };
            std::fs::write(out, images::pack(&image, &layer.into_inner()?)?)?;
            Ok(())
        }
    }
}
