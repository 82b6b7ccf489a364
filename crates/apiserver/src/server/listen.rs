//! Accepting connections: TLS, HTTP/1.1 and HTTP/2, with limits against clients that are slow or greedy.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use component_base::connections;
use http::Version;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{ApiServer, Error, tls, unread};
use crate::body::{Body, request_body};
use crate::config::ServingConfig;
use crate::pipeline::{self, Origin, Peer};

/// How long a client may take for its TLS handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(32);
/// The largest head of a request, in bytes (as Go's default).
const MAX_HEAD: usize = 1 << 20;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 250;
/// What a client may send on one stream, and on one connection, before it is read.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What one stream may have queued for a client that does not read.
const SEND_BUFFER: usize = 512 << 10;
/// How often an idle HTTP/2 connection is asked whether anybody is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections at once. Each idle one costs some 50 KB.
const MAX_CONNECTIONS: usize = 32_768;

/// Binds and serves in the server's own tasks. Returns the address.
pub(super) async fn listen(server: &ApiServer, config: &ServingConfig) -> Result<SocketAddr, Error> {
    let listener = connections::listen(config.address)
        .await
        .map_err(|source| Error::Listen { address: config.address, source })?;
    let address = listener.local_addr().map_err(|source| Error::Listen { address: config.address, source })?;
    let front = Front {
        server: server.clone(),
        acceptor: TlsAcceptor::from(Arc::new(tls::server_config(config)?)),
        verifiers: Arc::new(tls::Verifiers::open(config)?),
    };
    server.inner().connections.spawn(async move { accept_all(front, listener).await });
    tracing::info!(%address, "serving");
    Ok(address)
}

/// What every connection needs.
#[derive(Clone)]
struct Front {
    server: ApiServer,
    acceptor: TlsAcceptor,
    verifiers: Arc<tls::Verifiers>,
}

async fn accept_all(front: Front, listener: TcpListener) {
    let inner = front.server.inner();
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    while let Some(accepted) = inner.closing.run_until_cancelled(listener.accept()).await {
        let (socket, remote) = match accepted {
            // A socket for both families sees IPv4 addresses as IPv6's.
            Ok((socket, remote)) => (socket, SocketAddr::new(remote.ip().to_canonical(), remote.port())),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: the next attempt would fail at once too.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%remote, "too many connections, refusing one");
            continue;
        };
        let front = front.clone();
        inner.connections.spawn(async move {
            serve(front, socket, remote).await;
            drop(place);
        });
    }
}

async fn serve(front: Front, socket: TcpStream, remote: SocketAddr) {
    let Front { server, acceptor, verifiers } = front;
    // Answers are written whole; waiting for more to send only adds delay.
    let _ = socket.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, %remote, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%remote, "a TLS handshake took too long"),
    };
    let peer = Arc::new(Peer { address: remote, proved: verifiers.check(&stream) });
    let closing = server.inner().closing.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (server, peer) = (server.clone(), Arc::clone(&peer));
        async move { Ok::<_, Infallible>(answer(server, peer, request).await) }
    });
    let builder = builder();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut served = closing.run_until_cancelled(connection.as_mut()).await;
    if served.is_none() {
        // New requests are refused; those under way may finish.
        connection.as_mut().graceful_shutdown();
        served = Some(connection.await);
    }
    if let Some(Err(error)) = served {
        tracing::debug!(%error, %remote, "a connection broke");
    }
}

async fn answer(server: ApiServer, peer: Arc<Peer>, request: hyper::Request<Incoming>) -> hyper::Response<Body> {
    let (parts, body) = request.into_parts();
    // HTTP/2 gives up one stream; HTTP/1 would give up the connection.
    let (body, unread) = match parts.version {
        Version::HTTP_2 => (request_body(body), None),
        _ => {
            let (body, unread) = unread::lend(request_body(body));
            (body, Some(unread))
        }
    };
    let response = pipeline::serve(server, hyper::Request::from_parts(parts, body), Origin::Remote(peer)).await;
    if let Some(unread) = unread {
        unread.drain().await;
    }
    response
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
