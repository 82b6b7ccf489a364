//! How a pod resolves names, and what it is called itself.

use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::names::dns_subdomain;
use crate::validation::{Checks, net, text};

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;
const MAX_HOSTNAME: usize = 64;

pub(super) fn config(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let config = spec.field("dnsConfig");
    let (servers, searches) = (config.field("nameservers"), config.field("searches"));
    if spec.value.str_at(&["dnsPolicy"]) == "None" {
        if config.is_absent() {
            errs.required(&config.path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if !errs.present(&servers, "must provide at least one DNS nameserver when `dnsPolicy` is None") {
            return;
        }
    }
    if servers.value.items().len() > MAX_SERVERS {
        errs.invalid(&servers, format!("must not have more than {MAX_SERVERS} nameservers"));
    }
    for server in servers.elements() {
        net::legacy_ip(errs, &server, &[]);
    }
    let paths: Vec<&str> = searches.value.items().iter().filter_map(|s| s.as_str()).collect();
    if paths.len() > MAX_SEARCHES {
        errs.invalid(&searches, format!("must not have more than {MAX_SEARCHES} search paths"));
    }
    if paths.join(" ").len() > MAX_SEARCH_CHARACTERS {
        let why =
            format!("must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list");
        errs.invalid(&searches, why);
    }
    for search in searches.elements().filter(|s| text(s) != ".") {
        let domain = text(&search).strip_suffix('.').unwrap_or(text(&search));
        for message in search_domain(domain) {
            errs.invalid_value(&search.path, domain, message);
        }
    }
    for option in config.field("options").elements() {
        if option.value.str_at(&["name"]).is_empty() {
            errs.required(&option.path, "must not be empty");
        }
    }
}

/// A domain to search in: labels may have underscores.
fn search_domain(domain: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if domain.len() > 253 {
        wrong.push("must be no more than 253 characters".to_owned());
    }
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let good = domain.split('.').all(|label| {
        let bytes = label.strip_prefix('_').unwrap_or(label).as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    });
    if !good {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

pub(super) fn hostname_override(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let name = spec.field("hostnameOverride");
    if name.is_absent() {
        return;
    }
    if spec.value["setHostnameAsFQDN"].as_bool() == Some(true) {
        errs.forbidden(&name.path, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.value["hostNetwork"].as_bool() == Some(true) {
        errs.forbidden(&name.path, "may not be specified when hostNetwork is true");
    }
    if text(&name).len() > MAX_HOSTNAME {
        errs.too_long(&name.path, MAX_HOSTNAME);
    }
    errs.each(&name, dns_subdomain(text(&name)));
}
