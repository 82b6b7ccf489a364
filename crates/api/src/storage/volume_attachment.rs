//! VolumeAttachment.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::core::volume_sources::csi_driver_name;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::dns_subdomain;
use crate::validation::{Checks, same, text};

pub(crate) struct VolumeAttachmentStrategy;

const MAX_METADATA: usize = 256 << 10;
const MAX_MESSAGE: usize = 1024;
const ONE_SOURCE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";

fn validate_status(attachment: &Value, errs: &mut FieldErrors) {
    let status = Cursor::root(attachment).field("status");
    let metadata = status.field("attachmentMetadata");
    let size: usize = metadata.entries().iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > MAX_METADATA {
        errs.too_long(&metadata.path, MAX_METADATA);
    }
    for field in ["attachError", "detachError"] {
        let message = status.field(field).field("message");
        if text(&message).len() > MAX_MESSAGE {
            errs.too_long(&message.path, MAX_MESSAGE);
        }
    }
}

impl Strategy for VolumeAttachmentStrategy {
    fn prepare_for_create(&self, attachment: &mut Value) {
        attachment.set(&["status"], Value::from([("attached", false.into())]));
    }

    fn validate(&self, attachment: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(attachment).field("spec");
        csi_driver_name(&spec.field("attacher"), &mut errs);
        let source = spec.field("source");
        let (inline, name) = (source.field("inlineVolumeSpec"), source.field("persistentVolumeName"));
        match (inline.is_absent(), name.is_absent()) {
            (true, true) => errs.required(&source.path, ONE_SOURCE),
            (false, false) => errs.forbidden(&source.path, ONE_SOURCE),
            (true, false) => {
                if errs.present(&name, "must specify non empty persistentVolumeName") {
                    errs.each(&name, dns_subdomain(text(&name)));
                }
            }
            (false, true) => {}
        }
        let node = spec.field("nodeName");
        errs.each(&node, dns_subdomain(text(&node)));
        validate_status(attachment, &mut errs);
        errs
    }

    fn validate_update(&self, attachment: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(attachment);
        let spec = Cursor::root(attachment).field("spec");
        if !same(spec.value, &old["spec"]) {
            errs.invalid_struct(&spec, "field is immutable");
        }
        errs
    }

    fn validate_status_update(&self, attachment: &Value, old: &Value) -> FieldErrors {
        self.validate_update(attachment, old)
    }

    fn row(&self, attachment: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &attachment["spec"];
        Some(vec![
            attachment.name().into(),
            spec.str_at(&["attacher"]).into(),
            spec.str_at(&["source", "persistentVolumeName"]).into(),
            spec.str_at(&["nodeName"]).into(),
            attachment.at(&["status", "attached"]).as_bool().unwrap_or_default().into(),
            table_cells::created(attachment, now),
        ])
    }
}
