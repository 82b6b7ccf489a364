//! Kubelets: where they are, and `nodes/proxy`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use http::Response;

use super::{Destination, ProxyName, check_proxyable, connect, forward, rest_of};
use crate::body::{Body, RequestBody};
use crate::handlers::Call;
use crate::registry::status;
use crate::server::ApiServer;

const KUBELET_PORT: u16 = 10250;

/// The kubelet of a node.
pub(super) async fn kubelet(server: &ApiServer, node: &str, path_and_query: String) -> Result<Destination, Status> {
    let inner = server.inner();
    let object =
        server.lister().get("nodes", "", node).ok_or_else(|| Status::not_found(&Gvr::new("", "v1", "nodes"), node))?;
    let host = choose_address(&object, &inner.config.kubelet.address_types)
        .ok_or_else(|| status::plain(format!("no preferred addresses found; known addresses: {}", known(&object))))?;
    let port = object.at(&["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).as_i64();
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0).unwrap_or(KUBELET_PORT);
    let address = resolve(&host, port).await?;
    Ok(Destination { host, port, tls: Some(Arc::clone(&inner.kubelet_tls.0)), address, path_and_query })
}

/// The best of a node's addresses.
fn choose_address(node: &Value, types: &[String]) -> Option<String> {
    let addresses = node.at(&["status", "addresses"]).items();
    types.iter().find_map(|wanted| {
        let found = addresses.iter().find(|a| a.str_at(&["type"]) == wanted)?;
        Some(found.str_at(&["address"]).to_owned()).filter(|a| !a.is_empty())
    })
}

fn known(node: &Value) -> String {
    let addresses = node.at(&["status", "addresses"]).items().iter();
    let shown = addresses.map(|a| format!("{{{} {}}}", a.str_at(&["type"]), a.str_at(&["address"])));
    format!("[{}]", shown.collect::<Vec<_>>().join(" "))
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, Status> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let failed = |why: String| status::plain(format!("error dialing backend: dial tcp: lookup {host}: {why}"));
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(|e| failed(e.to_string()))?;
    found.next().ok_or_else(|| failed("no such host".into()))
}

pub(super) async fn proxy(call: &mut Call, body: RequestBody) -> Result<Response<Body>, Status> {
    let name = call.info.name.clone();
    let bad = || Status::bad_request(format!("invalid node request {name:?}"));
    let parsed = ProxyName::parse(&name).ok_or_else(bad)?;
    let asked: Option<u16> = if parsed.port.is_empty() { None } else { Some(parsed.port.parse().map_err(|_| bad())?) };
    let mut to = kubelet(&call.server, parsed.name, rest_of(call)).await?;
    if let Some(port) = asked.filter(|port| *port != to.port) {
        // Something else on the node: it is none of its business who this server is to kubelets.
        check_proxyable(to.address.ip())?;
        to.port = port;
        to.address.set_port(port);
        to.tls = if parsed.scheme == "https" { Some(connect::unverified()?) } else { None };
    }
    forward::proxy(call, &to, body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_preferred_address_is_taken() {
        let node: Value = serde_json::from_str(
            r#"{"status":{"addresses":[{"type":"Hostname","address":"n"},{"type":"InternalIP","address":"10.0.0.1"}]}}"#,
        )
        .unwrap();
        let choose = |types: &[&str]| choose_address(&node, &types.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(choose(&["ExternalIP", "InternalIP", "Hostname"]).as_deref(), Some("10.0.0.1"));
        assert_eq!(choose(&["ExternalIP"]), None);
        assert_eq!(known(&node), "[{Hostname n} {InternalIP 10.0.0.1}]");
    }
}
