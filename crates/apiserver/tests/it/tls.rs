//! How a server speaks TLS.

use std::sync::Arc;

use component_base::tls::{AnyServer, provider};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ProtocolVersion, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::fixture::Server;

/// The version and suite that a client of one version comes to with a server.
async fn agreed(server: &Server, version: &'static SupportedProtocolVersion) -> Option<(ProtocolVersion, String)> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer::new()))
        .with_no_client_auth();
    let socket = TcpStream::connect(server.address).await.unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), socket).await.ok()?;
    let (_, session) = stream.get_ref();
    Some((session.protocol_version()?, format!("{:?}", session.negotiated_cipher_suite()?.suite())))
}

#[tokio::test]
async fn a_server_speaks_the_versions_and_suites_that_it_is_told() {
    let server = Server::start(&["--tls-min-version=VersionTLS13"]).await;
    assert_eq!(agreed(&server, &TLS12).await, None);
    assert_eq!(agreed(&server, &TLS13).await.map(|(version, _)| version), Some(ProtocolVersion::TLSv1_3));

    let suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    let server = Server::start(&[&format!("--tls-cipher-suites={suite}")]).await;
    assert_eq!(agreed(&server, &TLS12).await, Some((ProtocolVersion::TLSv1_2, suite.to_owned())));
}
