//! Volumes that show objects of the API: the pod's own fields, and several sources in one directory.

use apimachinery::field::{Cursor, FieldErrors, Path};

use super::volume_sources::{BAD_MODE, key_to_path, mode};
use super::{Options, environment};
use crate::validation::labels::label_selector;
use crate::validation::names::{dns_label, dns_subdomain, qualified_name};
use crate::validation::{Checks, int, paths, text};

const CONFLICT: &str = "conflicting duplicate paths";

/// A directory of the pod's own fields. Upstream leaves the index out of its paths.
pub(super) fn downward_api(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    mode(errs, &at.field("defaultMode"));
    for item in at.field("items").elements() {
        file(errs, &Cursor::new(at.path.clone(), item.value));
    }
}

fn file(errs: &mut FieldErrors, at: &Cursor<'_>) {
    let path = at.field("path");
    errs.present(&path, "");
    paths::not_reserved(errs, &path);
    let (field, amount) = (at.field("fieldRef"), at.field("resourceFieldRef"));
    if !field.is_absent() {
        environment::field_reference(errs, &field, environment::FILE_FIELDS);
        if !amount.is_absent() {
            errs.invalid_value(
                &at.path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
    } else if amount.is_absent() {
        errs.required(&at.path, "one of fieldRef and resourceFieldRef is required");
    } else {
        environment::amount_reference(errs, &amount, true);
    }
    let bits = at.field("mode");
    if !bits.is_absent() && !(0..=0o777).contains(&int(bits.value)) {
        errs.invalid(&bits, BAD_MODE);
    }
}

/// Several sources in one directory.
pub(super) fn projected(errs: &mut FieldErrors, at: &Cursor<'_>, options: Options) {
    mode(errs, &at.field("defaultMode"));
    let mut taken = Taken { at: at.path.clone(), paths: Vec::new() };
    for source in at.field("sources").elements() {
        let mut count = 0;
        for kind in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            let given = source.field(kind);
            if given.is_absent() {
                continue;
            }
            count += 1;
            match kind {
                "secret" | "configMap" => keys(errs, &given, &mut taken),
                "downwardAPI" => {
                    for item in given.value["items"].items() {
                        file(errs, &Cursor::new(given.path.clone(), item));
                        let path = item.str_at(&["path"]);
                        taken.take_if_any(errs, path, path);
                    }
                }
                "serviceAccountToken" => token(errs, &given, &at.path, options),
                "clusterTrustBundle" => trust_bundle(errs, &given, &mut taken),
                _ => certificate(errs, &given, &mut taken),
            }
        }
        if count > 1 {
            errs.forbidden(&source.path, "may not specify more than 1 volume type per source");
        }
    }
}

/// The files that sources have taken so far.
struct Taken {
    at: Path,
    paths: Vec<String>,
}

impl Taken {
    fn take(&mut self, errs: &mut FieldErrors, path: &str, shown: &str) {
        if self.paths.iter().any(|p| p == path) {
            errs.invalid_value(&self.at, shown, CONFLICT);
        } else {
            self.paths.push(path.to_owned());
        }
    }

    fn take_if_any(&mut self, errs: &mut FieldErrors, path: &str, shown: &str) {
        if !path.is_empty() {
            self.take(errs, path, shown);
        }
    }
}

fn keys(errs: &mut FieldErrors, at: &Cursor<'_>, taken: &mut Taken) {
    let name = at.field("name");
    errs.present(&name, "");
    for item in at.field("items").elements() {
        key_to_path(errs, &item);
        taken.take_if_any(errs, item.value.str_at(&["path"]), text(&name));
    }
}

fn token(errs: &mut FieldErrors, at: &Cursor<'_>, volume: &Path, options: Options) {
    let seconds = at.field("expirationSeconds");
    if int(seconds.value) < 600 {
        errs.invalid_int(&seconds, "may not specify a duration less than 10 minutes");
    }
    if int(seconds.value) > 1 << 32 {
        errs.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
    }
    let path = Cursor::new(volume.child("path"), &at.value["path"]);
    if errs.present(&path, "") && !options.any_token_path {
        paths::not_reserved(errs, &path);
    }
}

fn trust_bundle(errs: &mut FieldErrors, at: &Cursor<'_>, taken: &mut Taken) {
    let (name, signer, selector) = (at.field("name"), at.field("signerName"), at.field("labelSelector"));
    match (name.is_absent(), signer.is_absent()) {
        (false, false) => errs.invalid_struct(at, "only one of name and signerName may be used"),
        (false, true) => {
            if text(&name).is_empty() {
                errs.required(&name.path, "must be a valid object name");
            }
            for message in bundle_name(text(&name)) {
                errs.invalid_text(&name, format!("not a valid clustertrustbundlename: {message}"));
            }
            if !selector.is_absent() {
                errs.invalid(&selector, "labelSelector must be unset if name is specified");
            }
        }
        (true, false) => {
            if text(&signer).is_empty() {
                errs.required(&signer.path, "must be a valid signer name");
            }
            signer_name(errs, &signer);
            label_selector(errs, &selector, true);
        }
        (true, true) => errs.required(&at.path, "either name or signerName must be specified"),
    }
    let path = at.field("path");
    errs.present(&path, "");
    paths::not_reserved(errs, &path);
    taken.take(errs, text(&path), text(&path));
}

/// The name of a bundle: those of a signer begin with its name.
fn bundle_name(name: &str) -> Vec<String> {
    match name.rsplit_once(':') {
        Some((_, own)) => dns_subdomain(own),
        None => dns_subdomain(name),
    }
}

/// A signer: a domain and a path below it.
pub(crate) fn signer_name(errs: &mut FieldErrors, at: &Cursor<'_>) {
    const FORM: &str = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
    let name = text(at);
    if name.is_empty() {
        errs.required(&at.path, "");
        return;
    }
    let Some((domain, path)) = name.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        errs.invalid_text(at, FORM);
        return;
    };
    if domain.split('.').count() < 2 {
        errs.invalid_value(&at.path, domain, "should be a domain with at least two segments separated by dots");
    }
    for segment in domain.split('.').filter(|s| !dns_label(s).is_empty()) {
        let why = format!(
            "validating label {segment:?}: {}",
            dns_label(segment).first().map(String::as_str).unwrap_or_default()
        );
        errs.invalid_value(&at.path, domain, why);
    }
    for segment in path.split('.').filter(|s| !dns_label(s).is_empty()) {
        let why = dns_label(segment).first().cloned().unwrap_or_default();
        errs.invalid_value(&at.path, path, format!("validating label {segment:?}: {why}"));
    }
    const MAX: usize = 253 + 63 + 1 + 253 + 1 + 63;
    if name.len() > MAX {
        errs.too_long(&at.path, MAX);
    }
}

