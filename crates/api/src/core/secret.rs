//! Secret.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::config_map::MAX_DATA;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::config_key;

pub(crate) struct SecretStrategy;

const REDACTED: &str = "<secret contents redacted>";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

pub(super) fn entries(map: &Value) -> i64 {
    i64::try_from(map.entries().len()).unwrap_or_default()
}

/// How many bytes a base64 text stands for.
pub(super) fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take(2).filter(|b| *b == b'=').count().min(text.len() / 4 * 3)
}

/// What was declared immutable stays, and stays immutable.
pub(super) fn frozen(new: &Cursor<'_>, old: &Value, fields: &[&str]) -> FieldErrors {
    let mut errs = FieldErrors::new();
    if old["immutable"].as_bool() != Some(true) {
        return errs;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"].as_bool() != Some(true) {
        errs.forbidden(&new.path.child("immutable"), why);
    }
    for field in fields {
        if new[field] != old[*field] {
            errs.forbidden(&new.path.child(field), why);
        }
    }
    errs
}

/// What each type of secret must have.
fn validate_type(secret: &Value, errs: &mut FieldErrors) {
    let data = Path::new("data");
    let values = &secret["data"];
    let has = |key: &str| values.get(key).is_some();
    match secret.str_at(&["type"]) {
        "kubernetes.io/service-account-token" if secret.annotation(ACCOUNT_NAME).unwrap_or_default().is_empty() => {
            errs.required(&Path::new("metadata.annotations").key(ACCOUNT_NAME), "");
        }
        "kubernetes.io/dockercfg" => docker_config(values, ".dockercfg", errs),
        "kubernetes.io/dockerconfigjson" => docker_config(values, ".dockerconfigjson", errs),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errs.required(&data.key("username"), "");
            errs.required(&data.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if values.str_at(&["ssh-privatekey"]).is_empty() => {
            errs.required(&data.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)) {
                errs.required(&data.key(key), "");
            }
        }
        _ => {}
    }
}

/// A registry's credentials are a JSON object.
fn docker_config(data: &Value, key: &str, errs: &mut FieldErrors) {
    let path = Path::new("data").key(key);
    let Some(text) = data.get(key) else {
        errs.required(&path, "");
        return;
    };
    let bytes = STANDARD.decode(text.as_str().unwrap_or_default()).unwrap_or_default();
    if let Some(wrong) = json_object_error(&bytes) {
        errs.invalid_value(&path, REDACTED, wrong);
    }
}

/// What Go's decoder says of bytes that are no JSON object.
fn json_object_error(bytes: &[u8]) -> Option<String> {
    const TARGET: &str = "into Go value of type map[string]interface {}";
    match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(serde_json::Value::Object(_) | serde_json::Value::Null) => None,
        Ok(serde_json::Value::Array(_)) => Some(format!("json: cannot unmarshal array {TARGET}")),
        Ok(serde_json::Value::String(_)) => Some(format!("json: cannot unmarshal string {TARGET}")),
        Ok(serde_json::Value::Number(_)) => Some(format!("json: cannot unmarshal number {TARGET}")),
        Ok(serde_json::Value::Bool(_)) => Some(format!("json: cannot unmarshal bool {TARGET}")),
        Err(error) => apimachinery::codec::json_syntax_error(bytes).or_else(|| Some(error.to_string())),
    }
}

/// The types of the PEM blocks of a text.
fn pem_types(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
        .map(str::to_owned)
        .collect()
}

/// What Go says of a certificate and a key that make no pair.
fn pair_warning(certificate: &str, key: &str) -> Option<String> {
    let (certificates, keys) = (pem_types(certificate), pem_types(key));
    let is_key = |kind: &String| kind == "PRIVATE KEY" || kind.ends_with(" PRIVATE KEY");
    if !certificates.iter().any(|kind| kind == "CERTIFICATE") {
        return Some(match certificates.as_slice() {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [one] if is_key(one) => {
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; \
                                     PEM inputs may have been switched"
                    .to_owned()
            }
            all => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following \
                 types: [{}]",
                all.join(" ")
            ),
        });
    }
    if !keys.iter().any(is_key) {
        return Some(match keys.as_slice() {
            [] => "tls: failed to find any PEM data in key input".to_owned(),
            [one] if one == "CERTIFICATE" => {
                "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
            }
            all => format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of \
                 the following types: [{}]",
                all.join(" ")
            ),
        });
    }
    None
}

impl Strategy for SecretStrategy {
    fn default(&self, secret: &mut Value) {
        secret.set_default(&["type"], "Opaque");
        merge_texts(secret);
    }

    fn validate(&self, secret: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let data = Cursor::root(secret).field("data");
        let mut total = 0;
        for (key, value) in data.map_entries() {
            for message in config_key(key) {
                errs.invalid_value(&value.path, key, message);
            }
            total += decoded_len(value.as_str().unwrap_or_default());
        }
        if total > MAX_DATA {
            errs.too_long(&data.path, MAX_DATA);
        }
        validate_type(secret, &mut errs);
        errs
    }

    fn validate_update(&self, secret: &Value, old: &Value) -> FieldErrors {
        let (new, was) = (Cursor::root(secret), Cursor::root(old));
        let mut errs = FieldErrors::new();
        errs.immutable(&new.field("type"), &was.field("type"));
        errs.extend(frozen(&new, old, &["data"]));
        errs.extend(self.validate(secret));
        errs
    }

    fn warnings(&self, secret: &Value, _: Option<&Value>) -> Vec<String> {
        if secret.str_at(&["type"]) != "kubernetes.io/tls" {
            return Vec::new();
        }
        let part = |key: &str| {
            let bytes = STANDARD.decode(secret.str_at(&["data", key])).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        pair_warning(&part("tls.crt"), &part("tls.key")).into_iter().collect()
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("type", &["type"])]
    }

    fn row(&self, secret: &Value, now: Now) -> Option<Vec<Cell>> {
        let kind = secret.str_at(&["type"]);
        Some(vec![
            secret.name().into(),
            kind.into(),
            entries(&secret["data"]).into(),
            table_cells::created(secret, now),
        ])
    }
}

/// Plain text that the client gave becomes data, and wins over it.
fn merge_texts(secret: &mut Value) {
    if let Some(Value::Object(texts)) = secret.remove(&["stringData"]) {
        for (key, text) in texts {
            let encoded = STANDARD.encode(text.as_str().unwrap_or_default().as_bytes());
            secret.set(&["data", &key], encoded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(secret: &str, want: &[&str]) {
        assert_findings(&SecretStrategy.validate(&serde_json::from_str(secret).unwrap()), want);
    }

    #[test]
    fn every_type_has_what_it_needs() {
        check(
            r#"{"type":"kubernetes.io/tls","data":{}}"#,
            &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
        );
        check(
            r#"{"type":"kubernetes.io/basic-auth"}"#,
            &["data[username]: Required value", "data[password]: Required value"],
        );
        check(r#"{"type":"kubernetes.io/ssh-auth"}"#, &["data[ssh-privatekey]: Required value"]);
        check(
            r#"{"type":"kubernetes.io/dockerconfigjson","data":{".dockerconfigjson":"W10="}}"#,
            &[
                r#"data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": json: cannot unmarshal array into Go value of type map[string]interface {}"#,
            ],
        );
        check(
            r#"{"type":"kubernetes.io/service-account-token"}"#,
            &["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
        );
        assert_eq!(decoded_len("eA=="), 1);
        assert_eq!(decoded_len(""), 0);
    }
}
