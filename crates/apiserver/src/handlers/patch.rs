//! Patches: from what is there and what the client sent to what is to be there.

use api::ResourceDef;
use apimachinery::Value;
use apimachinery::codec::{json, yaml};
use apimachinery::status::{Details, Status};
use parking_lot::Mutex;

use crate::registry::{Write, WriteKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    #[must_use]
    pub(super) fn options_kind(self) -> WriteKind {
        if self == PatchKind::Apply { WriteKind::Apply } else { WriteKind::Patch }
    }
}

/// The kind of patch by its content type.
///
/// # Errors
/// 415 for any other.
pub(super) fn kind_of(content_type: Option<&str>) -> Result<PatchKind, Status> {
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match media_type {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        _ => Err(Status::unsupported_media_type("415: Unsupported Media Type").with_details(Details::default())),
    }
}

/// A patch, ready to be applied, perhaps more than once.
pub(super) struct Patch {
    kind: PatchKind,
    patch: Value,
    def: &'static ResourceDef,
    warnings: Mutex<Vec<String>>,
}

impl Patch {
    /// # Errors
    /// 400 for what is no patch.
    pub(super) fn parse(
        kind: PatchKind,
        bytes: &[u8],
        def: &'static ResourceDef,
        _write: &Write,
    ) -> Result<Self, Status> {
        let patch = if kind == PatchKind::Apply {
            yaml::parse(bytes).map(|document| document.value)
        } else {
            json::value(bytes)
        };
        let patch = patch.map_err(|why| Status::bad_request(format!("error decoding patch: {why}")))?;
        Ok(Patch { kind, patch, def, warnings: Mutex::default() })
    }

    /// # Errors
    /// What is wrong with the patch or with what comes of it.
    pub(super) fn apply(&self, old: &Value) -> Result<Value, Status> {
        let mut object = old.clone();
        match self.kind {
            PatchKind::Merge | PatchKind::Strategic | PatchKind::Apply => merge(&mut object, &self.patch),
            PatchKind::Json => return Err(Status::unsupported_media_type("JSON patches are not applied yet")),
        }
        self.def.strategy.default(&mut object);
        Ok(object)
    }

    /// An apply of an object that is not there makes it.
    #[must_use]
    pub(super) fn makes_missing_objects(&self) -> bool {
        self.kind == PatchKind::Apply
    }

    pub(super) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    let object = target.make_object();
    for (key, value) in fields {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key), value);
        }
    }
}
