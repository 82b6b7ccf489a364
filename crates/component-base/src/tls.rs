//! Certificates from files, read again when they change, and certificates made for the occasion.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ConfigBuilder, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion, WantsVerifier,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("the certificate {} and its key do not go together", path.display())]
    Mismatch { path: PathBuf, source: rustls::Error },
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot use the client CAs")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// The cryptography that all of Kelson uses.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Which versions of TLS a server speaks, and in which cipher suites.
#[derive(Clone, Debug)]
pub struct Spoken {
    versions: Vec<&'static SupportedProtocolVersion>,
    suites: Vec<SupportedCipherSuite>,
}

impl Default for Spoken {
    fn default() -> Self {
        Spoken { versions: vec![&TLS13, &TLS12], suites: provider().cipher_suites.clone() }
    }
}

impl Spoken {
    /// By the values of `--tls-min-version` and `--tls-cipher-suites`, which are Go's names. As in Go, the suites of TLS 1.3
    /// cannot be chosen; and what is not spoken here is refused.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn of_flags(min_version: Option<&str>, suites: &[String]) -> Result<Self, Vec<String>> {
        let mut spoken = Spoken::default();
        let mut wrong = Vec::new();
        match min_version.unwrap_or_default() {
            "" | "VersionTLS12" => {}
            "VersionTLS13" => spoken.versions = vec![&TLS13],
            old @ ("VersionTLS10" | "VersionTLS11") => {
                wrong.push(format!("--tls-min-version {old} is not supported: nothing older than TLS 1.2 is spoken"));
            }
            other => wrong.push(format!("unknown tls version {other:?}")),
        }
        let all = std::mem::take(&mut spoken.suites);
        for name in suites {
            if !all.iter().any(|suite| is_named(*suite, name)) {
                wrong.push(format!("Cipher suite {name} not supported or doesn't exist"));
            }
        }
        let chosen = |suite: &SupportedCipherSuite| {
            suite.tls13().is_some() || suites.is_empty() || suites.iter().any(|name| is_named(*suite, name))
        };
        spoken.suites = all.into_iter().filter(chosen).collect();
        if wrong.is_empty() { Ok(spoken) } else { Err(wrong) }
    }

    /// Begins the configuration of a server.
    ///
    /// # Errors
    /// When there is no suite for any of the versions.
    pub fn server(&self) -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, TlsError> {
        let provider =
            CryptoProvider { cipher_suites: self.suites.clone(), ..rustls::crypto::ring::default_provider() };
        Ok(ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&self.versions)?)
    }
}

/// Is that its name in Go? Some have an older one besides.
fn is_named(suite: SupportedCipherSuite, name: &str) -> bool {
    let own = suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_");
    own == name || (name.ends_with("_CHACHA20_POLY1305") && own.strip_suffix("_SHA256") == Some(name))
}

/// A certificate and key from files. They are looked at again at most once in ten seconds, when a client connects; files
/// that cannot be used leave the ones before in service.
#[derive(Debug)]
pub struct ReloadingCertificate {
    cert: PathBuf,
    key: PathBuf,
    current: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    modified: Option<SystemTime>,
    checked: Instant,
}

const CHECK_EVERY: Duration = Duration::from_secs(10);

impl ReloadingCertificate {
    /// # Errors
    /// When the files do not hold a certificate and its key.
    pub fn open(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let loaded = Loaded { key: Arc::new(load_pair(cert, key)?), modified: modified(cert), checked: Instant::now() };
        Ok(ReloadingCertificate { cert: cert.to_owned(), key: key.to_owned(), current: Mutex::new(loaded) })
    }

    #[must_use]
    pub fn current(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock();
        if current.checked.elapsed() > CHECK_EVERY {
            current.checked = Instant::now();
            let now = modified(&self.cert);
            if now != current.modified {
                match load_pair(&self.cert, &self.key) {
                    Ok(pair) => {
                        current.key = Arc::new(pair);
                        current.modified = now;
                        tracing::info!(cert = %self.cert.display(), "the certificate changed and was read again");
                    }
                    Err(error) => tracing::error!(%error, "the changed certificate cannot be used"),
                }
            }
        }
        Arc::clone(&current.key)
    }
}

impl ResolvesServerCert for ReloadingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn load_pair(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = load_certificates(cert)?;
    let read = |source| TlsError::Read { path: key.to_owned(), source };
    let private = PrivateKeyDer::from_pem_file(key).map_err(read)?;
    CertifiedKey::from_der(chain, private, &provider())
        .map_err(|source| TlsError::Mismatch { path: cert.to_owned(), source })
}

/// All certificates of a PEM file.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(read)?.collect();
    let certificates = certificates.map_err(read)?;
    if certificates.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(certificates) }
}