fn certificate(errs: &mut FieldErrors, at: &Cursor<'_>, taken: &mut Taken) {
    const KEYS: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    const LONGEST: i64 = 91 * 86400;
    const LONGEST_OF_KUBERNETES: i64 = 86400;
    signer_name(errs, &at.field("signerName"));
    for (key, value) in at.field("userAnnotations").map_entries() {
        for message in qualified_name(&key.to_lowercase()) {
            errs.invalid_value(&Path::new(value.path.as_str()), key, message);
        }
    }
    errs.one_of(&at.field("keyType"), KEYS);
    let expiration = at.field("maxExpirationSeconds");
    if !expiration.is_absent() {
        let seconds = int(expiration.value);
        if seconds < 3600 {
            errs.invalid(&expiration, "if provided, maxExpirationSeconds must be >= 3600");
        }
        let own = at.value.str_at(&["signerName"]).starts_with("kubernetes.io/");
        let longest = if own { LONGEST_OF_KUBERNETES } else { LONGEST };
        if seconds > longest {
            errs.invalid(&expiration, format!("if provided, maxExpirationSeconds must be <= {longest}"));
        }
    }
    let mut any = false;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let path = at.field(field);
        if !text(&path).is_empty() {
            any = true;
            paths::not_reserved(errs, &path);
            taken.take(errs, text(&path), text(&path));
        }
    }
    if !any {
        errs.required(&at.path, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
    }
}
