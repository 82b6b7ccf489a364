//! Requests that are passed on: to kubelets (logs, exec, attach, port-forward) and through nodes, pods and Services.
//!
//! Everything is authorized before anything is dialled. Each request has a connection of its own, so that nothing of one
//! can be read by another; an upgrade is tunnelled only after the other side has agreed to it with a 101.

mod connect;
mod forward;
mod html;
mod log_options;
mod nodes;
mod pods;
mod services;

use apimachinery::status::Status;
use http::Response;

use crate::admission::Operation;
use crate::body::{Body, RequestBody};
use crate::handlers::{Call, Target, write_of};
use crate::registry::WriteOptions;

pub(crate) use connect::KubeletTls;
pub(crate) use forward::forward;

/// Where a request is passed on to.
pub(crate) struct Destination {
    pub host: String,
    pub port: u16,
    /// `None`: plain HTTP.
    pub tls: Option<std::sync::Arc<rustls::ClientConfig>>,
    /// The address to dial, resolved once: what was checked is what is dialled.
    pub address: std::net::SocketAddr,
    pub path_and_query: String,
}

/// In the extensions of an answer: its body is another server's, of which nothing is known here.
#[derive(Clone, Copy)]
pub(crate) struct PassedOn;

/// Answers the subresources that are passed on.
///
/// # Errors
/// When there is nobody to pass the request on to, or nobody answers.
pub(crate) async fn handle(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let subresource = call.info.subresource.clone();
    if subresource != "log" {
        admit_connect(call, target).await?;
    }
    match (target.resource.def.gvr.resource.as_str(), subresource.as_str()) {
        ("pods", "log") => pods::log(call, target).await,
        ("pods", "exec" | "attach" | "portforward") => pods::stream(call, target, &subresource, body).await,
        ("pods", "proxy") => pods::proxy(call, target, body).await,
        ("nodes", "proxy") => nodes::proxy(call, body).await,
        ("services", "proxy") => services::proxy(call, body).await,
        _ => Err(Status::no_such_path()),
    }
}

/// Admission sees a connection as it sees a write.
async fn admit_connect(call: &mut Call, target: &Target) -> Result<(), Status> {
    let write = write_of(call, target, WriteOptions::default());
    let mut options = apimachinery::Value::object();
    for (key, value) in call.query.iter() {
        options.set(&[key], value);
    }
    let mut request = write.admission_request(Operation::Connect, options, apimachinery::Value::Null);
    let registry = call.server.registry();
    registry.admission.admit(&mut request).await?;
    registry.admission.validate(&mut request).await
}

/// `[scheme:]name[:port]`, as the names of proxied objects are written.
struct ProxyName<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> ProxyName<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme @ ("http" | "https" | ""), name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (!name.is_empty()).then_some(ProxyName { scheme, name, port })
    }
}

/// The path of a request up to and with `/proxy`, and what is behind it, as the client sent them.
fn split_path(call: &Call) -> (&str, &str) {
    split_behind_proxy(call.parts.uri.path(), !call.info.namespace.is_empty())
}

/// Groups, namespaces and names cannot hold a slash, so that `proxy` stands in a certain place.
fn split_behind_proxy(path: &str, namespaced: bool) -> (&str, &str) {
    let start = path.len() - path.trim_start_matches('/').len();
    let parts = if namespaced { 7 } else { 5 };
    let end = path[start..].match_indices('/').nth(parts - 1).map_or(path.len(), |(at, _)| start + at);
    path.split_at(end)
}

/// The path behind `/proxy`, with the query, as the client sent them.
fn rest_of(call: &Call) -> String {
    let (_, rest) = split_path(call);
    let path = if rest.is_empty() { "/" } else { rest };
    match call.parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// Adds a parameter to a query.
fn push_parameter(query: &mut String, key: &str, value: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(key);
    query.push('=');
    query.push_str(&crate::query::encode(value));
}

/// An address that a pod or a Service may lead to. What only this machine can reach is not for clients of the API.
fn check_proxyable(ip: std::net::IpAddr) -> Result<(), Status> {
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_loopback() || link_local || ip.is_unspecified() || ip.is_multicast() {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_a_scheme_and_a_port() {
        let parts = |text| ProxyName::parse(text).map(|n| (n.scheme, n.name, n.port));
        assert_eq!(parts("a"), Some(("", "a", "")));
        assert_eq!(parts("a:80"), Some(("", "a", "80")));
        assert_eq!(parts("https:a:web"), Some(("https", "a", "web")));
        assert_eq!(parts("ftp:a:80"), None);
        assert_eq!(parts(""), None);
    }

    #[test]
    fn what_is_behind_proxy_is_passed_on() {
        assert_eq!(split_behind_proxy("/api/v1/nodes/n/proxy", false), ("/api/v1/nodes/n/proxy", ""));
        assert_eq!(split_behind_proxy("/api/v1/nodes/n/proxy/a/b/", false), ("/api/v1/nodes/n/proxy", "/a/b/"));
        let service = "/api/v1/namespaces/proxy/services/proxy/proxy";
        assert_eq!(split_behind_proxy(&format!("{service}/proxy"), true), (service, "/proxy"));
    }

    #[test]
    fn parameters_are_encoded() {
        let mut query = String::new();
        push_parameter(&mut query, "command", "echo a&b");
        push_parameter(&mut query, "command", "ü");
        assert_eq!(query, "command=echo%20a%26b&command=%C3%BC");
    }

    #[test]
    fn nobody_is_led_to_this_machine() {
        assert!(check_proxyable([127, 0, 0, 1].into()).is_err());
        assert!(check_proxyable([169, 254, 169, 254].into()).is_err());
        assert!(check_proxyable([10, 0, 0, 1].into()).is_ok());
    }
}
