//! DefaultTolerationSeconds: pods stay on a node that is not ready or not reachable for five minutes, unless they say
//! otherwise.

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};

pub(super) struct DefaultTolerationSeconds {
    pub not_ready: i64,
    pub unreachable: i64,
}

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && request.is_core("pods")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let wanted =
            [("node.kubernetes.io/not-ready", self.not_ready), ("node.kubernetes.io/unreachable", self.unreachable)];
        for (key, seconds) in wanted {
            let tolerations = request.object["spec"]["tolerations"].items();
            if !tolerations.iter().any(|t| tolerates(t, key)) {
                let toleration = Value::from([
                    ("key", key.into()),
                    ("operator", "Exists".into()),
                    ("effect", "NoExecute".into()),
                    ("tolerationSeconds", seconds.into()),
                ]);
                request.object.entry(&["spec", "tolerations"]).make_array().push(toleration);
            }
        }
        Ok(())
    }
}

fn tolerates(toleration: &Value, key: &str) -> bool {
    let (its_key, effect) = (toleration.str_at(&["key"]), toleration.str_at(&["effect"]));
    (its_key == key || its_key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
}
