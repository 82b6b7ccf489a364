//! A scheduler with a plugin of its own: pods labelled `quiet=true` do not go to nodes labelled `noisy=true`.
//! It takes kube-scheduler's flags.

use std::time::Duration;

use client::config::{ClientOptions, from_kubeconfig};
use scheduler::cluster::{Cluster, NodeRef};
use scheduler::framework::{Filter, FilterStatus, Plugin, PointsOf, PreFilter};
use scheduler::pod::PodInfo;
use tokio_util::sync::CancellationToken;

struct Quiet;

impl Plugin for Quiet {
    const NAME: &'static str = "Quiet";
}

impl Filter for Quiet {
    type State = ();

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<()> {
        if pod.labels().get("quiet").is_some_and(|quiet| quiet == "true") {
            PreFilter::Run(())
        } else {
            PreFilter::Skip
        }
    }

    fn filter(&self, (): &(), _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        match node.labels().get("noisy").map(String::as_str) {
            Some("true") => FilterStatus::unresolvable("node(s) were too noisy"),
            _ => FilterStatus::Success,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags: scheduler::Flags =
        component_base::flags::parse("quiet-scheduler", std::env::args().skip(1)).map_err(|(text, _)| text)?;
    component_base::logs::init(flags.v, flags.logging_format);
    let registry = scheduler::plugins::in_tree().with(Quiet::NAME, |_, _| Ok(PointsOf::new(Quiet).filter().points()));
    let mut config = flags.complete_with(registry, "quiet-scheduler")?;
    for profile in &mut config.profiles {
        profile.multi_point.enabled.push((Quiet::NAME.to_owned(), 0));
    }
    let kubeconfig = config.kubeconfig.clone().ok_or("--kubeconfig is needed")?;
    let client = from_kubeconfig(&kubeconfig, &ClientOptions::unlimited("quiet-scheduler")).await?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        drop(tokio::signal::ctrl_c().await);
        stopped.cancel();
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    Ok(scheduler::run(config, client, stop).await?)
}
