//! The users of a static token file.

use std::collections::HashMap;

use async_trait::async_trait;
use http::header;
use http::request::Parts;

use crate::attributes::UserInfo;
use crate::authn::{Authenticated, Authenticator, Outcome};

pub(crate) struct TokenFile(HashMap<String, UserInfo>);

impl TokenFile {
    /// `token,user,uid[,"group,group"]` a line.
    pub(crate) fn parse(text: &str) -> Self {
        let users = text.lines().filter_map(|line| {
            let mut parts = line.splitn(4, ',').map(str::trim);
            let (token, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
            let mut groups: Vec<String> = parts
                .next()
                .map(|g| g.trim_matches('"').split(',').map(|g| g.trim().to_owned()).collect())
                .unwrap_or_default();
            groups.push("system:authenticated".into());
            let user = UserInfo { name: name.into(), uid: uid.into(), groups, ..UserInfo::default() };
            Some((token.to_owned(), user))
        });
        TokenFile(users.collect())
    }
}

#[async_trait]
impl Authenticator for TokenFile {
    async fn authenticate(&self, request: &Parts) -> Outcome {
        let header = request.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let Some(token) = header.and_then(|h| h.strip_prefix("Bearer ")) else { return Outcome::Pass };
        match self.0.get(token.trim()) {
            Some(user) => Outcome::User(Authenticated { user: user.clone(), audiences: Vec::new() }),
            None => Outcome::Failed("invalid bearer token".into()),
        }
    }
}
