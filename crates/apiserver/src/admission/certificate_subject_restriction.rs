//! CertificateSubjectRestriction: nobody gets a client certificate of `system:masters`, which no authorizer could refuse.

use apimachinery::status::Status;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::{Operation, Plugin, Request};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const MASTERS: &str = "system:masters";

pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && request.is("certificates.k8s.io", "certificatesigningrequests")
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let spec = &request.object["spec"];
        if spec.str_at(&["signerName"]) != SIGNER {
            return Ok(());
        }
        match organizations(spec.str_at(&["request"])) {
            None => Err(request.forbidden("failed to parse CSR: PEM block type must be CERTIFICATE REQUEST")),
            Some(names) if names.iter().any(|name| name == MASTERS) => {
                Err(request.forbidden(format!("use of {SIGNER} signer with {MASTERS} group is not allowed")))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The organizations in the subject of a request, which is base64 of PEM.
fn organizations(request: &str) -> Option<Vec<String>> {
    let pem = STANDARD.decode(request).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    Some(subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect())
}
