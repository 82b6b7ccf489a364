//! The conditions that newer kinds have (`metav1.Condition`).

use apimachinery::field::{Cursor, FieldErrors};

use super::labels::label_name;
use super::{Checks, int, text};

const MAX_MESSAGE: usize = 32 << 10;
const MAX_REASON: usize = 1 << 10;

pub(crate) fn validate(errs: &mut FieldErrors, list: &Cursor<'_>) {
    let mut seen: Vec<&str> = Vec::new();
    for condition in list.elements() {
        let kind = condition.field("type");
        if errs.present(&kind, "must be set") {
            label_name(errs, &kind);
            if seen.contains(&text(&kind)) {
                errs.duplicate(&kind.path, text(&kind));
            }
            seen.push(text(&kind));
        }
        errs.one_of(&condition.field("status"), &["False", "True", "Unknown"]);
        let observed = condition.field("observedGeneration");
        if int(observed.value) < 0 {
            errs.invalid(&observed, "must be greater than or equal to zero");
        }
        errs.present(&condition.field("lastTransitionTime"), "must be set");
        let reason = condition.field("reason");
        if errs.present(&reason, "must be set") {
            if text(&reason).len() > MAX_REASON {
                errs.too_long(&reason.path, MAX_REASON);
            }
            if !is_reason(text(&reason)) {
                errs.invalid(
                    &reason,
                    "a condition reason must start with alphabetic character, optionally followed by a string of \
                     alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. \
                     'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for \
                     validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')",
                );
            }
        }
        let message = condition.field("message");
        if text(&message).len() > MAX_MESSAGE {
            errs.too_long(&message.path, MAX_MESSAGE);
        }
    }
}

fn is_reason(reason: &str) -> bool {
    let bytes = reason.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':'))
}
