//! Impersonation: a request that asks, in headers, to be treated as another user's.
//!
//! The requestor must be allowed to be that user and, unless it holds the old all-embracing right, to do this very thing as
//! that user (KEP-5284). Whoever gets past here is the other user to everything behind: authorization, admission and the
//! handlers see nobody else, and the headers are gone.

mod modes;

use std::sync::Arc;

use apimachinery::status::Status;
use component_base::feature_gates::FeatureGates;
use http::HeaderMap;

use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::authz::{self, Authorizer};
use crate::gates::CONSTRAINED_IMPERSONATION;
use modes::{Check, Mode};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// Takes the headers of impersonation out of a request.
///
/// # Errors
/// 400 for anything of a user without the user's name.
pub(crate) fn take_wanted(headers: &mut HeaderMap) -> Result<Option<UserInfo>, Status> {
    let named: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    if named.is_empty() {
        return Ok(None);
    }
    let mut wanted = UserInfo::default();
    let mut asked = false;
    for name in named {
        let values: Vec<String> = headers.get_all(&name).iter().map(text_of).collect();
        match name.as_str() {
            USER => wanted.name = values.into_iter().next().unwrap_or_default(),
            UID => wanted.uid = values.into_iter().next().unwrap_or_default(),
            GROUP => wanted.groups = values,
            other => {
                let Some(key) = other.strip_prefix(EXTRA) else { continue };
                asked = true;
                wanted.extra.entry(crate::query::decode_path(key)).or_default().extend(values);
            }
        }
        headers.remove(&name);
    }
    asked |= !wanted.uid.is_empty() || !wanted.groups.is_empty();
    match (wanted.name.is_empty(), asked) {
        (false, _) => Ok(Some(wanted)),
        (true, false) => Ok(None),
        (true, true) => {
            let shown = in_go(&wanted);
            Err(Status::bad_request(format!("requested {shown} without impersonating a user name")))
        }
    }
}

fn text_of(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// A user as Go prints one: upstream's message shows it so.
fn in_go(user: &UserInfo) -> String {
    let list = |items: &[String]| match items {
        [] => "[]string(nil)".to_owned(),
        items => format!("[]string{{{}}}", items.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>().join(", ")),
    };
    let extra = if user.extra.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        let pairs = user.extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values)));
        format!("map[string][]string{{{}}}", pairs.collect::<Vec<_>>().join(", "))
    };
    let groups = list(&user.groups);
    format!("&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{groups}, Extra:{extra}}}", user.name, user.uid)
}

/// The user that a request goes on as.
///
/// # Errors
/// 403, for the first mode that fits the wanted user, when no mode lets the requestor be that user.
pub(crate) async fn impersonate(
    authorizers: &[Arc<dyn Authorizer>],
    requestor: &Arc<UserInfo>,
    wanted: &UserInfo,
    request: &Arc<RequestInfo>,
    gates: &FeatureGates,
) -> Result<Arc<UserInfo>, Status> {
    let constrained = gates.enabled(CONSTRAINED_IMPERSONATION);
    let mut refused = None;
    for mode in modes::MODES.into_iter().filter(|mode| constrained || *mode == Mode::Legacy) {
        let Some(plan) = modes::plan(mode, requestor, wanted, request) else { continue };
        match check(authorizers, &plan.checks).await {
            Ok(()) => {
                let user = plan.user;
                tracing::info!(
                    requestor = requestor.name,
                    user = user.name,
                    mode = mode.name(),
                    "a request is made as another user"
                );
                return Ok(Arc::new(user));
            }
            Err(status) => refused = refused.or(Some(status)),
        }
    }
    Err(refused.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

async fn check(authorizers: &[Arc<dyn Authorizer>], checks: &[Check]) -> Result<(), Status> {
    for check in checks {
        let (all_at_once, each) = match check {
            Check::Ask { all_at_once, each } => (all_at_once, each),
            Check::Never(status) => return Err(status.clone()),
        };
        if let Some(question) = all_at_once
            && authz::decide(authorizers, question).await.is_ok()
        {
            continue;
        }
        for question in each {
            authz::decide(authorizers, question).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pairs: &[(&'static str, &'static str)]) -> (String, usize) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        let shown = match take_wanted(&mut headers) {
            Ok(Some(user)) => in_go(&user),
            Ok(None) => "nobody".to_owned(),
            Err(status) => status.message,
        };
        (shown, headers.len())
    }

    #[test]
    fn headers_name_a_user_and_are_taken_away() {
        let (shown, left) = taken(&[
            ("impersonate-user", "zoe"),
            ("impersonate-group", "g1"),
            ("impersonate-group", "g2"),
            ("impersonate-uid", "42"),
            ("impersonate-extra-reason%2fwhy", "test"),
            ("accept", "*/*"),
        ]);
        assert_eq!(
            shown,
            r#"&user.DefaultInfo{Name:"zoe", UID:"42", Groups:[]string{"g1", "g2"}, Extra:map[string][]string{"reason/why":[]string{"test"}}}"#
        );
        assert_eq!(left, 1);
        assert_eq!(taken(&[("accept", "*/*")]), ("nobody".to_owned(), 1));
    }

    #[test]
    fn groups_without_a_user_are_refused() {
        let (shown, _) = taken(&[("impersonate-group", "g1")]);
        assert_eq!(
            shown,
            r#"requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"g1"}, Extra:map[string][]string(nil)} without impersonating a user name"#
        );
    }
}
