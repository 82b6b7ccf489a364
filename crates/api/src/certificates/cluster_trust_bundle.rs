//! ClusterTrustBundle.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};
use x509_parser::prelude::FromDer;

use super::signing_request::signer_name;
use crate::strategy::{Cell, Now, Strategy, dns_subdomain};
use crate::validation::names::path_segment;
use crate::validation::{Checks, text};

pub(crate) struct ClusterTrustBundleStrategy;

/// Anchors that a bundle may hold at most, in bytes.
const MAX_BUNDLE: usize = 1 << 20;

/// What names of a signer's bundles begin with.
fn prefix_of(signer: &str) -> String {
    format!("{}:", signer.replace('/', ":"))
}

/// Why a text is no bundle of trust anchors.
fn bad_bundle(text: &str) -> Option<String> {
    let mut blocks = Vec::new();
    for (i, block) in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()).enumerate() {
        let Ok(block) = block else { return Some(format!("entry {i} cannot be parsed")) };
        if block.label != "CERTIFICATE" {
            return Some(format!("entry {i} has bad block type: {}", block.label));
        }
        let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(&block.contents) else {
            return Some(format!("entry {i} does not parse as X.509"));
        };
        if !certificate.is_ca() {
            return Some(format!("entry {i} does not have the CA bit set"));
        }
        if blocks.contains(&block.contents) {
            return Some("duplicate trust anchor (indices".to_owned() + &format!(" {i})"));
        }
        blocks.push(block.contents);
    }
    blocks.is_empty().then(|| "at least one trust anchor must be provided".to_owned())
}

impl Strategy for ClusterTrustBundleStrategy {
    fn validate(&self, bundle: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(bundle);
        let name = root.fields(&["metadata", "name"]);
        let signer = root.fields(&["spec", "signerName"]);
        if text(&signer).is_empty() {
            if text(&name).contains(':') {
                errs.invalid_text(&name, "ClusterTrustBundle without signer name must not have \":\" in its name");
            }
        } else {
            signer_name(&signer, &mut errs);
            let prefix = prefix_of(text(&signer));
            if !text(&name).starts_with(&prefix) {
                let why =
                    format!("ClusterTrustBundle for signerName {} must be named with prefix {prefix}", text(&signer));
                errs.invalid_text(&name, why);
            }
        }
        let anchors = root.fields(&["spec", "trustBundle"]);
        if text(&anchors).len() > MAX_BUNDLE {
            errs.too_long(&anchors.path, MAX_BUNDLE);
        } else if let Some(why) = bad_bundle(text(&anchors)) {
            errs.invalid_value(&anchors.path, "<value omitted>", why);
        }
        errs
    }

    fn validate_update(&self, bundle: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(bundle);
        let signer = |value| Cursor::root(value).fields(&["spec", "signerName"]);
        errs.immutable(&signer(bundle), &signer(old));
        errs
    }

    /// Names of bundles of signers have colons in them.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        match name.rsplit_once(':') {
            Some((_, last)) if !last.is_empty() => [path_segment(name), dns_subdomain(last, prefix)].concat(),
            Some(_) => path_segment(name),
            None => dns_subdomain(name, prefix),
        }
    }

    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("spec.signerName", &["spec", "signerName"])]
    }

    fn row(&self, bundle: &Value, _: Now) -> Option<Vec<Cell>> {
        let signer = bundle.str_at(&["spec", "signerName"]);
        Some(vec![bundle.name().into(), if signer.is_empty() { "<none>" } else { signer }.into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, signer: &str, bundle: &str, want: &[&str]) {
        let object = Value::from([
            ("metadata", Value::from([("name", name.into())])),
            ("spec", Value::from([("signerName", signer.into()), ("trustBundle", bundle.into())])),
        ]);
        let found: Vec<String> =
            ClusterTrustBundleStrategy.validate(&object).0.iter().map(ToString::to_string).collect();
        assert_eq!(found, want);
    }

    const NOTHING: &str =
        "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided";

    #[test]
    fn a_signers_bundles_bear_its_name() {
        check("mine", "", "", &[NOTHING]);
        check(
            "a:b",
            "",
            "",
            &[
                "metadata.name: Invalid value: \"a:b\": ClusterTrustBundle without signer name must not have \":\" in its name",
                NOTHING,
            ],
        );
        check("example.com:s:one", "example.com/s", "", &[NOTHING]);
        check(
            "one",
            "example.com/s",
            "",
            &[
                "metadata.name: Invalid value: \"one\": ClusterTrustBundle for signerName example.com/s must be named with prefix example.com:s:",
                NOTHING,
            ],
        );
    }

    #[test]
    fn names_may_have_colons() {
        assert_eq!(ClusterTrustBundleStrategy.validate_name("example.com:s:one", false), Vec::<String>::new());
        assert_eq!(ClusterTrustBundleStrategy.validate_name("One", false).len(), 1);
    }
}
