//! Patches: from what is there and what the client sent to what is to be there.

use apimachinery::Value;
use apimachinery::codec::{self, DecodeError, Options, cbor, json, yaml};
use apimachinery::field::{FieldErrors, Path};
use apimachinery::meta::Gvk;
use apimachinery::patch::{JsonPatch, PatchError, merge, strategic_merge};
use apimachinery::schema::TypeRef;
use apimachinery::status::{Details, Status};
use parking_lot::Mutex;

use crate::registry::{FieldManager, FieldValidation, Write, WriteKind, status};
use crate::resources::Resource;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
    /// An apply whose object is in CBOR.
    ApplyCbor,
}

impl PatchKind {
    #[must_use]
    pub(crate) fn options_kind(self) -> WriteKind {
        if self.applies() { WriteKind::Apply } else { WriteKind::Patch }
    }

    #[must_use]
    pub(crate) fn applies(self) -> bool {
        matches!(self, PatchKind::Apply | PatchKind::ApplyCbor)
    }
}

/// The kind of patch by its content type.
///
/// # Errors
/// 415 for any other.
pub(crate) fn kind_of(content_type: Option<&str>, cbor: bool) -> Result<PatchKind, Status> {
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match media_type {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        "application/apply-patch+cbor" if cbor => Ok(PatchKind::ApplyCbor),
        _ => Err(Status::unsupported_media_type("415: Unsupported Media Type").with_details(Details::default())),
    }
}

/// A patch, ready to be applied, perhaps more than once.
pub(crate) struct Patch<'a> {
    operations: Operations,
    /// Fields of the patch itself that come twice.
    strict: Vec<String>,
    validation: FieldValidation,
    kind: &'a Gvk,
    ty: &'a TypeRef,
    name: String,
    namespace: String,
    strategy: Option<&'static dyn api::Strategy>,
    resource: Resource,
    subresource: String,
    manager: String,
    force: bool,
    warnings: Mutex<Vec<String>>,
}

