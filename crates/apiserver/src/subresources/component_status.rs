//! `componentstatuses`: deprecated, and still asked for. Made when asked for, from what the server itself sees: the store.

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use http::{Response, StatusCode};

use crate::body::Body;
use crate::handlers::negotiation::{self, Form};
use crate::handlers::{Call, Coded, Reply, Target, respond, table_of_one};

const STORE: &str = "etcd-0";

pub(super) async fn list(call: &Call, target: &Target) -> Result<Response<Body>, Status> {
    let whole = store_status(call).await;
    let mut item = whole.clone();
    item.remove(&["kind"]);
    item.remove(&["apiVersion"]);
    let list = Value::from([
        ("kind", "ComponentStatusList".into()),
        ("apiVersion", "v1".into()),
        ("metadata", Value::object()),
        ("items", vec![item].into()),
    ]);
    answer(call, target, &whole, list).await
}

pub(super) async fn get(call: &Call, target: &Target) -> Result<Response<Body>, Status> {
    if call.info.name != STORE {
        return Err(Status::not_found(&Gvr::new("", "v1", "componentstatuses"), &call.info.name));
    }
    let whole = store_status(call).await;
    answer(call, target, &whole, whole.clone()).await
}

/// As a Table to whoever wants one, else as it is.
async fn answer(call: &Call, target: &Target, of: &Value, plain: Value) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate(call.accepts(), call.is_pretty())?;
    let shown = match accepted.form {
        Form::Table(version) => table_of_one(target.resource.def, (cells_of(of), of), &call.query, version)?,
        Form::Object | Form::Metadata(_) | Form::MetadataList(_) => plain,
    };
    respond(call, accepted, Coded { code: StatusCode::OK, reply: Reply::Value(shown) }).await
}

/// Name, whether it is well, and what it says.
fn cells_of(component: &Value) -> Vec<Value> {
    let healthy = component["conditions"].items().iter().find(|c| c.str_at(&["type"]) == "Healthy");
    let text = |field: &str| healthy.map_or("", |condition| condition.str_at(&[field]));
    let status = match healthy.map(|condition| condition.str_at(&["status"])) {
        None => "Unknown",
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
    };
    vec![component.name().into(), status.into(), text("message").into(), text("error").into()]
}

async fn store_status(call: &Call) -> Value {
    let (status, message) = match call.server.registry().storage.revision().await {
        Ok(_) => ("True", "ok".to_owned()),
        Err(error) => ("False", error.to_string()),
    };
    let condition = Value::from([("type", "Healthy".into()), ("status", status.into()), ("message", message.into())]);
    Value::from([
        ("kind", "ComponentStatus".into()),
        ("apiVersion", "v1".into()),
        ("metadata", Value::from([("name", STORE.into())])),
        ("conditions", vec![condition].into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_shown_as_well_or_not() {
        let cells = |conditions: &str| {
            let component = format!(r#"{{"metadata":{{"name":"etcd-0"}},"conditions":{conditions}}}"#);
            apimachinery::field::shown(&cells_of(&serde_json::from_str(&component).unwrap()).into())
        };
        assert_eq!(cells(r#"[{"type":"Healthy","status":"True","message":"ok"}]"#), r#"["etcd-0","Healthy","ok",""]"#);
        assert_eq!(
            cells(r#"[{"type":"Healthy","status":"False","error":"gone"}]"#),
            r#"["etcd-0","Unhealthy","","gone"]"#
        );
        assert_eq!(cells("[]"), r#"["etcd-0","Unknown","",""]"#);
    }
}
