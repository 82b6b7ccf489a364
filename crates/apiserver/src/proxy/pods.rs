//! `pods/log`, `pods/exec`, `pods/attach`, `pods/portforward`, `pods/proxy`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::{Details, Status};
use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};

use super::{
    Destination, PassedOn, ProxyName, check_proxyable, connect, forward, log_options, nodes, push_parameter, rest_of,
};
use crate::attributes::{Attributes, RequestInfo};
use crate::authz;
use crate::body::{Body, RequestBody, request_body};
use crate::gates::WEBSOCKET_NEEDS_CREATE;
use crate::handlers::{Call, Target};

/// As much of a kubelet's error is shown, in bytes.
const MAX_ERROR: usize = 50_000;

/// Read from the store: a client may know of the pod from another server, whose cache is ahead of ours.
async fn pod_of(call: &Call, target: &Target, name: &str) -> Result<Arc<Value>, Status> {
    let found = call.server.registry().get(&target.resource, &call.info.namespace, name, "").await?;
    Ok(found.decoded())
}

/// Streams a container's log.
pub(super) async fn log(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let query = log_options::query_of(&call.query, &call.info.name)?;
    let pod = pod_of(call, target, &call.info.name).await?;
    let container = choose_container(&pod, call.query.get("container").unwrap_or_default())?;
    let node = pod.str_at(&["spec", "nodeName"]);
    if node.is_empty() {
        // There is nowhere that a log could be: it is empty.
        return Ok(plain_text(Body::Empty));
    }
    let path = format!("/containerLogs/{}/{}/{container}", pod.namespace(), pod.name());
    let path = if query.is_empty() { path } else { format!("{path}?{query}") };
    let to = nodes::kubelet(&call.server, node, path).await?;
    let empty = request_body(Empty::<Bytes>::new());
    let answer = forward::send(&to, Method::GET, HeaderMap::new(), empty).await?;
    if !answer.status().is_success() {
        return Err(kubelet_error(call, answer).await);
    }
    let mut log = plain_text(Body::stream(answer.into_body()));
    log.extensions_mut().insert(PassedOn);
    Ok(log)
}

fn plain_text(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// What a kubelet has against a request, as a Status.
async fn kubelet_error(call: &Call, answer: Response<hyper::body::Incoming>) -> Status {
    let code = answer.status();
    let text = match Limited::new(answer.into_body(), MAX_ERROR).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    match code {
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        other => {
            let name = &call.info.name;
            let message = format!("the server could not find the requested resource ( pods/log {name})");
            let (reason, message) = match other {
                StatusCode::NOT_FOUND => ("NotFound", message),
                StatusCode::FORBIDDEN => ("Forbidden", text),
                StatusCode::UNAUTHORIZED => {
                    ("Unauthorized", "the server has asked for the client to provide credentials".into())
                }
                _ => ("Unknown", text),
            };
            let details = Details { name: name.clone(), kind: "pods/log".into(), ..Details::default() };
            Status::new(other.as_u16(), reason, message).with_details(details)
        }
    }
}

/// Exec, attach and port-forward: a connection that the kubelet upgrades.
pub(super) async fn stream(
    call: &mut Call,
    target: &Target,
    subresource: &str,
    body: RequestBody,
) -> Result<Response<Body>, Status> {
    let inner = call.server.inner();
    if call.info.verb == "get" && inner.config.feature_gates.enabled(WEBSOCKET_NEEDS_CREATE) {
        // A WebSocket can only begin with a GET; what it does to the pod is more than reading.
        let request = RequestInfo { verb: "create".to_owned(), ..RequestInfo::clone(&call.info) };
        let asked = Attributes { user: Arc::clone(&call.user), request: Arc::new(request) };
        authz::decide(&inner.security.authorizers, &asked).await?;
    }
    let pod = pod_of(call, target, &call.info.name).await?;
    let (namespace, name) = (pod.namespace(), pod.name());
    let mut query = String::new();
    let path = if subresource == "portforward" {
        for ports in call.query.all("ports") {
            for port in ports.split(',').filter(|p| !p.is_empty()) {
                push_parameter(&mut query, "port", port);
            }
        }
        format!("/portForward/{namespace}/{name}")
    } else {
        let container = choose_container(&pod, call.query.get("container").unwrap_or_default())?;
        for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
            if call.query.is_true(ours) {
                push_parameter(&mut query, theirs, "1");
            }
        }
        if subresource == "exec" {
            for word in call.query.all("command") {
                push_parameter(&mut query, "command", word);
            }
        }
        format!("/{subresource}/{namespace}/{name}/{container}")
    };
    let node = pod.str_at(&["spec", "nodeName"]);
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    if call.parts.headers.get(header::UPGRADE).is_none() {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let path = if query.is_empty() { path } else { format!("{path}?{query}") };
    let to = nodes::kubelet(&call.server, node, path).await?;
    forward::forward(call, &to, body).await
}

/// The container that is meant: the named one, or the only one.
fn choose_container(pod: &Value, wanted: &str) -> Result<String, Status> {
    let names =
        |list: &str| -> Vec<&str> { pod.at(&["spec", list]).items().iter().map(|c| c.str_at(&["name"])).collect() };
    let (containers, init) = (names("containers"), names("initContainers"));
    let name = pod.name();
    if wanted.is_empty() {
        return match containers.as_slice() {
            [one] => Ok((*one).to_owned()),
            [] => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
            many => {
                let mut message =
                    format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(Status::bad_request(message))
            }
        };
    }
    let ephemeral = names("ephemeralContainers");
    if [containers, init, ephemeral].iter().any(|list| list.contains(&wanted)) {
        Ok(wanted.to_owned())
    } else {
        Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")))
    }
}

pub(super) async fn proxy(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let name = call.info.name.clone();
    let bad = || Status::bad_request(format!("invalid pod request {name:?}"));
    let parsed = ProxyName::parse(&name).ok_or_else(bad)?;
    let pod = pod_of(call, target, parsed.name).await?;
    let ports = pod.at(&["spec", "containers"]).items().iter().flat_map(|c| c["ports"].items().iter());
    let first = ports.filter_map(|p| p["containerPort"].as_i64()).find_map(|p| u16::try_from(p).ok());
    let port = match parsed.port {
        "" => first.unwrap_or(if parsed.scheme == "https" { 443 } else { 80 }),
        text => text.parse().map_err(|_| bad())?,
    };
    let ip: IpAddr =
        pod.str_at(&["status", "podIP"]).parse().map_err(|_| Status::bad_request("address not allowed"))?;
    check_proxyable(ip)?;
    let to = Destination {
        host: ip.to_string(),
        port,
        tls: if parsed.scheme == "https" { Some(connect::unverified()?) } else { None },
        address: SocketAddr::new(ip, port),
        path_and_query: rest_of(call),
    };
    forward::proxy(call, &to, body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wanted: &str, want: &str) {
        let pod: Value = serde_json::from_str(
            r#"{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c"},{"name":"d"}],"initContainers":[{"name":"i"}]}}"#,
        )
        .unwrap();
        assert_eq!(choose_container(&pod, wanted).unwrap_or_else(|e| e.message), want);
    }

    #[test]
    fn a_container_is_named_unless_there_is_only_one() {
        check("i", "i");
        check("x", "container x is not valid for pod p");
        check(
            "",
            "a container name must be specified for pod p, choose one of: [c d] or one of the init containers: [i]",
        );
    }
}
