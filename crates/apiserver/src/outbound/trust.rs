//! Whom this server believes when it connects to somebody, and how it proves itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use component_base::tls::{AnyServer, provider};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Where systems keep the authorities that they trust.
const SYSTEM_ROOTS: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How many bundles are kept.
const BUNDLES: usize = 256;

/// The authorities that a server's certificate may come from.
pub(crate) enum Roots {
    System,
    Pem(Vec<u8>),
    /// A `caBundle` that is no base64.
    Broken,
    /// Any certificate will do.
    Anyone,
}

/// A certificate chain and its key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Roots {
    /// Of a `caBundle`: PEM in base64.
    pub(crate) fn of_bundle(bundle: &str) -> Self {
        if bundle.is_empty() {
            return Roots::System;
        }
        STANDARD.decode(bundle).map_or(Roots::Broken, Roots::Pem)
    }
}

/// TLS to a server that a `caBundle` vouches for. It is kept: to read a bundle takes longer than to ask whom it is for.
///
/// # Errors
/// As [`verified`].
pub(crate) fn of_bundle(bundle: &str) -> Result<Arc<ClientConfig>, String> {
    static KEPT: Mutex<BTreeMap<String, Arc<ClientConfig>>> = Mutex::new(BTreeMap::new());
    if let Some(tls) = KEPT.lock().get(bundle) {
        return Ok(Arc::clone(tls));
    }
    let tls = verified(Roots::of_bundle(bundle), None)?;
    let mut kept = KEPT.lock();
    if kept.len() >= BUNDLES {
        kept.clear();
    }
    kept.insert(bundle.to_owned(), Arc::clone(&tls));
    Ok(tls)
}

/// TLS to a server that these authorities vouch for.
///
/// # Errors
/// When there is no authority in them, or the identity is none.
pub(crate) fn verified(roots: Roots, identity: Option<Identity>) -> Result<Arc<ClientConfig>, String> {
    let unusable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match roots {
        Roots::Broken => return Err(unusable()),
        Roots::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer::new())),
        Roots::System => {
            let pem = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
            builder.with_root_certificates(store_of(&pem))
        }
        Roots::Pem(pem) => {
            let store = store_of(&pem);
            if store.is_empty() {
                return Err(unusable());
            }
            builder.with_root_certificates(store)
        }
    };
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// A certificate and key from files.
///
/// # Errors
/// When they hold none.
pub(crate) fn identity_of_files(cert: &Path, key: &Path) -> Result<Identity, String> {
    let chain = component_base::tls::load_certificates(cert).map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("cannot read {}: {e}", key.display()))?;
    Ok((chain, key))
}

/// A certificate and key from PEM texts.
///
/// # Errors
/// When they hold none.
pub(crate) fn identity_of_pem(cert: &[u8], key: &[u8]) -> Result<Identity, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert).flatten().map(CertificateDer::into_owned).collect();
    if chain.is_empty() {
        return Err("tls: failed to find any PEM data in certificate input".to_owned());
    }
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|_| "tls: failed to find any PEM data in key input".to_owned())?;
    Ok((chain, key))
}

fn store_of(pem: &[u8]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).flatten());
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_read_once() {
        assert!(Arc::ptr_eq(&of_bundle("").unwrap(), &of_bundle("").unwrap()));
        assert!(of_bundle("!").is_err());
    }
}
