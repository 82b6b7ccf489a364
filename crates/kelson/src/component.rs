//! One component alone, by its upstream name and with upstream's flags.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use client::config::ClientOptions;
use component_base::{flags, logs};
use kubelet::Bootstrap;
use tokio_util::sync::CancellationToken;

/// What this program can be called as, by a first word or by a link of that name.
pub(crate) const NAMES: &[&str] =
    &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"];

/// Runs the component until it is told to stop. Mistakes in the flags end it with 1 and upstream's words.
pub(crate) fn main(name: &str, args: Vec<String>) -> ExitCode {
    match name {
        "kube-apiserver" => start(name, args, apiserver),
        "kubelet" => start(name, args, kubelet),
        "kube-controller-manager" => match controller_manager::with_config_file(args) {
            Ok(args) => {
                let shown = flags::shown::<controller_manager::Flags>(name, &args);
                start(name, args, |flags, stop| controller_manager(flags, shown, stop))
            }
            Err(error) => crate::report(Err(error.into())),
        },
        "kube-scheduler" => {
            let shown = flags::shown::<scheduler::Flags>(name, &args);
            start(name, args, |flags, stop| scheduler(flags, shown, stop))
        }
        "kube-proxy" => start(name, args, kube_proxy),
        other => {
            eprintln!("Error: unknown component {other}");
            ExitCode::FAILURE
        }
    }
}

fn start<F, Fut>(name: &str, args: Vec<String>, run: impl FnOnce(F, CancellationToken) -> Fut) -> ExitCode
where
    F: clap::Parser,
    Fut: Future<Output = Result<()>>,
{
    let parsed = match flags::parse::<F>(name, args) {
        Ok(parsed) => parsed,
        Err((text, 0)) => {
            print(&text);
            return ExitCode::SUCCESS;
        }
        Err((text, _)) => {
            eprint!("{text}");
            return ExitCode::FAILURE;
        }
    };
    crate::report(crate::block_on(async {
        let stop = stop_on_signals()?;
        run(parsed, stop).await
    }))
}

#[expect(clippy::print_stdout, reason = "help goes to standard output")]
fn print(text: &str) {
    print!("{text}");
}

/// Cancelled by SIGTERM or SIGINT; a second signal ends the process at once.
pub(crate) fn stop_on_signals() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if last {
                std::process::exit(1);
            }
            tracing::info!("stopping");
            token.cancel();
        }
    });
    Ok(stop)
}

async fn client_of(kubeconfig: &Path, options: &ClientOptions) -> Result<kube::Client> {
    client::config::from_kubeconfig(kubeconfig, options)
        .await
        .with_context(|| format!("cannot use the kubeconfig {}", kubeconfig.display()))
}

fn hostname() -> Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}

/// This instance's name in leader election.
fn identity() -> Result<String> {
    Ok(format!("{}_{}", hostname()?, std::process::id()))
}

async fn apiserver(flags: apiserver::Flags, stop: CancellationToken) -> Result<()> {
    logs::init(u8::try_from(flags.v).unwrap_or_default(), logs::Format::Text);
    Ok(apiserver::run(flags.complete()?, stop).await?)
}

async fn kubelet(flags: kubelet::Flags, stop: CancellationToken) -> Result<()> {
    logs::init(flags.v, logs::Format::Text);
    let config = flags.complete()?;
    if let (Some(bootstrap_kubeconfig), Some(kubeconfig)) = (&flags.bootstrap_kubeconfig, &flags.kubeconfig) {
        let (cert_dir, node_name) = (&config.cert_dir, &config.node_name);
        kubelet::bootstrap(&Bootstrap { bootstrap_kubeconfig, kubeconfig, cert_dir, node_name }).await?;
    }
    let client = match &flags.kubeconfig {
        Some(path) => Some(client_of(path, &ClientOptions::limited("kubelet", 50.0, 100)).await?),
        None => None,
    };
    Ok(kubelet::run(config, client, stop).await?)
}

/// Flags with their values, for those who ask the component how it was started.
type Shown = Vec<(String, String)>;

async fn controller_manager(flags: controller_manager::Flags, shown: Shown, stop: CancellationToken) -> Result<()> {
    logs::init(flags.v, logs::Format::Text);
    let kubeconfig = flags.kubeconfig.clone().context("--kubeconfig is needed")?;
    let client = client_of(&kubeconfig, &flags.client_options()).await?;
    let mut config = flags.complete(&identity()?)?;
    config.flags = shown;
    Ok(controller_manager::run(config, client, stop).await?)
}

async fn scheduler(flags: scheduler::Flags, shown: Shown, stop: CancellationToken) -> Result<()> {
    logs::init(flags.v, flags.logging_format);
    let mut config = flags.complete(&identity()?)?;
    config.flags = shown;
    let kubeconfig = config.kubeconfig.clone().context("--kubeconfig is needed")?;
    let client = client_of(&kubeconfig, &config.client).await?;
    Ok(scheduler::run(config, client, stop).await?)
}

async fn kube_proxy(flags: kube_proxy::Flags, stop: CancellationToken) -> Result<()> {
    logs::init(flags.v, flags.logging_format);
    let config = flags.complete(&hostname()?)?;
    if flags.cleanup {
        return Ok(kube_proxy::clean_up().await?);
    }
    if flags.init_only {
        kube_proxy::set_parameters(&config);
        return Ok(());
    }
    let kubeconfig = config.kubeconfig.clone().context("--kubeconfig is needed")?;
    let client = client_of(&kubeconfig, &config.client).await?;
    Ok(kube_proxy::run(config, client, stop).await?)
}
