//! EventRateLimit: events do not drown what matters.

use std::collections::HashMap;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Operation, Plugin, Request};

/// How many keys of a kind are remembered unless the configuration says otherwise.
const CACHE_SIZE: usize = 4096;

pub(super) struct EventRateLimit {
    limits: Vec<Limit>,
}

/// `Server`, `Namespace`, `User` or `SourceAndObject`: what each has a bucket of its own.
struct Limit {
    kind: String,
    per_second: f64,
    burst: f64,
    size: usize,
    buckets: Mutex<HashMap<String, Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl EventRateLimit {
    /// From `eventratelimit.admission.k8s.io/v1alpha1`.
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let mut limits = Vec::new();
        for (i, limit) in config["limits"].items().iter().enumerate() {
            let kind = limit.str_at(&["type"]);
            if !["Server", "Namespace", "User", "SourceAndObject"].contains(&kind) {
                return Err(format!(
                    "limits[{i}].type: Unsupported value: {kind:?}: supported values: \"Namespace\", \"Server\", \"SourceAndObject\", \"User\""
                ));
            }
            let number = |key: &str| limit[key].as_f64().unwrap_or_default();
            for key in ["burst", "qps"] {
                if number(key) <= 0.0 {
                    return Err(format!("limits[{i}].{key}: Invalid value: {}: must be positive", number(key)));
                }
            }
            limits.push(Limit {
                kind: kind.to_owned(),
                per_second: number("qps"),
                burst: number("burst"),
                size: limit["cacheSize"]
                    .as_i64()
                    .and_then(|s| usize::try_from(s).ok())
                    .filter(|s| *s > 0)
                    .unwrap_or(CACHE_SIZE),
                buckets: Mutex::default(),
            });
        }
        if limits.is_empty() {
            Err("limits: Invalid value: []: must not be empty".to_owned())
        } else {
            Ok(EventRateLimit { limits })
        }
    }
}

#[async_trait]
impl Plugin for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update)
            && (request.is_core("events") || request.is("events.k8s.io", "events"))
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        if request.dry_run {
            return Ok(());
        }
        let mut refused = Vec::new();
        for limit in &self.limits {
            let key = limit.key(request);
            if !limit.take(&key, Instant::now()) {
                refused.push(format!("limit reached on type {} for key {key}", limit.kind));
            }
        }
        match refused.as_slice() {
            [] => Ok(()),
            [one] => Err(Status::too_many_requests(one.clone(), 1)),
            many => Err(Status::too_many_requests(format!("[{}]", many.join(", ")), 1)),
        }
    }
}

impl Limit {
    fn key(&self, request: &Request) -> String {
        match self.kind.as_str() {
            "Namespace" => request.namespace.clone(),
            "User" => request.user.name.clone(),
            "SourceAndObject" => {
                let event = &request.object;
                let object =
                    if event["involvedObject"].is_null() { &event["regarding"] } else { &event["involvedObject"] };
                let parts = ["kind", "namespace", "name", "uid", "apiVersion"].map(|f| object.str_at(&[f]));
                let source = event.str_at(&["source", "component"]);
                format!("{source}{}{}", event.str_at(&["source", "host"]), parts.join(""))
            }
            _ => String::new(),
        }
    }

    fn take(&self, key: &str, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= self.size && !buckets.contains_key(key) {
            // The one that was used longest ago goes.
            if let Some(oldest) = buckets.iter().min_by_key(|(_, b)| b.at).map(|(k, _)| k.clone()) {
                buckets.remove(&oldest);
            }
        }
        let bucket = buckets.entry(key.to_owned()).or_insert(Bucket { tokens: self.burst, at: now });
        let gained = now.duration_since(bucket.at).as_secs_f64() * self.per_second;
        bucket.tokens = (bucket.tokens + gained).min(self.burst);
        bucket.at = now;
        let has = bucket.tokens >= 1.0;
        if has {
            bucket.tokens -= 1.0;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_fills_again() {
        let config = serde_json::from_str(r#"{"limits":[{"type":"User","qps":1,"burst":2}]}"#).unwrap();
        let limit = &EventRateLimit::parse(&config).unwrap().limits[0];
        let start = Instant::now();
        let taken = [0, 0, 0, 1, 1].map(|seconds| limit.take("a", start + Duration::from_secs(seconds)));
        assert_eq!(taken, [true, true, false, true, false]);
        assert!(limit.take("b", start));
        assert!(EventRateLimit::parse(&Value::object()).is_err());
    }
}
