//! An authenticating proxy: a client whose certificate the front proxy's own authority signed speaks for its users in
//! headers.

use std::path::Path;

use async_trait::async_trait;
use http::request::Parts;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Authenticated, Authenticator, Outcome, PeerCertificates};
use crate::attributes::UserInfo;
use crate::config::RequestHeaderConfig;

pub(crate) struct RequestHeaders {
    config: RequestHeaderConfig,
    verifier: std::sync::Arc<dyn ClientCertVerifier>,
}

impl RequestHeaders {
    pub(crate) fn new(config: RequestHeaderConfig, ca: &Path) -> Result<Self, String> {
        let roots: RootCertStore = component_base::tls::load_roots(ca).map_err(|e| e.to_string())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), component_base::tls::provider());
        Ok(RequestHeaders { config, verifier: verifier.build().map_err(|e| e.to_string())? })
    }

    fn trusts(&self, chain: &[Vec<u8>]) -> bool {
        let certificates: Vec<CertificateDer<'_>> = chain.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
        let Some((leaf, others)) = certificates.split_first() else { return false };
        if self.verifier.verify_client_cert(leaf, others, UnixTime::now()).is_err() {
            return false;
        }
        let allowed = &self.config.allowed_names;
        allowed.is_empty() || super::certificate::user_of(leaf).is_ok_and(|user| allowed.contains(&user.name))
    }
}

#[async_trait]
impl Authenticator for RequestHeaders {
    async fn authenticate(&self, request: &Parts) -> Outcome {
        let values = |name: &String| {
            let all = request.headers.get_all(name.as_str()).iter().filter_map(|v| v.to_str().ok());
            all.map(str::to_owned).filter(|v| !v.is_empty()).collect::<Vec<_>>()
        };
        let Some(name) = self.config.username_headers.iter().flat_map(values).next() else { return Outcome::Pass };
        let chain = request.extensions.get::<PeerCertificates>();
        if !chain.is_some_and(|c| self.trusts(&c.0)) {
            return Outcome::Pass; // the headers are anybody's; other credentials may still count
        }
        let mut groups: Vec<String> = self.config.group_headers.iter().flat_map(values).collect();
        if name != "system:anonymous" && !groups.iter().any(|g| g == "system:authenticated") {
            groups.push("system:authenticated".to_owned());
        }
        let mut user = UserInfo { name, groups, ..UserInfo::default() };
        user.uid = self.config.uid_headers.iter().flat_map(values).next().unwrap_or_default();
        for prefix in &self.config.extra_headers_prefix {
            let prefix = prefix.to_lowercase();
            for (header, value) in &request.headers {
                let Some(key) = header.as_str().strip_prefix(&prefix) else { continue };
                let key = crate::query::decode_path(key);
                user.extra.entry(key).or_default().extend(value.to_str().ok().map(str::to_owned));
            }
        }
        Outcome::User(Authenticated { user, audiences: Vec::new() })
    }
}
