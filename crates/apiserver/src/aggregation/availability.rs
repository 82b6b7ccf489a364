//! Whether an APIService is available, as far as that can be told without asking its server.

use std::sync::Arc;

use apimachinery::Value;

/// Why it is not, in upstream's words; `None`: its server has to be asked.
pub(super) fn obstacle(
    api_service: &Value,
    service: Option<&Value>,
    slices: &[Arc<Value>],
) -> Option<(&'static str, String)> {
    let reference = api_service.at(&["spec", "service"]);
    let (namespace, name) = (reference.str_at(&["namespace"]), reference.str_at(&["name"]));
    let port = reference["port"].as_i64().unwrap_or(443);
    let Some(service) = service else {
        return Some(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    if service.str_at(&["spec", "type"]) != "ClusterIP" {
        return None;
    }
    let ports = service.at(&["spec", "ports"]).items();
    let Some(of_service) = ports.iter().find(|p| p["port"].as_i64() == Some(port)) else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(("ServicePortError", why));
    };
    if slices.is_empty() {
        let why = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(("EndpointsNotFound", why));
    }
    let port_name = of_service.str_at(&["name"]);
    let serves = |slice: &Arc<Value>| {
        let is_ready = |e: &Value| e.at(&["conditions", "ready"]).as_bool() != Some(false);
        slice["endpoints"].items().iter().any(is_ready)
            && slice["ports"].items().iter().any(|p| p.str_at(&["name"]) == port_name && !p["port"].is_null())
    };
    if !slices.iter().any(serves) {
        let why = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return Some(("MissingEndpoints", why));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn check(service: Option<&str>, slices: &[&str], want: Option<(&str, &str)>) {
        let api_service = json(r#"{"spec":{"service":{"namespace":"n","name":"s","port":443}}}"#);
        let slices: Vec<_> = slices.iter().map(|s| Arc::new(json(s))).collect();
        let found = obstacle(&api_service, service.map(json).as_ref(), &slices);
        assert_eq!(found.as_ref().map(|(reason, why)| (*reason, why.as_str())), want);
    }

    #[test]
    fn what_is_missing_is_said() {
        let service = r#"{"spec":{"type":"ClusterIP","ports":[{"name":"web","port":443}]}}"#;
        check(None, &[], Some(("ServiceNotFound", r#"service/s in "n" is not present"#)));
        check(
            Some(r#"{"spec":{"type":"ClusterIP","ports":[{"port":80}]}}"#),
            &[],
            Some(("ServicePortError", r#"service/s in "n" is not listening on port 443"#)),
        );
        check(Some(service), &[], Some(("EndpointsNotFound", r#"cannot find endpointslices for service/s in "n""#)));
        check(
            Some(service),
            &[r#"{"ports":[{"name":"web","port":1}],"endpoints":[{"conditions":{"ready":false}}]}"#],
            Some(("MissingEndpoints", r#"endpointslices for service/s in "n" have no addresses with port name "web""#)),
        );
        check(Some(service), &[r#"{"ports":[{"name":"web","port":1}],"endpoints":[{}]}"#], None);
        check(Some(r#"{"spec":{"type":"ExternalName"}}"#), &[], None);
    }
}