enum Operations {
    Json(JsonPatch),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl<'a> Patch<'a> {
    /// Reads a patch for objects of a kind, whose defaults are the strategy's if there is one.
    ///
    /// # Errors
    /// 400 for what is no patch, 413 for one that is too large.
    pub(crate) fn parse(
        kind: PatchKind,
        bytes: &[u8],
        (gvk, ty): (&'a Gvk, &'a TypeRef),
        strategy: Option<&'static dyn api::Strategy>,
        write: &Write,
    ) -> Result<Self, Status> {
        let bad = |e: DecodeError| Status::bad_request(format!("error decoding patch: {e}"));
        let untyped = || {
            let options = Options { unstructured: true, ..Options::default() };
            json::decode(bytes, &TypeRef::any(), options).map_err(bad)
        };
        let (operations, strict) = match kind {
            PatchKind::Json => {
                let mut patch = JsonPatch::parse(bytes).map_err(|e| patch_error(&e))?;
                let strict = std::mem::take(&mut patch.strict);
                (Operations::Json(patch), strict)
            }
            PatchKind::Merge => {
                let decoded = untyped()?;
                (Operations::Merge(decoded.value), decoded.strict)
            }
            PatchKind::Strategic => {
                let decoded = untyped()?;
                (Operations::Strategic(decoded.value), decoded.strict)
            }
            PatchKind::Apply | PatchKind::ApplyCbor => {
                let (applied, duplicates) = parse_applied(kind, bytes)?;
                (Operations::Apply(applied), duplicates)
            }
        };
        Ok(Patch {
            operations,
            strict,
            validation: write.options.field_validation,
            kind: gvk,
            ty,
            name: write.name.to_string(),
            namespace: write.namespace.to_string(),
            strategy,
            resource: write.resource.clone(),
            subresource: write.subresource.clone(),
            manager: write.options.field_manager.clone(),
            force: write.options.force,
            warnings: Mutex::default(),
        })
    }

    /// # Errors
    /// What is wrong with the patch or with what comes of it.
    pub(crate) fn apply(&self, old: &Value) -> Result<Value, Status> {
        let mut object = old.clone();
        match &self.operations {
            Operations::Apply(applied) => object = self.applied(old, applied)?,
            Operations::Json(patch) => patch.apply(&mut object).map_err(|e| patch_error(&e))?,
            Operations::Merge(patch) => merge(&mut object, patch),
            Operations::Strategic(patch) => {
                strategic_merge(&mut object, patch.clone(), self.ty).map_err(|e| patch_error(&e))?;
            }
        }
        let mut object = self.typed(object)?;
        self.fit_namespace(&mut object)?;
        super::write::check_name(&object, &self.name)?;
        if let Some(strategy) = self.strategy {
            strategy.default(&mut object);
        }
        Ok(object)
    }

    /// Merges an applied object with what is there.
    fn applied(&self, old: &Value, applied: &Value) -> Result<Value, Status> {
        if self.validation == FieldValidation::Strict && !self.strict.is_empty() {
            let why = self.strict.join("\n  ");
            return Err(Status::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {why}"
            )));
        }
        let (resource, subresource, name) = (&self.resource, self.subresource.as_str(), self.manager.as_str());
        let manager = FieldManager { resource, subresource, name };
        manager.apply(old, applied, self.force)
    }

    /// What says no namespace gets the request's; what says another is refused.
    fn fit_namespace(&self, object: &mut Value) -> Result<(), Status> {
        match (self.resource.def.is_namespaced(), object.namespace()) {
            (true, "") => object.set(&["metadata", "namespace"], self.namespace.as_str()),
            (true, other) if other != self.namespace => {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            (false, other) if !other.is_empty() => drop(object.remove(&["metadata", "namespace"])),
            _ => {}
        }
        Ok(())
    }

    /// Takes the patched tree through the schema.
    fn typed(&self, object: Value) -> Result<Value, Status> {
        let shown = json::encode(&object);
        let invalid = |why: &str| {
            let mut errs = FieldErrors::new();
            errs.invalid_value(&Path::new("patch"), String::from_utf8_lossy(&shown).into_owned(), why);
            Status::invalid(&Gvk::default(), "", &errs)
        };
        let converter_words = matches!(self.operations, Operations::Strategic(_));
        let options = Options { converter_words, ..Options::default() };
        let decoded = match &self.resource.custom {
            Some(custom) if self.subresource != "scale" => crate::custom::typed(custom, object),
            _ => codec::from_value(object, self.ty, options),
        };
        let mut decoded = decoded.map_err(|e| invalid(&e.to_string()))?;
        decoded.strict.splice(0..0, self.strict.iter().cloned());
        match self.validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => *self.warnings.lock() = decoded.warnings().cloned().collect(),
            FieldValidation::Strict => {
                if let Some(why) = decoded.strict_error() {
                    return Err(invalid(&why));
                }
            }
        }
        let mut object = decoded.value;
        object.set(&["kind"], self.kind.kind.as_str());
        object.set(&["apiVersion"], self.kind.group_version().to_string());
        Ok(object)
    }

    /// An apply of an object that is not there makes it.
    #[must_use]
    pub(crate) fn makes_missing_objects(&self) -> bool {
        matches!(self.operations, Operations::Apply(_))
    }

    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }
}

/// An object to apply, and what comes twice in it.
///
/// # Errors
/// 400 for what cannot be read.
pub(crate) fn parse_applied(kind: PatchKind, bytes: &[u8]) -> Result<(Value, Vec<String>), Status> {
    if kind == PatchKind::ApplyCbor {
        let bad = |e: DecodeError| Status::bad_request(format!("error decoding CBOR: {e}"));
        return Ok((cbor::parse(bytes).map_err(bad)?, Vec::new()));
    }
    let bad = |why: &str| Status::bad_request(format!("error decoding YAML: {why}"));
    let document = yaml::parse(bytes).map_err(|e| bad(&format!("error converting YAML to JSON: {e}")))?;
    let found = match document.value {
        Value::Object(_) | Value::Null => return Ok((document.value, document.duplicates)),
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Int(_) | Value::Float(_) => "number",
    };
    Err(bad(&format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go value of type \
         map[string]interface {{}}"
    )))
}

fn patch_error(error: &PatchError) -> Status {
    match error {
        PatchError::Malformed(why) => Status::bad_request(why),
        PatchError::Unprocessable(_) => {
            // Upstream keeps the reason to itself.
            let message = "the server rejected our request due to an error in our request";
            Status::new(422, "Invalid", message).with_details(Details::default())
        }
        PatchError::TooLarge(why) => Status::too_large(why),
        PatchError::Directive(why) => status::plain(why),
    }
}
