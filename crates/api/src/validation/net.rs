//! IP addresses, networks and ports.
//!
//! Upstream accepts in old fields what it once accepted there (leading zeros, IPv4 in IPv6, bits beyond the prefix) as
//! long as it does not change; [`Known`] is what a field held before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::{Checks, int, text};

/// Values that a field held before, which stay good whatever they are.
pub(crate) type Known<'a> = &'a [&'a str];

const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// As old Go read addresses: with leading zeros.
pub(crate) fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip);
    }
    let (head, v4) = text.rsplit_once(':').map_or(("", text), |(head, v4)| (head, v4));
    let mut octets = [0u8; 4];
    let mut parts = v4.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|_| if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(()) })
            .ok()?;
    }
    if parts.next().is_some() {
        return None;
    }
    let v4 = Ipv4Addr::from(octets);
    if head.is_empty() { Some(v4.into()) } else { format!("{head}:{v4}").parse::<Ipv6Addr>().ok().map(Into::into) }
}

/// As Go prints an address: IPv4 in IPv6 is IPv4.
pub(crate) fn canonical_ip(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

fn ip_findings(text: &str) -> Vec<String> {
    let Some(_) = parse_ip_sloppy(text) else { return vec![BAD_IP.to_owned()] };
    match text.parse::<IpAddr>() {
        Err(_) => vec!["must not have leading 0s".to_owned()],
        Ok(ip) if is_mapped(ip) => vec!["must not be an IPv4-mapped IPv6 address".to_owned()],
        Ok(_) => Vec::new(),
    }
}

/// An address in a new field: in its canonical form only.
pub(crate) fn ip(text: &str) -> Vec<String> {
    let mut wrong = ip_findings(text);
    if wrong.is_empty()
        && let Some(ip) = parse_ip_sloppy(text)
        && canonical_ip(ip) != text
    {
        wrong.push(format!("must be in canonical form ({:?})", canonical_ip(ip)));
    }
    wrong
}

/// An address in an old field.
pub(crate) fn legacy_ip(errs: &mut FieldErrors, at: &Cursor<'_>, known: Known<'_>) {
    if !known.contains(&text(at)) {
        errs.each(at, ip_findings(text(at)));
    }
}

/// An address and the length of its prefix.
fn parse_cidr_sloppy(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, length) = text.split_once('/')?;
    let ip = parse_ip_sloppy(ip)?;
    let max = if ip.is_ipv4() { 32 } else { 128 };
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let length = length.parse::<u32>().ok().filter(|l| *l <= max)?;
    Some((ip, u8::try_from(length).ok()?))
}

/// The network of a CIDR that upstream would accept.
pub(crate) fn network_of(text: &str) -> Option<ipnet::IpNet> {
    let (ip, length) = parse_cidr_sloppy(text)?;
    ipnet::IpNet::new(ip, length).ok().map(|net| net.trunc())
}

fn cidr_findings(text: &str) -> Vec<String> {
    let Some((ip, length)) = parse_cidr_sloppy(text) else { return vec![BAD_CIDR.to_owned()] };
    let (address, digits) = text.split_once('/').unwrap_or_default();
    let wrong = if address.parse::<IpAddr>().is_err() || (digits.len() > 1 && digits.starts_with('0')) {
        "must not have leading 0s in IP or prefix length"
    } else if is_mapped(ip) {
        "must not have an IPv4-mapped IPv6 address"
    } else if ipnet::IpNet::new(ip, length).is_ok_and(|net| net.network() != ip) {
        "must not have bits set beyond the prefix length"
    } else {
        return Vec::new();
    };
    vec![wrong.to_owned()]
}

/// A network in a new field.
pub(crate) fn cidr(text: &str) -> Vec<String> {
    let mut wrong = cidr_findings(text);
    if wrong.is_empty()
        && let Some(net) = network_of(text)
        && net.to_string() != text
    {
        wrong.push(format!("must be in canonical form ({:?})", net.to_string()));
    }
    wrong
}

/// A network in an old field.
pub(crate) fn legacy_cidr(errs: &mut FieldErrors, at: &Cursor<'_>, known: Known<'_>) {
    if !known.contains(&text(at)) {
        errs.each(at, cidr_findings(text(at)));
    }
}

