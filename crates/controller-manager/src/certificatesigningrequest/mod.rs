//! Approves the requests of kubelets for their own certificates, signs what is approved, and removes old requests.

mod approving;
mod cleaner;
mod request;
mod signing;

pub(crate) use approving::ApprovingController;
pub(crate) use cleaner::CleanerController;
pub use signing::Authority;
pub(crate) use signing::SigningController;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

fn conditions(csr: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    csr.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn has_condition(csr: &CertificateSigningRequest, condition_type: &str) -> bool {
    conditions(csr).iter().any(|condition| condition.type_ == condition_type)
}

fn has_certificate(csr: &CertificateSigningRequest) -> bool {
    let certificate = csr.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}
