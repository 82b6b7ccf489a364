//! `services/proxy`: to one of a Service's endpoints.

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use http::Response;

use super::{Destination, ProxyName, check_proxyable, connect, forward, rest_of};
use crate::body::{Body, RequestBody};
use crate::handlers::Call;
use crate::outbound::endpoint_of_service;

pub(super) async fn proxy(call: &mut Call, body: RequestBody) -> Result<Response<Body>, Status> {
    let name = call.info.name.clone();
    let bad = || Status::bad_request(format!("invalid service request {name:?}"));
    let parsed = ProxyName::parse(&name).ok_or_else(bad)?;
    let lister = call.server.lister();
    let namespace = &call.info.namespace;
    let service = lister
        .get("services", namespace, parsed.name)
        .ok_or_else(|| Status::not_found(&Gvr::new("", "v1", "services"), parsed.name))?;
    let port_name = choose_port(&service, parsed.port).ok_or_else(|| no_endpoints(&name))?;
    let address =
        endpoint_of_service(namespace, parsed.name, &port_name, lister.as_ref()).ok_or_else(|| no_endpoints(&name))?;
    check_proxyable(address.ip())?;
    let to = Destination {
        host: address.ip().to_string(),
        port: address.port(),
        tls: if parsed.scheme == "https" { Some(connect::unverified()?) } else { None },
        address,
        path_and_query: rest_of(call),
    };
    forward::proxy(call, &to, body).await
}

fn no_endpoints(name: &str) -> Status {
    Status::service_unavailable(format!("no endpoints available for service {name:?}"))
}

/// The name of the Service's port that is meant: by its name or number, or the only one.
fn choose_port(service: &Value, wanted: &str) -> Option<String> {
    let ports = service.at(&["spec", "ports"]).items();
    let named = |p: &Value| p.str_at(&["name"]).to_owned();
    if wanted.is_empty() {
        return match ports {
            [one] => Some(named(one)),
            _ => None,
        };
    }
    let number: Option<i64> = wanted.parse().ok();
    let matches = |p: &&Value| p.str_at(&["name"]) == wanted || (number.is_some() && p["port"].as_i64() == number);
    ports.iter().find(matches).map(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn ports_are_meant_by_name_or_number() {
        let service = json(r#"{"spec":{"ports":[{"name":"web","port":80},{"name":"tls","port":443}]}}"#);
        assert_eq!(choose_port(&service, "443").as_deref(), Some("tls"));
        assert_eq!(choose_port(&service, "web").as_deref(), Some("web"));
        assert_eq!(choose_port(&service, ""), None);
    }
}
