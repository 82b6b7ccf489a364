//! `Status`: the one form in which every error reaches a client.

use crate::field::FieldErrors;
use crate::meta::{Gvk, Gvr};
use crate::{Map, Value};

/// What a request or an object is about, for a Status' `details`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource (plural) or the kind, whichever upstream shows for that error.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: i64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A failure with its HTTP code. Its `Display` is the message.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    /// Empty where upstream gives none: a plain error of its own.
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
}

impl Status {
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None }
    }

    #[must_use]
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    fn about(self, gvr: &Gvr, name: &str) -> Self {
        self.with_details(Details {
            name: name.into(),
            group: gvr.group.to_string(),
            kind: gvr.resource.to_string(),
            ..Details::default()
        })
    }

    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::new(400, "BadRequest", message)
    }

    #[must_use]
    pub fn unauthorized() -> Self {
        Status::new(401, "Unauthorized", "Unauthorized")
    }

    /// A path that nothing serves.
    #[must_use]
    pub fn no_such_path() -> Self {
        Status::new(404, "NotFound", "the server could not find the requested resource")
            .with_details(Details::default())
    }

    #[must_use]
    pub fn not_found(gvr: &Gvr, name: &str) -> Self {
        Status::new(404, "NotFound", format!("{} \"{name}\" not found", gvr.group_resource())).about(gvr, name)
    }

    #[must_use]
    pub fn already_exists(gvr: &Gvr, name: &str) -> Self {
        Status::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", gvr.group_resource()))
            .about(gvr, name)
    }

    #[must_use]
    pub fn conflict(gvr: &Gvr, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", gvr.group_resource());
        Status::new(409, "Conflict", message).about(gvr, name)
    }

    #[must_use]
    pub fn forbidden(gvr: &Gvr, name: &str, why: &str) -> Self {
        let message = match (gvr.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{} is forbidden: {why}", gvr.group_resource()),
            (false, false) => format!("{} \"{name}\" is forbidden: {why}", gvr.group_resource()),
        };
        Status::new(403, "Forbidden", message).about(gvr, name)
    }

    /// 422 with one cause for each finding.
    #[must_use]
    pub fn invalid(gvk: &Gvk, name: &str, errors: &FieldErrors) -> Self {
        // The same finding may come twice; the message says it once, the causes say it twice, as upstream's do.
        let mut texts: Vec<String> = Vec::with_capacity(errors.0.len());
        for text in errors.0.iter().map(ToString::to_string) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes = errors.0.iter().map(|e| Cause {
            reason: e.kind.reason().into(),
            message: e.body(),
            field: if e.path.as_str().is_empty() { "<nil>".into() } else { e.path.to_string() },
        });
        Status::new(422, "Invalid", format!("{} \"{name}\" is invalid: {list}", gvk.group_kind())).with_details(
            Details {
                name: name.into(),
                group: gvk.group.to_string(),
                kind: gvk.kind.to_string(),
                causes: causes.collect(),
                ..Details::default()
            },
        )
    }

    #[must_use]
    pub fn method_not_supported(gvr: &Gvr, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", gvr.group_resource());
        Status::new(405, "MethodNotAllowed", message).about(gvr, "")
    }

    #[must_use]
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Status::new(406, "NotAcceptable", message)
    }

    #[must_use]
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Status::new(415, "UnsupportedMediaType", message)
    }

    #[must_use]
    pub fn too_large(message: impl Into<String>) -> Self {
        Status::new(413, "RequestEntityTooLarge", message)
    }

    #[must_use]
    pub fn gone(message: impl Into<String>) -> Self {
        Status::new(410, "Gone", message)
    }

    /// 410: the resourceVersion or the continue token is too old.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Status::new(410, "Expired", message)
    }

    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i64) -> Self {
        Status::new(429, "TooManyRequests", message).with_details(Details { retry_after_seconds, ..Details::default() })
    }

    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let cause = Cause { message: message.clone(), ..Cause::default() };
        Status::new(500, "InternalError", format!("Internal error occurred: {message}"))
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    #[must_use]
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Status::new(503, "ServiceUnavailable", message)
    }

    #[must_use]
    pub fn timeout(message: impl Into<String>, retry_after_seconds: i64) -> Self {
        Status::new(504, "Timeout", message).with_details(Details { retry_after_seconds, ..Details::default() })
    }

    /// The object that goes over the wire.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut v = Value::from([
            ("kind", "Status".into()),
            ("apiVersion", "v1".into()),
            ("metadata", Value::object()),
            ("status", "Failure".into()),
            ("message", self.message.as_str().into()),
            ("code", i64::from(self.code).into()),
        ]);
        if !self.reason.is_empty() {
            v.set(&["reason"], self.reason);
        }
        if let Some(details) = &self.details {
            v.set(&["details"], details.to_value());
        }
        v
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                map.insert(key, text.as_str());
            }
        }
        if !self.causes.is_empty() {
            map.insert("causes", self.causes.iter().map(Cause::to_value).collect::<Vec<_>>());
        }
        if self.retry_after_seconds != 0 {
            map.insert("retryAfterSeconds", self.retry_after_seconds);
        }
        map.into()
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                map.insert(key, text.as_str());
            }
        }
        map.into()
    }
}