/// The authorities of a PEM file.
///
/// # Errors
/// As [`load_certificates`].
pub fn load_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(load_certificates(path)?);
    if added == 0 { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(roots) }
}

/// The authorities of a PEM text; none that cannot be read.
#[must_use]
pub fn roots_of(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem.as_bytes()).flatten());
    roots
}

/// A server that asks clients for certificates of these authorities, and serves those without one too.
///
/// # Errors
/// When the files cannot be used.
pub fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    client_cas: Option<RootCertStore>,
    alpn: &[&str],
) -> Result<ServerConfig, TlsError> {
    let verifier: Arc<dyn ClientCertVerifier> = match client_cas {
        Some(roots) => WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::ClientCa)?,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

/// A self-signed serving certificate, kept as `<name>.crt` and `<name>.key` in `dir` if one is given.
///
/// # Errors
/// When it cannot be made or written.
pub fn self_signed(name: &str, hosts: &[String], dir: Option<&Path>) -> Result<Arc<dyn ResolvesServerCert>, TlsError> {
    if let Some(dir) = dir {
        let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        if !cert.exists() || !key.exists() {
            let made = rcgen::generate_simple_self_signed(hosts.to_vec())?;
            std::fs::create_dir_all(dir).map_err(|source| TlsError::Write { path: dir.to_owned(), source })?;
            write(&key, &made.signing_key.serialize_pem(), 0o600)?;
            write(&cert, &made.cert.pem(), 0o644)?;
        }
        return Ok(Arc::new(ReloadingCertificate::open(&cert, &key)?));
    }
    let made = rcgen::generate_simple_self_signed(hosts.to_vec())?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let key = CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider())?;
    Ok(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| TlsError::Write { path: path.to_owned(), source })
}

/// Takes any certificate that its server can sign for: upstream does so for kubelets when no authority is configured, for
/// what it proxies to, for probes, and where an object says `insecureSkipTLSVerify`.
#[derive(Debug)]
pub struct AnyServer(WebPkiSupportedAlgorithms);

impl AnyServer {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "what it trusts should be written out")]
    pub fn new() -> Self {
        AnyServer(provider().signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Asks clients for a certificate and takes any that they can sign for. Whose it is and whether anybody vouches for it is
/// authentication's business: a certificate that is not good must give 401, not a broken connection, and a request may
/// come with a token besides.
#[derive(Debug)]
pub struct AnyClient(WebPkiSupportedAlgorithms);

impl AnyClient {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "what it trusts should be written out")]
    pub fn new() -> Self {
        AnyClient(provider().signature_verification_algorithms)
    }
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(min_version: &str, suites: &[&str], want: Result<(usize, usize), &[&str]>) {
        let suites: Vec<String> = suites.iter().map(ToString::to_string).collect();
        let spoken = Spoken::of_flags(Some(min_version), &suites);
        let told = spoken.as_ref().map(|spoken| (spoken.versions.len(), spoken.suites.len()));
        assert_eq!(
            told.map_err(|wrong| wrong.iter().map(String::as_str).collect::<Vec<_>>()),
            want.map_err(<[_]>::to_vec)
        );
        assert!(spoken.is_err() || spoken.unwrap().server().is_ok());
    }

    #[test]
    fn versions_and_suites_have_gos_names() {
        check("", &[], Ok((2, 9)));
        check("VersionTLS13", &[], Ok((1, 9)));
        let both = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"];
        check("VersionTLS12", &both, Ok((2, 5)));
        check("", &["TLS_AES_128_GCM_SHA256"], Ok((2, 3)));
        check(
            "VersionTLS11",
            &["TLS_RSA_WITH_AES_128_CBC_SHA"],
            Err(&[
                "--tls-min-version VersionTLS11 is not supported: nothing older than TLS 1.2 is spoken",
                "Cipher suite TLS_RSA_WITH_AES_128_CBC_SHA not supported or doesn't exist",
            ]),
        );
        check("1.2", &[], Err(&["unknown tls version \"1.2\""]));
    }

    #[test]
    fn a_self_signed_certificate_is_kept_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = ["localhost".to_owned()];
        self_signed("kubelet", &hosts, Some(dir.path())).unwrap();
        let first = std::fs::read(dir.path().join("kubelet.crt")).unwrap();
        self_signed("kubelet", &hosts, Some(dir.path())).unwrap();
        assert_eq!(std::fs::read(dir.path().join("kubelet.crt")).unwrap(), first);
        assert!(load_roots(&dir.path().join("kubelet.crt")).is_ok());
        assert!(matches!(load_certificates(&dir.path().join("none")), Err(TlsError::Read { .. })));
    }
}
