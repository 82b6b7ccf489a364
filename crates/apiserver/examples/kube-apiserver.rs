//! kube-apiserver alone, as `kelson kube-apiserver` starts it.

use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let flags = component_base::flags::parse::<apiserver::Flags>("kube-apiserver", std::env::args().skip(1));
    let flags = flags.map_err(|(text, _)| anyhow::anyhow!(text))?;
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        on_signal.cancel();
    });
    apiserver::run(flags.complete()?, stop).await?;
    Ok(())
}
