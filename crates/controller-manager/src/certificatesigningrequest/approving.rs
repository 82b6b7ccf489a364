//! Approves kubelets' requests for client certificates, if the requester may have them.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    informer::{Lister, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{
            CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
        },
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, Client, api::PostParams};

use super::{
    has_certificate, has_condition,
    request::{KUBE_APISERVER_CLIENT_KUBELET, Request},
};
use crate::{context::Context, error::SyncError};

pub(crate) struct ApprovingController {
    client: Client,
    requests: SharedInformer<CertificateSigningRequest>,
    lister: Lister<CertificateSigningRequest>,
}

impl ApprovingController {
    pub(crate) fn new(context: &Context) -> Self {
        let requests = context.informers.informer::<CertificateSigningRequest>();
        Self { client: context.client.clone(), lister: requests.lister(), requests }
    }

    async fn may(&self, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool, kube::Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    version: Some("*".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let review =
            Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}

/// The rights that would do, with what is said when one does: a node that asks for itself, and one that asks for another.
const RIGHTS: [(&str, &str); 2] = [
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
];

impl Controller for ApprovingController {
    const NAME: &'static str = "certificate_approving";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.requests);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(csr) = self.lister.get(key) else { return Ok(Action::await_change()) };
        let decided = has_certificate(&csr) || has_condition(&csr, "Approved") || has_condition(&csr, "Denied");
        if decided || csr.spec.signer_name != KUBE_APISERVER_CLIENT_KUBELET {
            return Ok(Action::await_change());
        }
        let Ok(request) = Request::parse(&csr.spec) else { return Ok(Action::await_change()) };
        if !request.is_node_client(csr.spec.usages.as_deref().unwrap_or_default()) {
            return Ok(Action::await_change());
        }
        let for_itself = csr.spec.username.as_deref() == Some(request.common_name());
        for (right, message) in RIGHTS {
            if (right == "selfnodeclient" && !for_itself) || !self.may(&csr.spec, right).await? {
                continue;
            }
            let mut csr = (*csr).clone();
            let now = Some(Time(Timestamp::now()));
            let approved = CertificateSigningRequestCondition {
                type_: "Approved".to_owned(),
                status: "True".to_owned(),
                reason: Some("AutoApproved".to_owned()),
                message: Some(message.to_owned()),
                last_update_time: now.clone(),
                last_transition_time: now,
            };
            csr.status.get_or_insert_default().conditions.get_or_insert_default().push(approved);
            let api = Api::<CertificateSigningRequest>::all(self.client.clone());
            api.replace_subresource("approval", key.name(), &PostParams::default(), &csr).await?;
            return Ok(Action::await_change());
        }
        // The right may be given later, which nothing tells us.
        Ok(Action::Retry)
    }
}
