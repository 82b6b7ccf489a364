//! `audit.k8s.io/v1 Event`.

use std::net::IpAddr;

use apimachinery::Value;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::Record;
use super::body::Capture;
use super::policy::{Level, Stage};

/// What became of a request.
pub(super) struct Outcome {
    pub code: StatusCode,
    pub response: Capture,
    /// There was no answer yet when the client went away.
    pub closed_early: bool,
}

impl Outcome {
    pub(super) fn bare(code: StatusCode) -> Self {
        Outcome { code, response: Capture::default(), closed_early: false }
    }
}

/// The event of a stage of a request.
pub(super) fn of(record: &Record, stage: Stage, outcome: Option<&Outcome>) -> Value {
    let gathered = record.gathered.lock();
    let mut event = Value::from([
        ("kind", "Event".into()),
        ("apiVersion", "audit.k8s.io/v1".into()),
        ("level", record.level.name().into()),
        ("auditID", record.id.as_str().into()),
        ("stage", stage.name().into()),
        ("requestURI", record.uri.as_str().into()),
        ("verb", record.info.verb.as_str().into()),
        ("user", record.user.value()),
        ("requestReceivedTimestamp", apimachinery::time::format_micro(record.received).into()),
        ("stageTimestamp", apimachinery::time::format_micro(Timestamp::now()).into()),
    ]);
    if let Some(user) = &gathered.impersonated {
        event.set(&["impersonatedUser"], user.value());
    }
    if !record.ips.is_empty() {
        event.set(&["sourceIPs"], record.ips.iter().map(|ip| Value::from(ip.as_str())).collect::<Vec<_>>());
    }
    if !record.user_agent.is_empty() {
        event.set(&["userAgent"], record.user_agent.as_str());
    }
    if record.info.is_resource {
        event.set(&["objectRef"], object_reference(record, &gathered.object));
    }
    for (key, value) in &gathered.annotations {
        event.set(&["annotations", key], value.as_str());
    }
    if record.level >= Level::Request && stage != Stage::RequestReceived {
        put_object(&mut event, "requestObject", gathered.request.decoded(), record.omit_managed_fields);
    }
    let Some(outcome) = outcome else { return event };
    let response = outcome.response.decoded();
    event.set(&["responseStatus"], status_of(outcome.code, &response));
    if outcome.closed_early {
        event.set(&["responseStatus", "status"], "Success");
        event.set(&["responseStatus", "message"], "Connection closed early");
    }
    if record.level == Level::RequestResponse && stage == Stage::ResponseComplete {
        put_object(&mut event, "responseObject", response, record.omit_managed_fields);
    }
    event
}

fn put_object(event: &mut Value, field: &str, mut object: Value, omit_managed_fields: bool) {
    if object.is_null() {
        return;
    }
    if omit_managed_fields {
        object.remove(&["metadata", "managedFields"]);
        if let Some(items) = object.get_mut("items") {
            for item in items.items_mut() {
                item.remove(&["metadata", "managedFields"]);
            }
        }
    }
    event.set(&[field], object);
}

/// The status of an answer: its own, if it is a Status, else what its code says.
fn status_of(code: StatusCode, response: &Value) -> Value {
    let mut status = Value::from([("metadata", Value::object())]);
    if response.kind() == "Status" {
        for field in ["status", "message", "reason", "details"] {
            if !response[field].is_empty_value() {
                status.set(&[field], response[field].clone());
            }
        }
    }
    status.set(&["code"], i64::from(code.as_u16()));
    status
}

fn object_reference(record: &Record, object: &Value) -> Value {
    let info = &record.info;
    let mut reference = Value::object();
    let mut put = |field: &str, text: &str| {
        if !text.is_empty() {
            reference.set(&[field], text);
        }
    };
    let told =
        |own: &str, field: &str| if own.is_empty() { object.str_at(&[field]).to_owned() } else { own.to_owned() };
    put("resource", &info.gvr.resource);
    put("namespace", &told(&info.namespace, "namespace"));
    put("name", &told(&info.name, "name"));
    put("uid", object.str_at(&["uid"]));
    put("apiGroup", &info.gvr.group);
    put("apiVersion", &info.gvr.version);
    put("resourceVersion", object.str_at(&["resourceVersion"]));
    put("subresource", &info.subresource);
    reference
}

/// Who a request comes from, and through whom: what proxies say first, then who is connected.
pub(super) fn source_ips(headers: &HeaderMap, remote: Option<IpAddr>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut ips: Vec<String> = text("x-forwarded-for")
        .split(',')
        .chain(std::iter::once(text("x-real-ip")))
        .filter_map(|ip| ip.trim().parse::<IpAddr>().ok())
        .map(|ip| ip.to_string())
        .collect();
    if let Some(remote) = remote.map(|ip| ip.to_string())
        && ips.last() != Some(&remote)
    {
        ips.push(remote);
    }
    ips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_in_order() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "192.0.2.1, nonsense, 192.0.2.2".parse().unwrap());
        assert_eq!(source_ips(&headers, Some([10, 0, 0, 1].into())), ["192.0.2.1", "192.0.2.2", "10.0.0.1"]);
        assert_eq!(source_ips(&HeaderMap::new(), None), [""; 0]);
    }

    #[test]
    fn a_status_is_told_and_a_code_alone() {
        let status = serde_json::from_str(
            r#"{"kind":"Status","status":"Failure","message":"m","reason":"NotFound","code":404}"#,
        );
        let told = apimachinery::field::shown(&status_of(StatusCode::NOT_FOUND, &status.unwrap()));
        assert_eq!(told, r#"{"code":404,"message":"m","metadata":{},"reason":"NotFound","status":"Failure"}"#);
        assert_eq!(
            apimachinery::field::shown(&status_of(StatusCode::OK, &Value::Null)),
            r#"{"code":200,"metadata":{}}"#
        );
    }
}
