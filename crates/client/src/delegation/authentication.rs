//! Who somebody is: whom a proxy speaks for, whose certificate or token it is, or nobody in particular.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use component_base::secure_port::{Believed, Lookup, ProxyHeaders, SecurePort};
use component_base::serving::PeerCertificates;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use super::authorities::{Authorities, vouches};
use super::{Answers, Error, user};

const AUTHENTICATED: &str = "system:authenticated";
/// How long what the cluster says of its authorities is believed.
const LOOKED_UP_FOR: Duration = Duration::from_secs(60);

pub(super) struct Authentication {
    client: Client,
    of_files: Authorities,
    lookup: Lookup,
    of_cluster: Mutex<Option<(Authorities, Instant)>>,
    believed: Believed,
    tokens: Answers<String, Option<UserInfo>>,
}

impl Authentication {
    pub(super) async fn new(port: &SecurePort, client: Client) -> Result<Self, Error> {
        let authentication = Self {
            client,
            of_files: Authorities::of_files(port)?,
            lookup: port.lookup,
            of_cluster: Mutex::default(),
            believed: port.believed,
            tokens: Answers::new(),
        };
        match authentication.look_up().await {
            Err(error) if port.lookup == Lookup::Needed => Err(Error::Lookup(error)),
            Err(error) => {
                tracing::warn!(%error, "the cluster's authorities of client certificates are not known yet");
                Ok(authentication)
            }
            Ok(()) => Ok(authentication),
        }
    }

    /// The user of a request. `None`: the credentials are nobody's.
    pub(super) async fn user_of(&self, request: &Parts) -> Result<Option<UserInfo>, kube::Error> {
        let peer = request.extensions.get::<PeerCertificates>().filter(|peer| !peer.0.is_empty());
        let authorities = match peer {
            Some(_) => self.authorities().await,
            None => Authorities::default(),
        };
        if let (Some(peer), Some((verifier, headers))) = (peer, &authorities.proxies)
            && let Some(user) = user_of_headers(&request.headers, headers)
            && vouches(verifier, peer)
            && is_allowed(peer, &headers.allowed_names)
        {
            return Ok(Some(user));
        }
        if let (Some(peer), Some(verifier)) = (peer, &authorities.clients)
            && vouches(verifier, peer)
        {
            return Ok(user_of_certificate(peer));
        }
        if let Some(token) = bearer(&request.headers) {
            return self.user_of_token(token).await;
        }
        // A certificate that nobody vouches for is worse than none.
        let anonymous = || user("system:anonymous", ["system:unauthenticated".to_owned()]);
        Ok(peer.is_none().then(anonymous))
    }

    async fn user_of_token(&self, token: &str) -> Result<Option<UserInfo>, kube::Error> {
        if let Some(known) = self.tokens.get(&token.to_owned()) {
            return Ok(known);
        }
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let status = review.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        self.tokens.keep(token.to_owned(), user.clone(), self.believed.token);
        Ok(user)
    }

    async fn authorities(&self) -> Authorities {
        let known = self.of_cluster.lock().as_ref().is_some_and(|(_, at)| at.elapsed() < LOOKED_UP_FOR);
        if !known && let Err(error) = self.look_up().await {
            tracing::warn!(%error, "the cluster's authorities of client certificates cannot be read");
        }
        let of_cluster = self.of_cluster.lock().as_ref().map(|(authorities, _)| authorities.clone());
        self.of_files.clone().or(of_cluster.unwrap_or_default())
    }

    async fn look_up(&self) -> Result<(), kube::Error> {
        if self.lookup == Lookup::Never {
            return Ok(());
        }
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), "kube-system");
        let map = api.get("extension-apiserver-authentication").await?;
        *self.of_cluster.lock() = Some((Authorities::of_cluster(&map), Instant::now()));
        Ok(())
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// The common name and the organizations of a certificate that somebody vouches for.
fn user_of_certificate(peer: &PeerCertificates) -> Option<UserInfo> {
    let (_, certificate) = x509_parser::parse_x509_certificate(peer.0.first()?).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let groups = certificate.subject().iter_organization().filter_map(|group| group.as_str().ok());
    Some(user(name, groups.map(str::to_owned).chain([AUTHENTICATED.to_owned()])))
}

/// May this certificate be a proxy's? Any may if none are named.
fn is_allowed(peer: &PeerCertificates, names: &[String]) -> bool {
    names.is_empty()
        || user_of_certificate(peer).and_then(|user| user.username).is_some_and(|name| names.contains(&name))
}

/// Whom a proxy speaks for.
fn user_of_headers(headers: &HeaderMap, names: &ProxyHeaders) -> Option<UserInfo> {
    let values = |name: &String| {
        let all = headers.get_all(name.as_str()).iter().filter_map(|value| value.to_str().ok());
        all.filter(|value| !value.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let name = names.user.iter().flat_map(values).next()?;
    let mut groups: Vec<String> = names.group.iter().flat_map(values).collect();
    if name != "system:anonymous" && !groups.iter().any(|group| group == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for prefix in names.extra_prefix.iter().map(|prefix| prefix.to_lowercase()) {
        for (header, value) in headers {
            if let (Some(key), Ok(value)) = (header.as_str().strip_prefix(&prefix), value.to_str()) {
                extra.entry(key.to_owned()).or_default().push(value.to_owned());
            }
        }
    }
    let uid = names.uid.iter().flat_map(values).next();
    Some(UserInfo { uid, extra: Some(extra).filter(|extra| !extra.is_empty()), ..user(&name, groups) })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], want: Option<(&str, &[&str])>) {
        let names = ProxyHeaders {
            user: vec!["X-Remote-User".to_owned()],
            uid: vec!["x-remote-uid".to_owned()],
            group: vec!["x-remote-group".to_owned()],
            extra_prefix: vec!["X-Remote-Extra-".to_owned()],
            ..ProxyHeaders::default()
        };
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let user = user_of_headers(&headers, &names);
        let got = user.map(|user| (user.username.unwrap(), user.groups.unwrap()));
        assert_eq!(got, want.map(|(name, groups)| (name.to_owned(), groups.iter().map(ToString::to_string).collect())));
    }

    #[test]
    fn a_proxy_tells_its_user_in_headers() {
        check(&[("x-remote-group", "a")], None);
        check(&[("x-remote-user", "joe")], Some(("joe", &[AUTHENTICATED])));
        check(
            &[("x-remote-user", "joe"), ("x-remote-group", "a"), ("x-remote-group", "b")],
            Some(("joe", &["a", "b", AUTHENTICATED])),
        );
        check(&[("x-remote-user", "system:anonymous")], Some(("system:anonymous", &[])));
    }

    #[test]
    fn a_token_needs_its_scheme() {
        let said = |value: &'static str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(said("bearer x "), Some("x".to_owned()));
        assert_eq!(said("Bearer "), None);
        assert_eq!(said("Basic x"), None);
    }
}
