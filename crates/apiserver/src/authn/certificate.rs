//! Client certificates: the common name is the user, each organization a group. The TLS handshake has verified the chain.

use async_trait::async_trait;
use http::request::Parts;

use super::{Authenticated, Authenticator, Outcome, PeerCertificates};
use crate::attributes::UserInfo;

pub struct ClientCertificates;

#[async_trait]
impl Authenticator for ClientCertificates {
    async fn authenticate(&self, request: &Parts) -> Outcome {
        let Some(leaf) = request.extensions.get::<PeerCertificates>().and_then(|c| c.0.first()) else {
            return Outcome::Pass;
        };
        match user_of(leaf) {
            Ok(user) => Outcome::User(Authenticated { user, audiences: Vec::new() }),
            Err(why) => Outcome::Failed(why),
        }
    }
}

/// The attribute that carries a user's uid in a subject (KEP-5099).
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// The user that a certificate names.
///
/// # Errors
/// When it cannot be read or names nobody.
pub fn user_of(der: &[u8]) -> Result<UserInfo, String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        return Err("the certificate's subject has no common name".to_owned());
    }
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    let uid = subject.iter_attributes().find(|a| a.attr_type().to_id_string() == UID_OID);
    let uid = uid.and_then(|a| a.as_str().ok()).unwrap_or_default().to_owned();
    Ok(UserInfo { name: name.to_owned(), uid, groups, ..UserInfo::default() })
}
