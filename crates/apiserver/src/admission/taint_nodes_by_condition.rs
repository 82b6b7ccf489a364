//! TaintNodesByCondition: a new Node takes no pods until somebody has seen it ready.

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && request.is_core("nodes")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let taints = request.object.entry(&["spec", "taints"]).make_array();
        let is_there = |t: &Value| t.str_at(&["key"]) == NOT_READY && t.str_at(&["effect"]) == "NoSchedule";
        if !taints.iter().any(is_there) {
            taints.push(Value::from([("key", NOT_READY.into()), ("effect", "NoSchedule".into())]));
        }
        Ok(())
    }
}
