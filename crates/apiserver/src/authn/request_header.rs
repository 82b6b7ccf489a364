//! An authenticating proxy: a client whose certificate the front proxy's own authority signed speaks for its users in
//! headers.

use async_trait::async_trait;
use http::request::Parts;

use super::{Authenticated, Authenticator, Outcome, ProxyCertificates};
use crate::attributes::UserInfo;
use crate::config::RequestHeaderConfig;

pub(crate) struct RequestHeaders {
    config: RequestHeaderConfig,
}

impl RequestHeaders {
    pub(crate) fn new(config: RequestHeaderConfig) -> Self {
        RequestHeaders { config }
    }

    /// The connection has proved that its client is one of the proxies' authority; is it one of those that are meant?
    fn trusts(&self, proxy: &ProxyCertificates) -> bool {
        let allowed = &self.config.allowed_names;
        let named = || proxy.0.0.first().and_then(|leaf| super::certificate::user_of(leaf).ok());
        allowed.is_empty() || named().is_some_and(|user| allowed.contains(&user.name))
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
        if !request.extensions.get::<ProxyCertificates>().is_some_and(|proxy| self.trusts(proxy)) {
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
