//! CertificateSigningRequest.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_label, dns_subdomain, path_segment};
use crate::validation::{Checks, int, text};

pub(crate) struct CertificateSigningRequestStrategy;

const MIN_SECONDS: i64 = 600;
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Conditions that only say yes, and only `approval` may set.
const VERDICTS: [&str; 2] = ["Approved", "Denied"];

/// `example.com/name`: who is to sign.
pub(super) fn signer_name(at: &Cursor<'_>, errs: &mut FieldErrors) {
    const MAX_PATH: usize = 253 + 1 + 63;
    if !errs.present(at, "") {
        return;
    }
    let parts: Vec<&str> = text(at).split('/').collect();
    let [domain, path] = parts.as_slice() else {
        errs.invalid(at, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
        return;
    };
    if domain.len() > 253 {
        errs.too_long(&at.path, 253);
    }
    let labels: Vec<&str> = domain.split('.').collect();
    for label in &labels {
        for message in dns_label(label) {
            errs.invalid_value(&at.path, *domain, format!("validating label {label:?}: {message}"));
        }
    }
    if labels.len() < 2 {
        errs.invalid_value(&at.path, *domain, "should be a domain with at least two segments separated by dots");
    }
    for label in path.split('.') {
        for message in dns_subdomain(label) {
            errs.invalid_value(&at.path, *path, format!("validating label {label:?}: {message}"));
        }
    }
    if path.len() > MAX_PATH {
        errs.too_long(&at.path, MAX_PATH);
    }
}

/// Why bytes are no request for a certificate.
fn bad_request(bytes: &[u8]) -> Option<String> {
    let block = x509_parser::pem::Pem::iter_from_buffer(bytes).next().and_then(Result::ok);
    let Some(block) = block.filter(|b| b.label == "CERTIFICATE REQUEST") else {
        return Some("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    use x509_parser::prelude::FromDer;
    match x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents) {
        Ok(_) => None,
        Err(_) => Some("asn1: structure error: tags don't match".to_owned()),
    }
}

/// The rules of `status.conditions`; what the old object breaks, the new one may go on breaking.
#[must_use]
pub fn validate_conditions(request: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let held: Vec<&str> = old.at(&["status", "conditions"]).items().iter().map(|c| c.str_at(&["type"])).collect();
    let both = VERDICTS.iter().all(|v| held.contains(v));
    let mut seen: Vec<&str> = Vec::new();
    for condition in Cursor::root(request).fields(&["status", "conditions"]).elements() {
        let (kind, status) = (condition.field("type"), condition.field("status"));
        if text(&kind).is_empty() {
            errs.required(&kind.path, "");
        }
        let known: &[&str] = match text(&kind) {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        if text(&status).is_empty() {
            errs.required(&status.path, "");
        } else {
            errs.one_of(&status, known);
        }
        if seen.contains(&text(&kind)) {
            errs.duplicate(&kind.path, text(&kind));
        }
        let opposite = VERDICTS.iter().find(|v| **v != text(&kind)).copied().unwrap_or_default();
        if VERDICTS.contains(&text(&kind)) && seen.contains(&opposite) && !both {
            errs.invalid(&kind, "Approved and Denied conditions are mutually exclusive");
        }
        seen.push(text(&kind));
    }
    errs
}

/// Verdicts as they were, and everything else as it is.
fn keep_verdicts(request: &mut Value, old: &Value) {
    let is_verdict = |c: &Value| VERDICTS.contains(&c.str_at(&["type"]));
    let all = |v: &Value| v.at(&["status", "conditions"]).items().to_vec();
    let mut kept: Vec<Value> = all(old).into_iter().filter(is_verdict).collect();
    kept.extend(all(request).into_iter().filter(|c| !is_verdict(c)));
    if kept.is_empty() {
        request.remove(&["status", "conditions"]);
    } else {
        request.set(&["status", "conditions"], kept);
    }
}

impl Strategy for CertificateSigningRequestStrategy {
    fn default(&self, _: &mut Value) {}

    fn prepare_for_create(&self, request: &mut Value) {
        request.set(&["status"], Value::object());
    }

    fn prepare_for_update(&self, request: &mut Value, old: &Value) {
        request.set(&["spec"], old["spec"].clone());
    }

    fn prepare_for_status_update(&self, request: &mut Value, old: &Value) {
        keep_verdicts(request, old);
    }

    fn stamp(&self, request: &mut Value, old: Option<&Value>, now: &str) {
        if request.at(&["status", "conditions"]).items().is_empty() {
            return;
        }
        let held = old.map(|o| o.at(&["status", "conditions"]).items().to_vec()).unwrap_or_default();
        for condition in request.entry(&["status", "conditions"]).items_mut() {
            condition.set_default(&["lastUpdateTime"], now);
            if condition["lastTransitionTime"].is_null() {
                let before = held.iter().find(|c| c["type"] == condition["type"] && c["status"] == condition["status"]);
                let since = before.map_or_else(|| Value::from(now), |c| c["lastTransitionTime"].clone());
                condition.set(&["lastTransitionTime"], since);
            }
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        if prefix { Vec::new() } else { path_segment(name) }
    }

    fn validate(&self, request: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(request).field("spec");
        let body = spec.field("request");
        if let Some(why) = bad_request(&STANDARD.decode(text(&body)).unwrap_or_default()) {
            errs.invalid_text(&body, why);
        }
        let usages = spec.field("usages");
        errs.present(&usages, "usages must be provided");
        for (i, usage) in usages.elements().enumerate() {
            if !USAGES.contains(&text(&usage)) {
                errs.one_of(&usage, USAGES);
            } else if usages.items()[..i].contains(usage.value) {
                errs.duplicate(&usage.path, text(&usage));
            }
        }
        signer_name(&spec.field("signerName"), &mut errs);
        let seconds = spec.field("expirationSeconds");
        if !seconds.is_absent() && int(&seconds) < MIN_SECONDS {
            errs.invalid(&seconds, "may not specify a duration less than 600 seconds (10 minutes)");
        }
        errs.extend(validate_conditions(request, &Value::Null));
        errs
    }

    fn validate_update(&self, _: &Value, _: &Value) -> FieldErrors {
        // The spec cannot change, and was good when it came.
        FieldErrors::new()
    }

    fn validate_status_update(&self, request: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate_conditions(request, old);
        let path = Path::new("status.certificate");
        let (new, was) = (request.str_at(&["status", "certificate"]), old.str_at(&["status", "certificate"]));
        if new == was {
            return errs;
        }
        if !was.is_empty() {
            errs.forbidden(&path, "updates may not modify existing certificate content");
        }
        if !new.is_empty() {
            let bytes = STANDARD.decode(new).unwrap_or_default();
            let mut blocks = x509_parser::pem::Pem::iter_from_buffer(&bytes);
            if !blocks.any(|b| b.is_ok_and(|b| b.label == "CERTIFICATE")) {
                errs.invalid_value(
                    &path,
                    "<certificate data>",
                    "must contain at least one PEM block of type \"CERTIFICATE\"",
                );
            }
        }
        errs
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("spec.signerName", &["spec", "signerName"])]
    }

    fn row(&self, request: &Value, now: Now) -> Option<Vec<Cell>> {
        let (spec, status) = (&request["spec"], &request["status"]);
        let or_none = |s: &str| if s.is_empty() { "<none>".to_owned() } else { s.to_owned() };
        let duration = spec["expirationSeconds"].as_i64();
        let has = |kind: &str| status["conditions"].items().iter().any(|c| c.str_at(&["type"]) == kind);
        let mut condition = String::new();
        if has("Denied") {
            condition.push_str("Denied");
        } else if has("Approved") {
            condition.push_str("Approved");
        } else {
            condition.push_str("Pending");
        }
        if has("Failed") {
            condition.push_str(",Failed");
        }
        if !status.str_at(&["certificate"]).is_empty() {
            condition.push_str(",Issued");
        }
        Some(vec![
            request.name().into(),
            table_cells::created(request, now),
            or_none(spec.str_at(&["signerName"])).into(),
            spec.str_at(&["username"]).into(),
            duration.map_or_else(|| "<none>".to_owned(), table_cells::human_duration).into(),
            condition.into(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn requests_are_checked() {
        let request = serde_json::from_str(
            r#"{"spec":{"request":"eA==","signerName":"a.b/c/d","usages":["any","any"],"expirationSeconds":10}}"#,
        )
        .unwrap();
        assert_findings(
            &CertificateSigningRequestStrategy.validate(&request),
            &[
                r#"spec.request: Invalid value: "eA==": PEM block type must be CERTIFICATE REQUEST"#,
                r#"spec.usages[1]: Duplicate value: "any""#,
                r#"spec.signerName: Invalid value: "a.b/c/d": must be a fully qualified domain and path of the form 'example.com/signer-name'"#,
                "spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 600 seconds (10 minutes)",
            ],
        );
    }

    #[test]
    fn a_verdict_is_given_once() {
        let request = serde_json::from_str(
            r#"{"status":{"conditions":[{"type":"Approved","status":"True"},{"type":"Denied","status":"False"}]}}"#,
        )
        .unwrap();
        assert_findings(
            &validate_conditions(&request, &Value::Null),
            &[
                r#"status.conditions[1].status: Unsupported value: "False": supported values: "True""#,
                r#"status.conditions[1].type: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive"#,
            ],
        );
    }
}
