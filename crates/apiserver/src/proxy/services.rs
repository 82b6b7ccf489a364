//! `services/proxy`: to one of a Service's endpoints.

use std::net::{IpAddr, SocketAddr};

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use http::Response;
use rand::seq::IndexedRandom;

use super::{Destination, ProxyName, check_proxyable, connect, forward, rest_of};
use crate::body::{Body, RequestBody};
use crate::handlers::Call;

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
    let slices = lister.list("endpointslices.discovery.k8s.io", namespace);
    let of_service = slices.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(parsed.name));
    let endpoints: Vec<SocketAddr> = of_service.flat_map(|slice| ready_endpoints(slice, &port_name)).collect();
    let address = *endpoints.choose(&mut rand::rng()).ok_or_else(|| no_endpoints(&name))?;
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

/// The addresses of a slice that take requests.
fn ready_endpoints(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let port = slice["ports"].items().iter().find(|p| p.str_at(&["name"]) == port_name);
    let Some(port) = port.and_then(|p| u16::try_from(p["port"].as_i64()?).ok()) else { return Vec::new() };
    let ready = |e: &&Value| e.at(&["conditions", "ready"]).as_bool() != Some(false);
    let addresses = slice["endpoints"].items().iter().filter(ready).filter_map(|e| e["addresses"].items().first());
    let ips = addresses.filter_map(|a| a.as_str()?.parse::<IpAddr>().ok());
    ips.map(|ip| SocketAddr::new(ip, port)).collect()
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

    #[test]
    fn endpoints_that_are_not_ready_get_nothing() {
        let slice = json(
            r#"{"ports":[{"name":"web","port":8080}],"endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"],"conditions":{"ready":false}}]}"#,
        );
        assert_eq!(ready_endpoints(&slice, "web"), ["10.0.0.1:8080".parse().unwrap()]);
    }
}
