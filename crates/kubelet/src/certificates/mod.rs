//! Certificates that the cluster signs for its node (TLS bootstrapping): asked for by CertificateSigningRequests, kept in the
//! certificate directory under upstream's names, and renewed while the ones before are still good.

mod bootstrap;
mod request;
mod rotation;
mod store;

pub use bootstrap::{Bootstrap, bootstrap};
pub(crate) use request::Wish;
pub(crate) use rotation::{ServingCertificate, rotate};

use std::path::PathBuf;

use component_base::tls::TlsError;

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Kubeconfig { path: PathBuf, problem: String },
    #[error(transparent)]
    Client(#[from] client::config::ConfigError),
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot create certificate signing request: {0}")]
    Create(#[source] Box<kube::Error>),
    #[error("cannot watch on the certificate signing request: {0}")]
    Watch(#[source] Box<kube::runtime::wait::Error>),
    #[error("certificate signing request {name} is {outcome}, reason: {reason}, message: {message}")]
    Refused { name: String, outcome: String, reason: String, message: String },
    #[error("certificate signing request {0} was not answered in time")]
    Unanswered(String),
}

/// What a certificate of a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    /// The start of its files' names.
    fn prefix(self) -> &'static str {
        match self {
            Purpose::Client => "kubelet-client",
            Purpose::Serving => "kubelet-server",
        }
    }

    fn signer(self) -> &'static str {
        match self {
            Purpose::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Purpose::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// Without key encipherment, which keys of elliptic curves cannot do.
    fn usages(self) -> [&'static str; 2] {
        match self {
            Purpose::Client => ["digital signature", "client auth"],
            Purpose::Serving => ["digital signature", "server auth"],
        }
    }
}
