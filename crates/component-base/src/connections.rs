//! What servers do with connections before they know what is wanted: take them, each in a task of its own, and agree on TLS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a client may take to agree on TLS, or to send its request's head.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens at an address. `0.0.0.0` means every address of the host, also those of IPv6, as it does in Go.
///
/// # Errors
/// When the address cannot be bound.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
        // A host may have no IPv6.
        if let Ok(listener) = TcpListener::bind((Ipv6Addr::UNSPECIFIED, address.port())).await {
            return Ok(listener);
        }
    }
    TcpListener::bind(address).await
}

/// Serves each connection until `stop`, which ends those that there are, too. Returns when none is left.
pub async fn accept<F>(listener: TcpListener, stop: CancellationToken, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, _)) => {
                let (serve, stop) = (serve(socket), stop.clone());
                connections.spawn(async move { stop.run_until_cancelled(serve).await });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: the next attempt would fail at once too.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// Nothing, where a client does not come to an agreement in time.
pub async fn agree_on_tls(acceptor: &TlsAcceptor, socket: TcpStream) -> Option<TlsStream<TcpStream>> {
    match tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await {
        Ok(Ok(tls)) => Some(tls),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake was not ended in time");
            None
        }
    }
}

/// HTTP/1.1 and HTTP/2 for clients that do not keep others waiting.
#[must_use]
pub fn http() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new());
    builder
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn every_address_is_one_of_both_families() {
        let listener = listen(([0, 0, 0, 0], 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        if std::path::Path::new("/proc/net/if_inet6").exists() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
        assert!(listen(([127, 0, 0, 1], 0).into()).await.unwrap().local_addr().unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn the_end_is_the_end_of_connections_that_hang() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, (came, mut comes)) = (CancellationToken::new(), mpsc::unbounded_channel());
        let serve = move |socket: TcpStream| {
            let came = came.clone();
            async move {
                came.send(()).unwrap();
                std::future::pending::<()>().await;
                drop(socket);
            }
        };
        let serving = tokio::spawn(accept(listener, stop.clone(), serve));
        let mut clients = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        for _ in &clients {
            comes.recv().await.unwrap();
        }
        stop.cancel();
        serving.await.unwrap();
        for client in &mut clients {
            assert_eq!(client.read(&mut [0]).await.unwrap_or_default(), 0);
        }
    }
}
