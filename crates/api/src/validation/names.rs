//! What names look like. Each rule gives upstream's message for every way in which the text breaks it.

pub(crate) use apimachinery::selector::syntax::{dns_label, dns_subdomain, label_value, qualified_name};

const TOO_LONG_63: &str = "must be no more than 63 characters";

/// A DNS label that begins with a letter (RFC 1035).
pub(crate) fn dns_1035_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 63 {
        wrong.push(TOO_LONG_63.to_owned());
    }
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let ends_well = bytes.last().is_some_and(|b| *b != b'-');
    if !(bytes.first().is_some_and(u8::is_ascii_lowercase) && ends_well && bytes.iter().all(inner)) {
        wrong.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
             '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// `*.example.com`.
pub(crate) fn wildcard_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push("must be no more than 253 characters".to_owned());
    }
    if !text.strip_prefix("*.").is_some_and(|rest| dns_subdomain(rest).iter().all(|m| m.starts_with("must be no more")))
    {
        wrong.push(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
             lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', \
             regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// A key of a ConfigMap or Secret.
pub(crate) fn config_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 253 {
        wrong.push("must be no more than 253 characters".to_owned());
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(good) {
        wrong.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
             or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match text {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// A name that is only ever a segment of a path.
pub(crate) fn path_segment(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name == "." || name == ".." {
        wrong.push(format!("may not be '{name}'"));
        return wrong;
    }
    for part in ["/", "%"] {
        if name.contains(part) {
            wrong.push(format!("may not contain '{part}'"));
        }
    }
    wrong
}

/// The name of a port, as IANA registers services.
pub(crate) fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    let bytes = text.as_bytes();
    if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-') || bytes.is_empty() {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if bytes.first() == Some(&b'-') || bytes.last() == Some(&b'-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// A name, or the prefix of one: a prefix may end with a hyphen, because something follows it.
pub(crate) fn or_prefix(rule: fn(&str) -> Vec<String>, name: &str, prefix: bool) -> Vec<String> {
    match name.strip_suffix('-').filter(|_| prefix) {
        Some(rest) => rule(&format!("{rest}a")),
        None => rule(name),
    }
}

/// A C identifier.
pub(crate) fn c_identifier(text: &str) -> Vec<String> {
    let mut bytes = text.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if starts && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Vec::new();
    }
    vec![
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or \
         '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')"
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: fn(&str) -> Vec<String>, text: &str, findings: usize) {
        assert_eq!(rule(text).len(), findings, "{text}: {:?}", rule(text));
    }

    #[test]
    fn names_are_told_apart() {
        check(dns_1035_label, "a-1", 0);
        check(dns_1035_label, "1a", 1);
        check(wildcard_subdomain, "*.a.b", 0);
        check(wildcard_subdomain, "a.*", 1);
        check(config_key, "a.B_-", 0);
        check(config_key, "..a", 1);
        check(config_key, "a b", 1);
        check(config_key, "", 1);
        check(path_segment, "system:a", 0);
        check(path_segment, "a/b%", 2);
        check(port_name, "http-1", 0);
        check(port_name, "bad name!", 1);
        check(port_name, "--1-----------------", 4);
        check(c_identifier, "a1", 0);
        check(c_identifier, "1a", 1);
        assert!(or_prefix(dns_label, "a-", true).is_empty());
        assert_eq!(or_prefix(dns_label, "a-", false).len(), 1);
    }
}
