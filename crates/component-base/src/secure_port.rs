//! The secure port of a component: upstream's flags of it, and what they say together.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;

use crate::flags::go_duration;
use crate::tls::{AnyClient, ReloadingCertificate, Spoken, TlsError, self_signed};

/// The flags that kube-controller-manager and kube-scheduler share, without the port's number.
#[derive(Debug, Clone, Args)]
pub struct SecurePortFlags {
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// `VersionTLS12` or `VersionTLS13`.
    #[arg(long)]
    pub tls_min_version: Option<String>,
    /// Go's names; those of TLS 1.3 cannot be chosen.
    #[arg(long, value_delimiter = ',')]
    pub tls_cipher_suites: Vec<String>,
    /// Where a certificate that is made for want of another is kept.
    #[arg(long)]
    pub cert_dir: Option<PathBuf>,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub disable_http2_serving: bool,
    /// Who vouches for the requests' client certificates; replaces what the cluster says of it.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Who vouches for proxies that name their users in headers; replaces what the cluster says of them.
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "x-remote-user")]
    pub requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "x-remote-uid")]
    pub requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "x-remote-group")]
    pub requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "x-remote-extra-")]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// kubeconfig for asking the API server who a request is from.
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// Do not ask the cluster who vouches for certificates.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub authentication_skip_lookup: bool,
    /// Serve although the cluster could not be asked who vouches for certificates.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub authentication_tolerate_lookup_failure: Option<bool>,
    #[arg(long, default_value = "10s", value_parser = go_duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// kubeconfig for asking the API server what a request may do.
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Paths that everybody may ask for; one that ends in `*` stands for all that begin so.
    #[arg(long, value_delimiter = ',', default_value = "/healthz,/readyz,/livez")]
    pub authorization_always_allow_paths: Vec<String>,
    #[arg(long, default_value = "10s", value_parser = go_duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    #[arg(long, default_value = "10s", value_parser = go_duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
}

impl SecurePortFlags {
    /// What the flags say for this port; 0 serves nothing. `tolerates`: what holds without
    /// `--authentication-tolerate-lookup-failure`.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn complete(self, port: u16, tolerates: bool) -> Result<Option<SecurePort>, Vec<String>> {
        let mut wrong = Vec::new();
        let certificate = match (self.tls_cert_file, self.tls_private_key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                wrong.push("--tls-cert-file and --tls-private-key-file go together".to_owned());
                None
            }
        };
        let spoken = Spoken::of_flags(self.tls_min_version.as_deref(), &self.tls_cipher_suites);
        let spoken = spoken.unwrap_or_else(|mistakes| {
            wrong.extend(mistakes);
            Spoken::default()
        });
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let looks_up = self.authentication_kubeconfig.is_some() && !self.authentication_skip_lookup;
        let port = SecurePort {
            address: (self.bind_address, port).into(),
            certificate,
            cert_dir: self.cert_dir,
            spoken,
            http2: !self.disable_http2_serving,
            client_ca: self.client_ca_file,
            proxies: self.requestheader_client_ca_file.map(|ca| Proxies {
                ca,
                headers: ProxyHeaders {
                    allowed_names: self.requestheader_allowed_names,
                    user: self.requestheader_username_headers,
                    uid: self.requestheader_uid_headers,
                    group: self.requestheader_group_headers,
                    extra_prefix: self.requestheader_extra_headers_prefix,
                },
            }),
            authentication: self.authentication_kubeconfig,
            authorization: self.authorization_kubeconfig,
            lookup: match (looks_up, self.authentication_tolerate_lookup_failure.unwrap_or(tolerates)) {
                (false, _) => Lookup::Never,
                (true, true) => Lookup::IfPossible,
                (true, false) => Lookup::Needed,
            },
            open_paths: self.authorization_always_allow_paths,
            believed: Believed {
                token: self.authentication_token_webhook_cache_ttl,
                allowed: self.authorization_webhook_cache_authorized_ttl,
                refused: self.authorization_webhook_cache_unauthorized_ttl,
            },
        };
        Ok((port.address.port() != 0).then_some(port))
    }
}

