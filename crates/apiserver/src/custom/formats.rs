//! The formats of strings that schemas may ask for. A format that is not known asks for nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use expressions::pattern;

/// Is the text of that format?
#[must_use]
pub(super) fn fits(format: &str, text: &str) -> bool {
    let matches = |p: &str| pattern(p).is_ok_and(|r| r.is_match(text));
    match format {
        "date-time" | "datetime" => apimachinery::time::parse(text).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "byte" => expressions::decode_base64(text).is_some(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "mac" => matches("^([0-9A-Fa-f]{2}[:-]){5}([0-9A-Fa-f]{2})$"),
        "uuid" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        "uuid3" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        "uuid4" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        "uuid5" => matches("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        "hostname" => {
            let label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
            text.len() <= 255 && matches(&format!(r"^{label}(\.{label})*\.?$"))
        }
        "email" => matches(r"^[^@\s]+@[^@\s]+$"),
        "uri" => expressions::is_url(text),
        "duration" => expressions::is_duration(text),
        "hexcolor" => matches("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
        "rgbcolor" => matches(r"^rgb\(\s*\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}\s*\)$"),
        "ssn" => matches(r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
        "isbn" | "isbn10" | "isbn13" => matches(r"^[0-9Xx -]{10,17}$"),
        "creditcard" => matches(r"^[0-9 -]{13,23}$"),
        "bsonobjectid" => matches("^[0-9a-fA-F]{24}$"),
        "k8s-short-name" => api::strategy::dns_label(text, false).is_empty(),
        "k8s-long-name" => api::strategy::dns_subdomain(text, false).is_empty(),
        _ => true,
    }
}
