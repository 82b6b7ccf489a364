//! `componentstatuses`: deprecated, and still asked for. Made when asked for, from what the server itself sees: the store.

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use http::{Response, StatusCode};

use super::answer_value;
use crate::body::Body;
use crate::handlers::Call;

const STORE: &str = "etcd-0";

pub(super) async fn list(call: &Call) -> Result<Response<Body>, Status> {
    let mut item = store_status(call).await;
    item.remove(&["kind"]);
    item.remove(&["apiVersion"]);
    let list = Value::from([
        ("kind", "ComponentStatusList".into()),
        ("apiVersion", "v1".into()),
        ("metadata", Value::object()),
        ("items", vec![item].into()),
    ]);
    answer_value(call, list, StatusCode::OK).await
}

pub(super) async fn get(call: &Call) -> Result<Response<Body>, Status> {
    if call.info.name != STORE {
        return Err(Status::not_found(&Gvr::new("", "v1", "componentstatuses"), &call.info.name));
    }
    answer_value(call, store_status(call).await, StatusCode::OK).await
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