/// The server of health, metrics and configuration, complete.
#[derive(Debug, Clone)]
pub struct SecurePort {
    pub address: SocketAddr,
    /// Certificate and key; one is made without them.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Where a certificate that we make is kept.
    pub cert_dir: Option<PathBuf>,
    pub spoken: Spoken,
    pub http2: bool,
    /// Whom the requests' client certificates have to come from.
    pub client_ca: Option<PathBuf>,
    /// Proxies that speak for their users.
    pub proxies: Option<Proxies>,
    /// Kubeconfigs for asking who somebody is and what they may do; the component's own connection without them.
    pub authentication: Option<PathBuf>,
    pub authorization: Option<PathBuf>,
    /// Is the cluster asked whom certificates have to come from, where the flags do not say it?
    pub lookup: Lookup,
    /// Paths that everybody may ask for.
    pub open_paths: Vec<String>,
    pub believed: Believed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    Never,
    IfPossible,
    Needed,
}

/// Who vouches for proxies, and how they say whom they speak for.
#[derive(Debug, Clone)]
pub struct Proxies {
    pub ca: PathBuf,
    pub headers: ProxyHeaders,
}

/// The names of headers that a proxy tells its user in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyHeaders {
    /// Common names of certificates that may be used for it; all if there are none.
    pub allowed_names: Vec<String>,
    pub user: Vec<String>,
    pub uid: Vec<String>,
    pub group: Vec<String>,
    pub extra_prefix: Vec<String>,
}

/// How long the API server's answers are believed.
#[derive(Debug, Clone, Copy)]
pub struct Believed {
    pub token: Duration,
    pub allowed: Duration,
    pub refused: Duration,
}

impl SecurePort {
    /// Upstream's defaults on this address, with the component's own connection to ask.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        const GOOD_FOR: Duration = Duration::from_secs(10);
        SecurePort {
            address,
            certificate: None,
            cert_dir: None,
            spoken: Spoken::default(),
            http2: true,
            client_ca: None,
            proxies: None,
            authentication: None,
            authorization: None,
            lookup: Lookup::Never,
            open_paths: ["/healthz", "/readyz", "/livez"].map(str::to_owned).into(),
            believed: Believed { token: GOOD_FOR, allowed: GOOD_FOR, refused: GOOD_FOR },
        }
    }

    /// TLS as the port speaks it. Client certificates are asked for and not judged.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn tls(&self, component: &str) -> Result<ServerConfig, TlsError> {
        let certificate: Arc<dyn ResolvesServerCert> = match &self.certificate {
            Some((cert, key)) => Arc::new(ReloadingCertificate::open(cert, key)?),
            None => self_signed(component, &["localhost".to_owned()], self.cert_dir.as_deref())?,
        };
        let verifier = Arc::new(AnyClient::new());
        let mut config = self.spoken.server()?.with_client_cert_verifier(verifier).with_cert_resolver(certificate);
        let protocols: &[&[u8]] = if self.http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        port: SecurePortFlags,
    }

    fn complete(args: &[&str]) -> Result<SecurePort, Vec<String>> {
        let flags: Flags =
            crate::flags::parse("kube-thing", args.iter().map(ToString::to_string)).map_err(|_| vec![])?;
        flags.port.complete(1, false).map(Option::unwrap)
    }

    #[test]
    fn the_cluster_is_asked_only_where_there_is_somebody_to_ask() {
        let lookup = |args: &[&str]| complete(args).unwrap().lookup;
        assert_eq!(lookup(&[]), Lookup::Never);
        assert_eq!(lookup(&["--authentication-kubeconfig=/k"]), Lookup::Needed);
        assert_eq!(lookup(&["--authentication-kubeconfig=/k", "--authentication-skip-lookup"]), Lookup::Never);
        let tolerant = ["--authentication-kubeconfig=/k", "--authentication-tolerate-lookup-failure"];
        assert_eq!(lookup(&tolerant), Lookup::IfPossible);
    }

    #[test]
    fn mistakes_are_told_together() {
        let wrong = complete(&["--tls-cert-file=/c", "--tls-min-version=VersionTLS9"]).unwrap_err();
        assert_eq!(
            wrong,
            ["--tls-cert-file and --tls-private-key-file go together", "unknown tls version \"VersionTLS9\""]
        );
    }
}