/// What is odd about an address that an old field accepts.
pub(crate) fn ip_warning(path: &Path, text: &str) -> Option<String> {
    let sloppy = parse_ip_sloppy(text)?;
    match text.parse::<IpAddr>() {
        Ok(ip) if !is_mapped(ip) => {
            let best = ip.to_string();
            (ip.is_ipv6() && best != text)
                .then(|| format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({best:?})"))
        }
        _ => Some(format!(
            "{path}: non-standard IP address {text:?} will be considered invalid in a future Kubernetes release: use {:?}",
            canonical_ip(sloppy)
        )),
    }
}

/// What is odd about a network that an old field accepts.
pub(crate) fn cidr_warnings(path: &Path, text: &str) -> Vec<String> {
    let (Some((ip, _)), Some(net)) = (parse_cidr_sloppy(text), network_of(text)) else { return Vec::new() };
    let mut warnings = Vec::new();
    if net.network() != ip {
        let single = format!("{}/{}", canonical_ip(ip), net.max_prefix_len());
        warnings.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be {:?} or {single:?}?)",
            net.to_string()
        ));
    }
    match cidr_findings(text).first() {
        Some(wrong) if !wrong.contains("bits set") => warnings.push(format!(
            "{path}: non-standard CIDR value {text:?} will be considered invalid in a future Kubernetes release: use {:?}",
            net.to_string()
        )),
        _ => {
            let plain = text.split_once('/').unwrap_or_default().0;
            if ip.is_ipv6() && ip.to_string() != plain {
                warnings.push(format!(
                    "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({:?})",
                    net.to_string()
                ));
            }
        }
    }
    warnings
}

/// Addresses that make no sense as those of an endpoint or of a load balancer.
pub(crate) fn special_ip(text: &str) -> Vec<String> {
    let Some(ip) = parse_ip_sloppy(text) else { return vec![BAD_IP.to_owned()] };
    let (local, local_multicast) = match ip.to_canonical() {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    let rules = [
        (ip.to_canonical().is_unspecified(), format!("may not be unspecified ({text})")),
        (ip.to_canonical().is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (local_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ];
    rules.into_iter().filter(|(bad, _)| *bad).map(|(_, why)| why).collect()
}

pub(crate) const BAD_PORT: &str = "must be between 1 and 65535, inclusive";

/// A port's number.
pub(crate) fn port(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if !(1..=65535).contains(&int(at.value)) {
        errs.invalid_int(at, BAD_PORT);
    }
}

/// A port's number or its name.
pub(crate) fn port_or_name(errs: &mut FieldErrors, at: &Cursor<'_>) {
    match at.value {
        Value::String(name) => errs.each(at, super::names::port_name(name)),
        _ => port(errs, at),
    }
}

/// `IPv4`, `IPv6`, or nothing for what is neither.
pub(crate) fn family(ip: &str) -> &'static str {
    match parse_ip_sloppy(ip) {
        Some(ip) if ip.to_canonical().is_ipv4() => "IPv4",
        Some(_) => "IPv6",
        None => "",
    }
}

/// The family of a network's addresses.
pub(crate) fn family_of_cidr(cidr: &str) -> &'static str {
    family(cidr.split_once('/').unwrap_or_default().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: fn(&str) -> Vec<String>, text: &str, want: &str) {
        assert_eq!(rule(text).join("; "), want, "{text}");
    }

    #[test]
    fn addresses_are_strict_where_they_are_new() {
        check(ip, "10.0.0.1", "");
        check(ip, "x", BAD_IP);
        check(ip, "010.0.0.1", "must not have leading 0s");
        check(ip, "::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address");
        check(ip, "2001:DB8::1", r#"must be in canonical form ("2001:db8::1")"#);
        check(cidr, "10.0.0.0/8", "");
        check(cidr, "10.0.0.0", BAD_CIDR);
        check(cidr, "10.0.0.1/8", "must not have bits set beyond the prefix length");
        check(cidr, "10.0.0.0/08", "must not have leading 0s in IP or prefix length");
        check(special_ip, "127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)");
        check(special_ip, "fe80::1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
        check(special_ip, "0.0.0.0", "may not be unspecified (0.0.0.0)");
    }

    #[test]
    fn what_a_field_held_stays_good() {
        let value = Value::from("010.0.0.1");
        let at = Cursor::new(Path::new("x"), &value);
        let mut errs = FieldErrors::new();
        legacy_ip(&mut errs, &at, &["010.0.0.1"]);
        assert!(errs.is_empty());
        legacy_ip(&mut errs, &at, &[]);
        assert_eq!(errs.0.len(), 1);
        assert!(ip_warning(&at.path, "2001:DB8::1").is_some());
        assert!(ip_warning(&at.path, "10.0.0.1").is_none());
        assert_eq!(cidr_warnings(&at.path, "10.0.0.1/8").len(), 1);
    }
}
