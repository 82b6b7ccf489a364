//! Asking the cluster for one certificate.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use sha2::{Digest, Sha256};

use super::{CertificateError, Purpose};

/// How long a request may wait for somebody's approval.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// What a node asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub purpose: Purpose,
    pub node_name: String,
    /// The names and addresses of a serving certificate.
    pub hosts: Vec<String>,
}

impl Wish {
    /// The request in PKCS #10, as PEM.
    fn signing_request(&self, key: &KeyPair) -> Result<String, rcgen::Error> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        parameters.distinguished_name.push(DnType::CommonName, format!("system:node:{}", self.node_name));
        for host in &self.hosts {
            parameters.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        parameters.serialize_request(key)?.pem()
    }
}

/// Asks for a certificate for `key` and waits until it is issued; gives it followed by its key, in PEM. A request that was
/// made with the same key before is waited for instead of made again.
pub(super) async fn ask(client: &Client, wish: &Wish, key: &KeyPair) -> Result<String, CertificateError> {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = name_of(key);
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(wish.signing_request(key)?.into_bytes()),
            signer_name: wish.purpose.signer().to_owned(),
            usages: Some(wish.purpose.usages().map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    match requests.create(&PostParams::default(), &request).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(CertificateError::Create(Box::new(error))),
        Ok(_) => tracing::info!(name, signer = wish.purpose.signer(), "asked for a certificate"),
    }
    let answered = await_condition(requests, &name, |request: Option<&CertificateSigningRequest>| {
        request.is_none_or(|request| answer(request).is_some())
    });
    let answered = tokio::time::timeout(PATIENCE, answered).await;
    let request = answered
        .map_err(|_| CertificateError::Unanswered(name.clone()))?
        .map_err(|error| CertificateError::Watch(Box::new(error)))?;
    match request.as_ref().and_then(answer) {
        Some(Ok(certificate)) => Ok(certificate + &key.serialize_pem()),
        Some(Err(error)) => Err(error),
        None => Err(CertificateError::Unanswered(name)), // it is gone
    }
}

/// As upstream names what a bootstrapping node asks for: by its key, so that the same key is asked for once.
fn name_of(key: &KeyPair) -> String {
    use base64::Engine;
    let digest = Sha256::digest(key.public_key_raw());
    let digest = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest);
    // Names of objects have no capitals; what is left of 256 bits is still unique.
    let digest: String = digest.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    format!("node-csr-{digest}")
}

/// What was decided: the certificate, or why there is none. `None`: nothing yet.
fn answer(request: &CertificateSigningRequest) -> Option<Result<String, CertificateError>> {
    let status = request.status.as_ref()?;
    let refused = status.conditions.iter().flatten().find(|c| ["Denied", "Failed"].contains(&c.type_.as_str()));
    if let Some(condition) = refused {
        return Some(Err(CertificateError::Refused {
            name: request.metadata.name.clone().unwrap_or_default(),
            outcome: condition.type_.to_lowercase(),
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
        }));
    }
    let certificate = String::from_utf8(status.certificate.as_ref()?.0.clone()).ok()?;
    Some(Ok(certificate)).filter(|_| status.conditions.iter().flatten().any(|c| c.type_ == "Approved"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestStatus};
    use x509_parser::prelude::FromDer;

    use super::*;

    #[test]
    fn a_request_names_the_node_and_its_hosts() {
        let hosts = vec!["node-1".to_owned(), "198.19.0.1".to_owned(), "2001:db8::1".to_owned()];
        let wish = Wish { purpose: Purpose::Serving, node_name: "node-1".to_owned(), hosts };
        let pem = wish.signing_request(&KeyPair::generate().unwrap()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, request) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents).unwrap();
        let subject = request.certification_request_info.subject.to_string();
        assert_eq!(subject, "O=system:nodes, CN=system:node:node-1");
        let names: Vec<String> = request
            .requested_extensions()
            .unwrap()
            .filter_map(|extension| match extension {
                x509_parser::extensions::ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })
            .flatten()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].contains("node-1"), "{names:?}");
    }

    #[test]
    fn a_request_is_answered_by_its_certificate_or_its_refusal() {
        let with = |conditions: &[&str], certificate: Option<&str>| CertificateSigningRequest {
            status: Some(CertificateSigningRequestStatus {
                certificate: certificate.map(|text| ByteString(text.as_bytes().to_vec())),
                conditions: Some(
                    conditions
                        .iter()
                        .map(|type_| CertificateSigningRequestCondition {
                            type_: (*type_).to_owned(),
                            reason: Some("Because".to_owned()),
                            ..CertificateSigningRequestCondition::default()
                        })
                        .collect(),
                ),
            }),
            ..CertificateSigningRequest::default()
        };
        assert!(answer(&CertificateSigningRequest::default()).is_none());
        assert!(answer(&with(&["Approved"], None)).is_none());
        assert!(answer(&with(&[], Some("certificate"))).is_none(), "not approved");
        assert_eq!(answer(&with(&["Approved"], Some("certificate"))).unwrap().unwrap(), "certificate");
        for refusal in ["Denied", "Failed"] {
            let error = answer(&with(&["Approved", refusal], None)).unwrap().unwrap_err().to_string();
            assert!(error.contains(&refusal.to_lowercase()) && error.contains("Because"), "{error}");
        }
    }
}
