//! CertificateApproval, CertificateSigning and ClusterTrustBundleAttest: who speaks for a signer needs the right to.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::authz::{Authorizer, decide};

const GROUP: &str = "certificates.k8s.io";

/// One of the three plugins.
pub(super) struct SignerRight {
    pub authorizers: Vec<Arc<dyn Authorizer>>,
    pub right: &'static Right,
}

pub(super) struct Right {
    plugin: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verb: &'static str,
    words: &'static str,
    /// What the right is not needed for.
    is_harmless: fn(&Request) -> bool,
}

pub(super) const APPROVE: Right = Right {
    plugin: "CertificateApproval",
    resource: "certificatesigningrequests",
    subresource: "approval",
    verb: "approve",
    words: "approve requests with",
    is_harmless: |_| false,
};

pub(super) const SIGN: Right = Right {
    plugin: "CertificateSigning",
    resource: "certificatesigningrequests",
    subresource: "status",
    verb: "sign",
    words: "sign requests with",
    is_harmless: |request| request.object["status"] == request.old_object["status"],
};

pub(super) const ATTEST: Right = Right {
    plugin: "ClusterTrustBundleAttest",
    resource: "clustertrustbundles",
    subresource: "",
    verb: "attest",
    words: "attest for",
    is_harmless: |request| {
        let unchanged = request.operation == Operation::Update && request.object["spec"] == request.old_object["spec"];
        unchanged || request.object.str_at(&["spec", "signerName"]).is_empty()
    },
};

#[async_trait]
impl Plugin for SignerRight {
    fn name(&self) -> &'static str {
        self.right.plugin
    }

    fn handles(&self, request: &Request) -> bool {
        let creates = request.operation == Operation::Create && self.right.subresource.is_empty();
        request.gvr.group == GROUP
            && request.gvr.resource == self.right.resource
            && request.subresource == self.right.subresource
            && (creates || request.operation == Operation::Update)
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        if (self.right.is_harmless)(request) {
            return Ok(());
        }
        // What is stored counts: the name cannot change, and the sender may have said anything.
        let stored: &Value = if request.old_object.is_null() { &request.object } else { &request.old_object };
        let signer = stored.str_at(&["spec", "signerName"]);
        if may(&self.authorizers, &request.user, self.right.verb, signer).await {
            return Ok(());
        }
        Err(request.forbidden(format!("user not permitted to {} signerName {signer:?}", self.right.words)))
    }
}

/// A right for one signer, or for all of its domain.
async fn may(authorizers: &[Arc<dyn Authorizer>], user: &Arc<UserInfo>, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let asked = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            gvr: Gvr::new(GROUP, "*", "signers"),
            name,
            ..RequestInfo::default()
        };
        let asked = Attributes { user: Arc::clone(user), request: Arc::new(asked) };
        if decide(authorizers, &asked).await.is_ok() {
            return true;
        }
    }
    false
}
