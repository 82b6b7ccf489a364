//! Signs approved requests with the cluster's CA.

use std::{path::PathBuf, time::Duration};

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, Client, api::PostParams};
use rcgen::{IsCa, Issuer, KeyPair, SerialNumber};
use time::OffsetDateTime;

use super::{
    has_certificate, has_condition,
    request::{
        KUBE_APISERVER_CLIENT, KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, LEGACY_UNKNOWN, Request, usages_of,
    },
};
use crate::{config::ClusterSigning, context::Context, error::SyncError};

/// Certificates are valid from a little before now, for clocks that are behind; ones that live shorter than this are not.
const BACKDATE: Duration = Duration::from_secs(300);
const SHORT: Duration = Duration::from_secs(8 * 3600);
const SHORTEST: Duration = Duration::from_secs(600);

/// A CA's files, read for every signature: they are needed rarely, and may be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum SignError {
    #[error("cannot read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("cannot sign")]
    Sign(#[from] rcgen::Error),
    #[error("the CA's certificate cannot be read")]
    Certificate,
}

pub(crate) struct SigningController {
    client: Client,
    config: ClusterSigning,
    requests: SharedInformer<CertificateSigningRequest>,
    lister: Lister<CertificateSigningRequest>,
}

impl SigningController {
    pub(crate) fn new(context: &Context, config: ClusterSigning) -> Self {
        let requests = context.informers.informer::<CertificateSigningRequest>();
        Self { client: context.client.clone(), config, lister: requests.lister(), requests }
    }

    fn authority(&self, signer: &str) -> Option<&Authority> {
        match signer {
            KUBE_APISERVER_CLIENT => self.config.kube_apiserver_client.as_ref(),
            KUBE_APISERVER_CLIENT_KUBELET => self.config.kubelet_client.as_ref(),
            KUBELET_SERVING => self.config.kubelet_serving.as_ref(),
            LEGACY_UNKNOWN => self.config.legacy_unknown.as_ref(),
            _ => None,
        }
    }
}

impl Controller for SigningController {
    const NAME: &'static str = "certificate_signing";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.requests);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(csr) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let is_due = has_condition(&csr, "Approved") && !has_condition(&csr, "Denied");
        if !is_due || has_condition(&csr, "Failed") || has_certificate(&csr) {
            return Ok(Action::await_change());
        }
        let Some(authority) = self.authority(&csr.spec.signer_name) else { return Ok(Action::await_change()) };
        let mut csr = (*csr).clone();
        let usages = csr.spec.usages.clone().unwrap_or_default();
        let request = Request::parse(&csr.spec).and_then(|request| {
            request.validate(&csr.spec.signer_name, &usages)?;
            Ok((request, usages_of(&usages)?))
        });
        let status = csr.status.get_or_insert_default();
        match request {
            Ok((mut request, (key_usages, extended_key_usages))) => {
                request.params.params.key_usages = key_usages;
                request.params.params.extended_key_usages = extended_key_usages;
                let life = lifetime(&csr.spec, self.config.duration);
                let signed = sign(request, authority, life, OffsetDateTime::now_utc())
                    .map_err(|err| SyncError::Sign(Box::new(err)))?;
                status.certificate = Some(ByteString(signed.into_bytes()));
            }
            Err(message) => {
                let now = Some(Time(Timestamp::now()));
                status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                    type_: "Failed".to_owned(),
                    status: "True".to_owned(),
                    reason: Some("SignerValidationFailure".to_owned()),
                    message: Some(message),
                    last_update_time: now.clone(),
                    last_transition_time: now,
                });
            }
        }
        let api = Api::<CertificateSigningRequest>::all(self.client.clone());
        api.replace_status(key.name(), &PostParams::default(), &csr).await?;
        Ok(Action::await_change())
    }
}

/// What was asked for, between ten minutes and the longest that we sign for.
fn lifetime(spec: &CertificateSigningRequestSpec, longest: Duration) -> Duration {
    match spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
        None => longest,
        Some(seconds) => Duration::from_secs(seconds).max(SHORTEST).min(longest),
    }
}

/// The certificate in PEM.
fn sign(mut request: Request, authority: &Authority, life: Duration, now: OffsetDateTime) -> Result<String, SignError> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| SignError::Read { path: path.display().to_string(), source })
    };
    let (ca, key) = (read(&authority.certificate)?, KeyPair::from_pem(&read(&authority.key)?)?);
    let ca_ends = end_of(&ca).ok_or(SignError::Certificate)?;
    let issuer = Issuer::from_ca_cert_pem(&ca, key)?;
    let params = &mut request.params.params;
    params.not_before = if life > SHORT { now - BACKDATE } else { now };
    // Nothing outlives what signed it.
    params.not_after = (now + life).min(ca_ends);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    let mut serial = rand::random::<[u8; 16]>();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(request.params.signed_by(&issuer)?.pem())
}

fn end_of(pem: &str) -> Option<OffsetDateTime> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, KeyUsagePurpose};

    use super::{super::request::tests::spec, *};

    fn authority(dir: &std::path::Path, ends: OffsetDateTime) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = ends;
        let authority = Authority { certificate: dir.join("ca.crt"), key: dir.join("ca.key") };
        std::fs::write(&authority.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&authority.key, key.serialize_pem()).unwrap();
        authority
    }

    #[test]
    fn a_certificate_has_the_subject_the_usages_and_an_end_within_its_cas() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let authority = authority(dir.path(), now + Duration::from_secs(3600));
        let mut request = Request::parse(&spec("system:node:n1", "system:nodes", &[])).unwrap();
        request.params.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let pem = sign(request, &authority, Duration::from_secs(86_400), now).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=system:node:n1, O=system:nodes");
        assert_eq!(certificate.validity().not_before.timestamp(), 1_800_000_000 - 300);
        assert_eq!(certificate.validity().not_after.timestamp(), 1_800_000_000 + 3600);
        assert!(certificate.extended_key_usage().unwrap().unwrap().value.client_auth);
        assert!(!certificate.is_ca());
    }

    #[test]
    fn lifetimes_are_kept_within_bounds() {
        let year = Duration::from_secs(365 * 86_400);
        let of = |seconds| {
            let spec = CertificateSigningRequestSpec { expiration_seconds: seconds, ..Default::default() };
            lifetime(&spec, year).as_secs()
        };
        assert_eq!([of(None), of(Some(60)), of(Some(7200)), of(Some(i32::MAX))], [31_536_000, 600, 7200, 31_536_000]);
    }
}
