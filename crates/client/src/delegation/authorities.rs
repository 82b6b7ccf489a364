//! Who vouches for client certificates, and for proxies that speak for their users: the flags' files, or what the cluster
//! says in `kube-system/extension-apiserver-authentication`.

use std::path::Path;
use std::sync::Arc;

use component_base::secure_port::{ProxyHeaders, SecurePort};
use component_base::serving::PeerCertificates;
use component_base::tls::{TlsError, load_roots, provider, roots_of};
use k8s_openapi::api::core::v1::ConfigMap;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::UnixTime;

/// Both are `None` where nobody vouches.
#[derive(Clone, Default)]
pub(super) struct Authorities {
    pub(super) clients: Option<Arc<dyn ClientCertVerifier>>,
    pub(super) proxies: Option<(Arc<dyn ClientCertVerifier>, ProxyHeaders)>,
}

impl Authorities {
    /// Those that the flags name.
    pub(super) fn of_files(port: &SecurePort) -> Result<Self, TlsError> {
        let open = |path: &Path| verifier(load_roots(path)?);
        let clients = port.client_ca.as_deref().map(open).transpose()?;
        let proxies =
            port.proxies.as_ref().map(|proxies| Ok::<_, TlsError>((open(&proxies.ca)?, proxies.headers.clone())));
        Ok(Self { clients, proxies: proxies.transpose()? })
    }

    /// Those that the cluster names. What it says wrongly counts as not said.
    pub(super) fn of_cluster(map: &ConfigMap) -> Self {
        let said = |key: &str| map.data.as_ref().and_then(|data| data.get(key));
        let vouching = |key: &str| {
            let roots = roots_of(said(key)?);
            if roots.is_empty() { None } else { verifier(roots).ok() }
        };
        let list = |key: &str| -> Vec<String> {
            said(key).and_then(|list| serde_json::from_str(list).ok()).unwrap_or_default()
        };
        let headers = || ProxyHeaders {
            allowed_names: list("requestheader-allowed-names"),
            user: list("requestheader-username-headers"),
            uid: list("requestheader-uid-headers"),
            group: list("requestheader-group-headers"),
            extra_prefix: list("requestheader-extra-headers-prefix"),
        };
        let proxies = vouching("requestheader-client-ca-file").map(|verifier| (verifier, headers()));
        Self { clients: vouching("client-ca-file"), proxies }
    }

    /// These, and what they lack from those.
    pub(super) fn or(self, others: Self) -> Self {
        Self { clients: self.clients.or(others.clients), proxies: self.proxies.or(others.proxies) }
    }
}

fn verifier(roots: RootCertStore) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    builder.build().map_err(TlsError::ClientCa)
}

/// Does it vouch for the connection's client?
pub(super) fn vouches(verifier: &Arc<dyn ClientCertVerifier>, peer: &PeerCertificates) -> bool {
    let [certificate, intermediates @ ..] = peer.0.as_slice() else { return false };
    verifier.verify_client_cert(certificate, intermediates, UnixTime::now()).is_ok()
}
