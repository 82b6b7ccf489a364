//! Removes requests that nobody needs any more.

use std::time::Duration;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ignore_not_found,
    informer::{Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, Client, api::DeleteParams};

use super::{conditions, has_certificate};
use crate::{context::Context, error::SyncError};

/// How long requests are kept once they are decided, and how long undecided ones are.
const DECIDED: i64 = 3600;
const PENDING: i64 = 24 * 3600;

pub(crate) struct CleanerController {
    client: Client,
    requests: SharedInformer<CertificateSigningRequest>,
    lister: Lister<CertificateSigningRequest>,
}

impl CleanerController {
    pub(crate) fn new(context: &Context) -> Self {
        let requests = context.informers.informer::<CertificateSigningRequest>();
        Self { client: context.client.clone(), lister: requests.lister(), requests }
    }
}

/// When the request is to go.
fn end_of(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let after = |time: Timestamp, seconds| Timestamp::from_second(time.as_second() + seconds).ok();
    let decided = |types: &[&str]| {
        let condition = conditions(csr).iter().find(|condition| types.contains(&condition.type_.as_str()))?;
        condition.last_update_time.as_ref().map(|time| time.0)
    };
    let created = csr.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let expires = has_certificate(csr).then(|| certificate_end(csr)).flatten();
    let done = match decided(&["Denied", "Failed"]) {
        Some(time) => after(time, DECIDED),
        None => match decided(&["Approved"]) {
            Some(time) if has_certificate(csr) => after(time, DECIDED),
            Some(_) | None => after(created?, PENDING),
        },
    };
    done.into_iter().chain(expires).min()
}

fn certificate_end(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let certificate = csr.status.as_ref()?.certificate.as_ref()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&certificate.0).ok()?;
    Timestamp::from_second(pem.parse_x509().ok()?.validity().not_after.timestamp()).ok()
}

impl Controller for CleanerController {
    const NAME: &'static str = "certificate_cleaner";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.requests);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(csr) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let Some(end) = end_of(&csr) else { return Ok(Action::await_change()) };
        match Duration::try_from(end.duration_since(Timestamp::now())) {
            Ok(left) if !left.is_zero() => Ok(Action::requeue(left)),
            _ => {
                let api = Api::<CertificateSigningRequest>::all(self.client.clone());
                ignore_not_found(api.delete(key.name(), &DeleteParams::default()).await)?;
                Ok(Action::await_change())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        ByteString,
        api::certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    fn check(condition: Option<&str>, certificate: &[u8], want: i64) {
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let condition = condition.map(|type_| CertificateSigningRequestCondition {
            type_: type_.into(),
            last_update_time: at(1000),
            ..Default::default()
        });
        let mut csr = CertificateSigningRequest {
            status: Some(CertificateSigningRequestStatus {
                conditions: Some(condition.into_iter().collect()),
                certificate: Some(ByteString(certificate.to_vec())),
            }),
            ..Default::default()
        };
        csr.metadata.creation_timestamp = at(0);
        assert_eq!(end_of(&csr).map(Timestamp::as_second), Some(want));
    }

    #[test]
    fn decided_requests_go_after_an_hour_and_others_after_a_day() {
        check(None, b"", PENDING);
        check(Some("Approved"), b"", PENDING);
        check(Some("Approved"), b"x", 1000 + DECIDED);
        check(Some("Denied"), b"", 1000 + DECIDED);
    }
}
