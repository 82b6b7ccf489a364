//! TLS: the server's certificates, and what clients prove.

use std::sync::Arc;

use component_base::tls::{AnyClient, ReloadingCertificate, load_roots, provider, self_signed};
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls_pki_types::UnixTime;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::Error;
use crate::authn::PeerCertificates;
use crate::config::ServingConfig;

pub(super) fn server_config(config: &ServingConfig) -> Result<ServerConfig, Error> {
    let certificate: Arc<dyn ResolvesServerCert> = match &config.certificate {
        Some((cert, key)) => Arc::new(ReloadingCertificate::open(cert, key)?),
        None => self_signed("apiserver", &config.self_signed_hosts, config.cert_dir.as_deref())?,
    };
    let mut tls =
        config.spoken.server()?.with_client_cert_verifier(Arc::new(AnyClient::new())).with_cert_resolver(certificate);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// Checks client certificates against the authorities of the configuration, once for each connection.
pub(super) struct Verifiers {
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// Of proxies that speak for their users.
    proxies: Option<Arc<dyn ClientCertVerifier>>,
}

impl Verifiers {
    pub(super) fn open(config: &ServingConfig) -> Result<Self, Error> {
        let open = |path: &Option<std::path::PathBuf>| -> Result<_, Error> {
            let Some(path) = path else { return Ok(None) };
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(load_roots(path)?), provider())
                .build()
                .map_err(component_base::tls::TlsError::ClientCa)?;
            Ok(Some(verifier))
        };
        Ok(Verifiers { clients: open(&config.client_ca_file)?, proxies: open(&config.requestheader_client_ca_file)? })
    }

    /// What the client of a connection has proved.
    pub(super) fn check(&self, stream: &TlsStream<TcpStream>) -> Proved {
        let (_, session) = stream.get_ref();
        let Some([certificate, intermediates @ ..]) = session.peer_certificates() else { return Proved::default() };
        let passes = |verifier: &Option<Arc<dyn ClientCertVerifier>>| {
            let verified = verifier.as_ref().map(|v| v.verify_client_cert(certificate, intermediates, UnixTime::now()));
            matches!(verified, Some(Ok(_)))
        };
        let chain = std::iter::once(certificate).chain(intermediates).map(|c| c.to_vec()).collect();
        let chain = PeerCertificates(Arc::new(chain));
        let (client, proxy) = (passes(&self.clients), passes(&self.proxies));
        Proved { client: client.then(|| chain.clone()), proxy: proxy.then_some(chain), unknown: !client }
    }
}

/// The client certificates of a connection, by what they are good for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proved {
    /// Verified against `--client-ca-file`.
    pub client: Option<PeerCertificates>,
    /// Verified against `--requestheader-client-ca-file`.
    pub proxy: Option<PeerCertificates>,
    /// A certificate was shown that `--client-ca-file` does not vouch for: nobody's, unless a proxy's.
    pub unknown: bool,
}
