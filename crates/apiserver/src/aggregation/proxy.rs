//! Passing a request on to an aggregated server, in the name of whoever made it.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::Backend;
use crate::attributes::UserInfo;
use crate::body::{Body, RequestBody};
use crate::handlers::Call;
use crate::nonresource::text;
use crate::outbound::service_address;
use crate::proxy::{Destination, forward};

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";

/// Passes a request on, and its answer back.
pub(crate) async fn handle(mut call: Call, backend: &Backend, body: RequestBody) -> Response<Body> {
    let unavailable = || text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n".to_owned());
    if !backend.available {
        return unavailable();
    }
    let tls = match &backend.tls {
        Ok(tls) => Arc::clone(tls),
        Err(why) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    };
    let lister = call.server.lister();
    let found = service_address(&backend.namespace, &backend.service, backend.port, &*lister);
    let Ok((host, port)) = found else { return unavailable() };
    let Ok(mut addresses) = tokio::net::lookup_host((host.as_str(), port)).await else { return unavailable() };
    let Some(address) = addresses.next() else { return unavailable() };
    let to = Destination {
        host: host_of(backend),
        port: u16::try_from(backend.port).unwrap_or(443),
        tls: Some(tls),
        address,
        path_and_query: call.parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
    };
    let user = Arc::clone(&call.user);
    speak_for(&user, &mut call.parts.headers);
    match forward(&mut call, &to, body).await {
        Ok(answer) => answer,
        Err(status) => {
            let why = status.message.strip_prefix("error dialing backend: ").unwrap_or(&status.message);
            text(StatusCode::SERVICE_UNAVAILABLE, format!("error trying to reach service: {why}\n"))
        }
    }
}

/// The name in the certificate of a backend.
pub(super) fn host_of(backend: &Backend) -> String {
    format!("{}.{}.svc", backend.service, backend.namespace)
}

/// Says in headers who asks. What a client has put there itself goes.
pub(super) fn speak_for(user: &UserInfo, headers: &mut HeaderMap) {
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| [USER, UID, GROUP].contains(name) || name.as_str().starts_with(EXTRA))
        .cloned()
        .collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut add = |name: HeaderName, value: &str| {
        // A name that no header can carry is nobody's name there.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(name, value);
        }
    };
    add(USER, &user.name);
    if !user.uid.is_empty() {
        add(UID, &user.uid);
    }
    for group in &user.groups {
        add(GROUP, group);
    }
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::try_from(format!("{EXTRA}{}", escaped(key))) else { continue };
        for value in values {
            add(name.clone(), value);
        }
    }
}

/// A key of extra information as part of a header's name: in lower case, everything that none may have in percents.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.to_lowercase().bytes() {
        // `%` itself would be allowed, but begins an escape.
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_told_in_headers_and_cannot_be_claimed() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-remote-user", "admin"), ("x-remote-group", "system:masters"), ("x-remote-extra-a", "b")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        let user = UserInfo {
            name: "alice".to_owned(),
            uid: "7".to_owned(),
            groups: vec!["a".to_owned(), "b".to_owned()],
            extra: [("example.com/Scopes".to_owned(), vec!["x".to_owned(), "y".to_owned()])].into(),
        };
        speak_for(&user, &mut headers);
        let mut shown: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "x-remote-extra-example.com%2fscopes: x",
                "x-remote-extra-example.com%2fscopes: y",
                "x-remote-group: a",
                "x-remote-group: b",
                "x-remote-uid: 7",
                "x-remote-user: alice",
            ]
        );
    }
}
