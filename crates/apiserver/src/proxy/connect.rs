//! Connections to where requests are passed on.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Status;
use component_base::tls::{AnyServer, load_certificates, load_roots, provider};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Destination;
use crate::body::RequestBody;
use crate::config::KubeletConfig;
use crate::outbound::trust;
use crate::registry::status;
use crate::server::Error;

const DIAL: Duration = Duration::from_secs(30);

/// How this server proves itself to kubelets, and whom it takes for one.
pub(crate) struct KubeletTls(pub Arc<ClientConfig>);

impl KubeletTls {
    pub(crate) fn new(config: &KubeletConfig) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &config.certificate_authority {
            Some(path) => builder.with_root_certificates(load_roots(path)?),
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer::new())),
        };
        let client = match &config.client_certificate {
            Some((cert, key)) => {
                let chain = load_certificates(cert)?;
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| component_base::tls::TlsError::Read { path: key.clone(), source })?;
                builder.with_client_auth_cert(chain, private)?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(KubeletTls(Arc::new(client)))
    }
}

/// TLS to pods and Services, whose certificates nobody vouches for here.
pub(super) fn unverified() -> Result<Arc<ClientConfig>, Status> {
    trust::verified(trust::Roots::Anyone, None).map_err(Status::internal)
}

/// Opens a connection for one request.
pub(super) async fn connect(to: &Destination) -> Result<SendRequest<RequestBody>, Status> {
    let failed = |why: String| status::plain(format!("error dialing backend: {why}"));
    let socket = tokio::time::timeout(DIAL, TcpStream::connect(to.address))
        .await
        .map_err(|_| failed(format!("dial tcp {}: i/o timeout", to.address)))?
        .map_err(|e| failed(format!("dial tcp {}: connect: {}", to.address, go_words(&e))))?;
    // Keystrokes of an exec are small and want to be there at once.
    let _ = socket.set_nodelay(true);
    match &to.tls {
        None => handshake(socket).await,
        Some(config) => {
            let name = ServerName::try_from(to.host.clone()).map_err(|e| failed(e.to_string()))?;
            let connector = TlsConnector::from(Arc::clone(config));
            let stream = tokio::time::timeout(DIAL, connector.connect(name, socket))
                .await
                .map_err(|_| failed("net/http: TLS handshake timeout".to_owned()))?
                .map_err(|e| failed(format!("tls: {e}")))?;
            handshake(stream).await
        }
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<RequestBody>, Status>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| status::plain(format!("error dialing backend: {e}")))?;
    // The connection lives as long as its one request, or the tunnel that becomes of it.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection broke");
        }
    });
    Ok(sender)
}

fn go_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        _ => error.to_string(),
    }
}
