//! Names for Services and Pods, after the Kubernetes DNS-Based Service Discovery specification 1.1.0; every other name is
//! asked of the resolvers that the host uses.
//!
//! It knows Services and EndpointSlices, and nothing of proxies or pods. Entry points: [`Config`], [`run`].
//!
//! Invariants: an answer is computed from the informers' caches when the question comes, so that there is no zone that
//! could go stale; questions are answered from what is cached also while the apiserver is away.

#![forbid(unsafe_code)]

mod forward;
mod handler;
mod metrics;
mod records;
#[cfg(test)]
mod wire;
mod zone;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::informer::SharedInformerFactory;
use component_base::metrics::Metrics;
use component_base::serving::{Endpoints, Server as HttpServer};
use futures::future::BoxFuture;
use hickory_proto::rr::Name;
use hickory_server::Server;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

/// What an operator chooses.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where questions are taken, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Resolvers for all other names. None: such questions are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Domains with resolvers of their own.
    pub stub_domains: Vec<(String, Vec<SocketAddr>)>,
    /// Where health, readiness and metrics are served.
    pub serving: Option<SocketAddr>,
    pub metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{0:?} is no domain name")]
    Domain(String),
    #[error("cannot serve on {address}")]
    Serve { address: SocketAddr, source: std::io::Error },
    #[error("cannot set up the resolver for other names: {0}")]
    Resolver(String),
}

/// How long a TCP client may be silent.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that wait to be written to one TCP client.
const TCP_ANSWERS: usize = 32;

/// Answers questions until `stop`.
///
/// # Errors
/// When an address cannot be bound or the configuration makes no sense.
pub fn run(config: Config, client: kube::Client, stop: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(serve_names(config, client, stop))
}

async fn serve_names(config: Config, client: kube::Client, stop: CancellationToken) -> Result<(), Error> {
    let informers = SharedInformerFactory::new(client, stop.clone());
    let services = informers.informer::<Service>();
    let slices = informers.informer::<EndpointSlice>();
    services.add_index(records::BY_ADDRESS, records::service_addresses);
    slices.add_index(records::BY_SERVICE, records::service_of);
    slices.add_index(records::BY_ADDRESS, records::endpoint_addresses);

    let domain = zone::Domain::parse(&config.cluster_domain).ok_or(Error::Domain(config.cluster_domain))?;
    let records = records::Records::new(services.lister(), slices.lister());
    let mut stubs = Vec::new();
    for (domain, servers) in config.stub_domains {
        let name = Name::from_ascii(&domain).map_err(|_| Error::Domain(domain))?;
        stubs.push((name, servers));
    }
    let forward = forward::Forwarder::new(&config.upstreams, &stubs).map_err(|e| Error::Resolver(e.to_string()))?;
    let metrics = config.metrics.register(|registry| metrics::DnsMetrics::register(registry, &domain.fqdn()));
    let handler = handler::Handler::new(domain, records, forward, metrics);
    if let Some(address) = config.serving {
        let mut endpoints = Endpoints::new("cluster-dns", config.metrics.clone());
        let watched = informers.clone();
        endpoints.ready.push((
            "informers",
            Arc::new(move || match watched.unsynced().as_slice() {
                [] => Ok(()),
                missing => Err(format!("not synced: {}", missing.join(", "))),
            }),
        ));
        let server = HttpServer { address, tls: None, endpoints, guard: None };
        server.start(stop.clone()).await.map_err(|source| Error::Serve { address, source })?;
    }

    // Bound before the caches are full: the address is then ours, and clients wait instead of being refused.
    let mut sockets = Vec::new();
    for address in config.listen {
        let listen = |source| Error::Listen { address, source };
        let udp = UdpSocket::bind(address).await.map_err(listen)?;
        let tcp = TcpListener::bind(address).await.map_err(listen)?;
        sockets.push((udp, tcp));
    }
    if stop.run_until_cancelled(informers.synced()).await.is_none() {
        return Ok(());
    }
    tracing::info!("cluster DNS answers");
    answer(handler, sockets, stop).await;
    Ok(())
}

/// Answers on these sockets until `stop`.
async fn answer(handler: handler::Handler, sockets: Vec<(UdpSocket, TcpListener)>, stop: CancellationToken) {
    let mut server = Server::new(handler);
    for (udp, tcp) in sockets {
        server.register_socket(udp);
        server.register_listener(tcp, TCP_TIMEOUT, TCP_ANSWERS);
    }
    stop.cancelled().await;
    if let Err(error) = server.shutdown_gracefully().await {
        tracing::warn!(%error, "cluster DNS did not stop cleanly");
    }
}
