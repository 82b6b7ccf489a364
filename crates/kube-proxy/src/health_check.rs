//! healthCheckNodePort: tells load balancers whether this node has endpoints of a Service of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::HealthCheck;

pub(crate) struct HealthChecks {
    stop: CancellationToken,
    running: BTreeMap<u16, (watch::Sender<HealthCheck>, CancellationToken)>,
}

impl HealthChecks {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        HealthChecks { stop, running: BTreeMap::new() }
    }

    /// Serves exactly these ports from now on.
    pub(crate) fn update(&mut self, checks: Vec<HealthCheck>) {
        self.running.retain(|port, (_, stop)| {
            let stays = checks.iter().any(|c| c.port == *port);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for check in checks {
            match self.running.get(&check.port) {
                Some((sender, _)) => {
                    sender.send_if_modified(|now| {
                        let differs = *now != check;
                        *now = check;
                        differs
                    });
                }
                None => {
                    let stop = self.stop.child_token();
                    let port = check.port;
                    let (sender, receiver) = watch::channel(check);
                    tokio::spawn(serve(port, receiver, stop.clone()));
                    self.running.insert(port, (sender, stop));
                }
            }
        }
    }
}

async fn serve(port: u16, check: watch::Receiver<HealthCheck>, stop: CancellationToken) {
    let listener = match TcpListener::bind(("0.0.0.0", port)).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(port, %error, "a health-check port cannot be served");
            return;
        }
    };
    let check = Arc::new(check);
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((mut socket, _)) = accepted else { continue };
        let answer = answer_of(&check.borrow());
        tokio::spawn(async move {
            let mut request = [0; 1024];
            // One short request and its answer; who sends more or nothing gets nothing.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(5), async {
                if socket.read(&mut request).await? > 0 {
                    socket.write_all(answer.as_bytes()).await?;
                }
                std::io::Result::Ok(())
            })
            .await;
        });
    }
}

fn answer_of(check: &HealthCheck) -> String {
    let body = serde_json::json!({
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": true,
    })
    .to_string();
    let status = if check.local_endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Load-Balancing-Endpoint-Weight: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        check.local_endpoints,
        body.len()
    )
}
