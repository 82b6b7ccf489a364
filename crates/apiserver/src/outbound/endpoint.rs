//! Where a server outside is.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use apimachinery::Value;
use http::Uri;
use rand::seq::IndexedRandom;

use crate::lister::Lister;

/// Where a server is, and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// As messages show it.
    pub url: String,
    pub host: String,
    pub port: u16,
    pub path_and_query: String,
    /// What to dial: an address, or a name that leads to one.
    pub dial: (String, u16),
}

impl Endpoint {
    /// # Errors
    /// When that is no URL.
    pub(crate) fn of_url(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e: http::uri::InvalidUri| format!("parse {url:?}: {e}"))?;
        let host = uri.host().unwrap_or_default().trim_matches(|c| c == '[' || c == ']').to_owned();
        let usual = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let port = uri.port_u16().unwrap_or(usual);
        Ok(Endpoint {
            url: url.to_owned(),
            dial: (host.clone(), port),
            host,
            port,
            path_and_query: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
        })
    }

    /// Of a webhook's `clientConfig`: a URL or a Service.
    ///
    /// # Errors
    /// When that leads nowhere.
    pub(crate) fn of_client_config(config: &Value, timeout: Duration, lister: &dyn Lister) -> Result<Self, String> {
        let timeout = format!("timeout={}s", timeout.as_secs());
        if let Some(url) = config["url"].as_str() {
            let joint = if url.contains('?') { '&' } else { '?' };
            return Self::of_url(&format!("{url}{joint}{timeout}"));
        }
        let service = &config["service"];
        let (namespace, name) = (service.str_at(&["namespace"]), service.str_at(&["name"]));
        let port = service["port"].as_i64().unwrap_or(443);
        let path = service["path"].as_str().filter(|p| !p.is_empty()).unwrap_or("/");
        let host = format!("{name}.{namespace}.svc");
        let url = format!("https://{host}:{port}{path}?{timeout}");
        let dial = service_address(namespace, name, port, lister).map_err(|why| format!("Post {url:?}: {why}"))?;
        Ok(Endpoint {
            url,
            host,
            port: u16::try_from(port).unwrap_or(443),
            path_and_query: format!("{path}?{timeout}"),
            dial,
        })
    }

    /// `host:port`, as a `Host` header has it.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// What to dial for a port of a Service: one of its ready endpoints, or the name that it stands for.
///
/// # Errors
/// Why it leads nowhere.
pub(crate) fn service_address(
    namespace: &str,
    name: &str,
    port: i64,
    lister: &dyn Lister,
) -> Result<(String, u16), String> {
    let service = lister.get("services", namespace, name).ok_or_else(|| format!("service {name:?} not found"))?;
    if service.str_at(&["spec", "type"]) == "ExternalName" {
        return Ok((service.str_at(&["spec", "externalName"]).to_owned(), u16::try_from(port).unwrap_or(443)));
    }
    let ports = service.at(&["spec", "ports"]).items();
    let of_service = ports.iter().find(|p| p["port"].as_i64() == Some(port));
    let of_service = of_service.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    match endpoint_of_service(namespace, name, of_service.str_at(&["name"]), lister) {
        Some(one) => Ok((one.ip().to_string(), one.port())),
        None => Err(format!("no endpoints available for service {name:?}")),
    }
}

/// One of the ready endpoints of a Service, by the name of its port.
pub(crate) fn endpoint_of_service(
    namespace: &str,
    name: &str,
    port_name: &str,
    lister: &dyn Lister,
) -> Option<SocketAddr> {
    let slices = lister.list("endpointslices.discovery.k8s.io", namespace);
    let of_service = slices.iter().filter(|slice| slice.label("kubernetes.io/service-name") == Some(name));
    let ready: Vec<SocketAddr> = of_service.flat_map(|slice| ready_endpoints(slice, port_name)).collect();
    ready.choose(&mut rand::rng()).copied()
}

/// The endpoints of a slice that take requests, each at one of its addresses.
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
    use crate::lister::fixture::MapLister;

    #[test]
    fn services_lead_to_their_ready_endpoints() {
        let lister = MapLister::default();
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        lister.put(
            "services",
            json(r#"{"metadata":{"name":"s","namespace":"n"},"spec":{"ports":[{"name":"web","port":443}]}}"#),
        );
        let config = json(r#"{"service":{"name":"s","namespace":"n","path":"/x"}}"#);
        let asked = |lister: &MapLister| {
            Endpoint::of_client_config(&config, Duration::from_secs(10), lister).map(|e| (e.url, e.dial))
        };
        assert_eq!(
            asked(&lister),
            Err("Post \"https://s.n.svc:443/x?timeout=10s\": no endpoints available for service \"s\"".to_owned())
        );
        lister.put(
            "endpointslices.discovery.k8s.io",
            json(r#"{"metadata":{"name":"e","namespace":"n","labels":{"kubernetes.io/service-name":"s"}},"ports":[{"name":"web","port":8443}],"endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"],"conditions":{"ready":false}}]}"#),
        );
        let (url, dial) = asked(&lister).unwrap();
        assert_eq!(url, "https://s.n.svc:443/x?timeout=10s");
        assert_eq!(dial, ("10.0.0.1".to_owned(), 8443));
    }

    #[test]
    fn endpoints_that_are_not_ready_get_nothing() {
        let slice = r#"{"ports":[{"name":"web","port":8080}],"endpoints":[{"addresses":["10.0.0.1","10.0.0.9"]},
            {"addresses":["10.0.0.2"],"conditions":{"ready":false}}]}"#;
        let slice = serde_json::from_str(slice).unwrap();
        assert_eq!(ready_endpoints(&slice, "web"), ["10.0.0.1:8080".parse().unwrap()]);
        assert_eq!(ready_endpoints(&slice, "tls"), []);
    }
}
