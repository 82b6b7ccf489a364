//! How a server ends: it says that it is not ready, goes on serving for a while so that load balancers notice, takes no more
//! connections, ends its watches, lets what is under way finish and be written down, and only then stops what requests rely on.

use tokio_util::sync::CancellationToken;

use super::ApiServer;

/// Runs the end of a server once `stop` is cancelled. Returns when nothing of the server runs any more.
pub(super) async fn end(server: &ApiServer, stop: CancellationToken) {
    let inner = server.inner();
    stop.cancelled().await;
    tokio::time::sleep(inner.config.shutdown_delay).await;
    inner.closing.cancel();
    inner.registry.feed.close_watches();
    inner.connections.close();
    // A request has no more time than this anyway.
    if tokio::time::timeout(inner.config.request_timeout, inner.connections.wait()).await.is_err() {
        tracing::warn!("some requests are cut off");
    }
    if let Some(audit) = &inner.audit {
        audit.close().await;
    }
    inner.halt.cancel();
    inner.tasks.close();
    inner.tasks.wait().await;
}
