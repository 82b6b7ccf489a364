//! What Kubernetes adds to CEL: quantities, addresses, URLs, versions, named formats.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::rc::Rc;

use apimachinery::quantity::{Format as QuantityFormat, Quantity};
use ipnet::IpNet;

use super::Error;
use super::value::Val;

/// A URL in its parts.
#[derive(Debug, Default)]
pub struct Url {
    pub text: String,
    scheme: String,
    host: String,
    path: String,
    query: Vec<(String, String)>,
}

/// A version as semver.org defines it.
#[derive(Debug)]
pub struct Semver {
    pub text: String,
    numbers: [u64; 3],
    pre: Vec<String>,
}

/// A named format with its check: what is wrong with a text.
pub struct Format {
    pub name: &'static str,
    check: fn(&str) -> Vec<String>,
}

static FORMATS: &[Format] = &[
    Format { name: "dns1123Label", check: |s| api::strategy::dns_label(s, false) },
    Format { name: "dns1123Subdomain", check: |s| api::strategy::dns_subdomain(s, false) },
    Format { name: "dns1035Label", check: dns1035 },
    Format { name: "dns1123LabelPrefix", check: |s| api::strategy::dns_label(s, true) },
    Format { name: "dns1123SubdomainPrefix", check: |s| api::strategy::dns_subdomain(s, true) },
    Format { name: "dns1035LabelPrefix", check: |s| dns1035(s.strip_suffix('-').unwrap_or(s)) },
    Format { name: "qualifiedName", check: qualified_name },
    Format { name: "labelValue", check: label_value },
    Format { name: "uri", check: |s| parse_url(s).err().into_iter().collect() },
    Format {
        name: "uuid",
        check: |s| wrong_unless(uuid::Uuid::try_parse(s).is_ok() && s.len() == 36, "does not match the UUID format"),
    },
    Format { name: "byte", check: |s| wrong_unless(super::time::decode_base64(s).is_some(), "invalid base64") },
    Format {
        name: "date",
        check: |s| wrong_unless(s.parse::<jiff::civil::Date>().is_ok() && s.len() == 10, "invalid date"),
    },
    Format { name: "datetime", check: |s| wrong_unless(super::time::parse_timestamp(s).is_some(), "invalid datetime") },
];

fn wrong_unless(right: bool, why: &str) -> Vec<String> {
    if right { Vec::new() } else { vec![why.to_owned()] }
}

fn dns1035(s: &str) -> Vec<String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let mut wrong = Vec::new();
    if s.len() > 63 {
        wrong.push("must be no more than 63 characters".to_owned());
    }
    let first = s.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    let inner = s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !(first && edge(s.chars().next_back()) && inner) {
        wrong.push(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, \
             and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
             '[a-z]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// Letters, digits, `-`, `_` and `.`, with a letter or digit at either end.
fn is_name(s: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    edge(s.chars().next())
        && edge(s.chars().next_back())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn qualified_name(s: &str) -> Vec<String> {
    let (prefix, name) = s.split_once('/').map_or((None, s), |(p, n)| (Some(p), n));
    let mut wrong = prefix.map(|p| api::strategy::dns_subdomain(p, false)).unwrap_or_default();
    if name.len() > 63 {
        wrong.push("name part must be no more than 63 characters".to_owned());
    }
    if !is_name(name) {
        wrong.push(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
             character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
             '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
                .to_owned(),
        );
    }
    wrong
}

fn label_value(s: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if s.len() > 63 {
        wrong.push("must be no more than 63 characters".to_owned());
    }
    if !s.is_empty() && !is_name(s) {
        wrong.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and \
             end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// As Go's `url.ParseRequestURI`.
pub(super) fn parse_url(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| format!("URL parse error during conversion from string: parse {text:?}: {why}");
    let (scheme, rest) = match text.find([':', '/', '?']) {
        _ if text.is_empty() => return Err(wrong("empty url")),
        Some(0) if text.starts_with(':') => return Err(wrong("missing protocol scheme")),
        Some(at) if text.as_bytes()[at] == b':' => {
            let scheme = &text[..at];
            let starts = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
            if !starts && scheme.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
                return Err(wrong("missing protocol scheme"));
            }
            if !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) {
                return Err(wrong("first path segment in URL cannot contain colon"));
            }
            (scheme.to_ascii_lowercase(), &text[at + 1..])
        }
        _ => (String::new(), text),
    };
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err(wrong("net/url: invalid control character in URL"));
    }
    if !rest.starts_with('/') {
        return Err(wrong("invalid URI for request"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//") {
        Some(after) => match after.find('/') {
            Some(at) => (&after[..at], &after[at..]),
            None => (after, ""),
        },
        None => ("", rest),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, h)| h);
    if host.contains(' ') {
        return Err(wrong("invalid character \" \" in host name"));
    }
    let bracket = host.rfind(']').map_or(0, |i| i + 1);
    if let Some(port) = host[bracket..].split_once(':').map(|(_, port)| port)
        && !port.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(wrong(&format!("invalid port {:?} after host", format!(":{port}"))));
    }
    let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    Ok(Url { text: text.to_owned(), scheme, host: host.to_owned(), path: path.to_owned(), query })
}

fn parse_ip(text: &str) -> Result<IpAddr, Error> {
    let failed =
        |why: &str| Error::new(format!("IP Address {text:?} parse error during conversion from string: {why}"));
    if text.contains('%') {
        return Err(failed("IP address with zone value is not allowed"));
    }
    let address: IpAddr = text.parse().map_err(|_| failed(&format!("ParseAddr({text:?}): unable to parse IP")))?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(failed("IPv4-mapped IPv6 address is not allowed")),
        _ => Ok(address),
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, Error> {
    text.parse().map_err(|_| {
        let why = format!("netip.ParsePrefix({text:?}): no '/'");
        let why = if text.contains('/') { format!("netip.ParsePrefix({text:?}): bad prefix") } else { why };
        Error::new(format!("CIDR {text:?} parse error during conversion from string: {why}"))
    })
}

fn parse_semver(text: &str, normalize: bool) -> Result<Semver, Error> {
    let mut source = text.to_owned();
    if normalize {
        source = source.strip_prefix(['v', 'V']).unwrap_or(&source).to_owned();
    }
    let (core, build) = source.split_once('+').map_or((source.as_str(), None), |(c, b)| (c, Some(b)));
    let (core, pre) = core.split_once('-').map_or((core, None), |(c, p)| (c, Some(p)));
    let mut parts: Vec<String> = core.split('.').map(str::to_owned).collect();
    if normalize {
        for part in &mut parts {
            let trimmed = part.trim_start_matches('0');
            *part = if trimmed.is_empty() && !part.is_empty() { "0".into() } else { trimmed.to_owned() };
        }
        while parts.len() < 3 {
            parts.push("0".into());
        }
    }
    let wrong = |why: &str| Error::new(why.to_owned());
    if parts.len() != 3 {
        return Err(wrong("No Major.Minor.Patch elements found"));
    }
    let mut numbers = [0; 3];
    for (number, part) in numbers.iter_mut().zip(&parts) {
        if part.len() > 1 && part.starts_with('0') {
            return Err(Error::new(format!("Version number must not contain leading zeroes {part:?}")));
        }
        *number =
            part.parse().map_err(|_| Error::new(format!("Invalid character(s) found in version number {part:?}")))?;
    }
    let idents = |text: Option<&str>| -> Result<Vec<String>, Error> {
        let Some(text) = text else { return Ok(Vec::new()) };
        text.split('.')
            .map(|p| {
                let fine = !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
                fine.then(|| p.to_owned())
                    .ok_or_else(|| Error::new(format!("Invalid character(s) found in prerelease {p:?}")))
            })
            .collect()
    };
    idents(build)?;
    Ok(Semver { text: source.clone(), numbers, pre: idents(pre)? })
}

impl Semver {
    pub(super) fn compare(&self, other: &Semver) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => {
                let each = self.pre.iter().zip(&other.pre).map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    (Ok(_), _) => Ordering::Less,
                    (_, Ok(_)) => Ordering::Greater,
                    _ => a.cmp(b),
                });
                each.into_iter().find(|o| o.is_ne()).unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        })
    }
}

fn parse_quantity(text: &str) -> Result<Quantity, Error> {
    text.parse::<Quantity>().map_err(|e| Error::new(e.to_string()))
}

/// `f(arguments)`.
pub(super) fn global<'a>(name: &str, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    if let Some(format) = name.strip_prefix("format.") {
        return match (format, args) {
            ("named", [Val::String(wanted)]) => {
                Ok(named(wanted).map_or(Val::Optional(None), |f| Val::some(Val::Format(f))))
            }
            (_, []) => named(format).map(Val::Format).ok_or_else(Error::no_overload),
            _ => Err(Error::no_overload()),
        };
    }
    match (name, args) {
        ("quantity", [Val::String(s)]) => parse_quantity(s).map(Val::Quantity),
        ("isQuantity", [Val::String(s)]) => Ok(Val::Bool(parse_quantity(s).is_ok())),
        ("url", [Val::String(s)]) => parse_url(s).map(|u| Val::Url(Rc::new(u))).map_err(Error::new),
        ("isURL", [Val::String(s)]) => Ok(Val::Bool(parse_url(s).is_ok())),
        ("ip", [Val::String(s)]) => parse_ip(s).map(Val::Ip),
        ("isIP", [Val::String(s)]) => Ok(Val::Bool(parse_ip(s).is_ok())),
        ("ip.isCanonical", [Val::String(s)]) => parse_ip(s).map(|ip| Val::Bool(ip.to_string() == **s)),
        ("cidr", [Val::String(s)]) => parse_cidr(s).map(Val::Cidr),
        ("isCIDR", [Val::String(s)]) => Ok(Val::Bool(parse_cidr(s).is_ok())),
        ("semver", [Val::String(s)]) => parse_semver(s, false).map(|v| Val::Semver(Rc::new(v))),
        ("semver", [Val::String(s), Val::Bool(n)]) => parse_semver(s, *n).map(|v| Val::Semver(Rc::new(v))),
        ("isSemver", [Val::String(s)]) => Ok(Val::Bool(parse_semver(s, false).is_ok())),
        ("isSemver", [Val::String(s), Val::Bool(n)]) => Ok(Val::Bool(parse_semver(s, *n).is_ok())),
        _ => Err(Error::no_overload()),
    }
}

fn named(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.name == name)
}

/// `target.f(arguments)`.
pub(super) fn method<'a>(name: &str, target: &Val<'a>, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    match target {
        Val::Quantity(q) => of_quantity(name, *q, args),
        Val::Url(url) => of_url(name, url, args),
        Val::Ip(ip) => of_ip(name, *ip, args),
        Val::Cidr(net) => of_cidr(name, net, args),
        Val::Semver(version) => match (name, args) {
            ("major", []) => number(version.numbers[0]),
            ("minor", []) => number(version.numbers[1]),
            ("patch", []) => number(version.numbers[2]),
            ("isLessThan", [Val::Semver(o)]) => Ok(Val::Bool(version.compare(o).is_lt())),
            ("isGreaterThan", [Val::Semver(o)]) => Ok(Val::Bool(version.compare(o).is_gt())),
            ("compareTo", [Val::Semver(o)]) => Ok(Val::Int(version.compare(o) as i64)),
            _ => Err(Error::no_overload()),
        },
        Val::Format(format) => match (name, args) {
            ("validate", [Val::String(s)]) => {
                let wrong = (format.check)(s);
                Ok(if wrong.is_empty() {
                    Val::Optional(None)
                } else {
                    Val::some(Val::list(wrong.into_iter().map(Val::string).collect()))
                })
            }
            _ => Err(Error::no_overload()),
        },
        _ => Err(Error::no_overload()),
    }
}

fn number<'a>(n: u64) -> Result<Val<'a>, Error> {
    i64::try_from(n).map(Val::Int).map_err(|_| Error::new("integer overflow"))
}

fn of_quantity<'a>(name: &str, q: Quantity, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    let whole = || q.is_integer() && q == Quantity::new(q.value(), QuantityFormat::DecimalSi);
    match (name, args) {
        ("isLessThan", [Val::Quantity(o)]) => Ok(Val::Bool(q < *o)),
        ("isGreaterThan", [Val::Quantity(o)]) => Ok(Val::Bool(q > *o)),
        ("compareTo", [Val::Quantity(o)]) => Ok(Val::Int(q.cmp(o) as i64)),
        ("isInteger", []) => Ok(Val::Bool(whole())),
        ("asInteger", []) if whole() => Ok(Val::Int(q.value())),
        ("asInteger", []) => Err(Error::new("cannot convert value to integer")),
        ("asApproximateFloat", []) => Ok(Val::Double(q.as_f64())),
        ("sign", []) => Ok(Val::Int(if q.is_zero() {
            0
        } else if q.is_negative() {
            -1
        } else {
            1
        })),
        ("add" | "sub", [other]) => {
            let other = match other {
                Val::Quantity(o) => *o,
                Val::Int(i) => Quantity::new(*i, q.format),
                _ => return Err(Error::no_overload()),
            };
            Ok(Val::Quantity(if name == "add" { q.saturating_add(other) } else { q.saturating_sub(other) }))
        }
        _ => Err(Error::no_overload()),
    }
}

fn of_url<'a>(name: &str, url: &Url, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    if !args.is_empty() {
        return Err(Error::no_overload());
    }
    let bracket = url.host.rfind(']').map_or(0, |i| i + 1);
    let colon = url.host[bracket..].find(':').map(|i| bracket + i);
    Ok(match name {
        "getScheme" => Val::string(url.scheme.as_str()),
        "getHost" => Val::string(url.host.as_str()),
        "getHostname" => Val::string(url.host[..colon.unwrap_or(url.host.len())].trim_matches(['[', ']'])),
        "getPort" => Val::string(colon.map_or("", |at| &url.host[at + 1..])),
        "getEscapedPath" => Val::string(url.path.as_str()),
        "getQuery" => {
            let mut entries: Vec<(String, Vec<Val<'a>>)> = Vec::new();
            for (k, v) in &url.query {
                match entries.iter_mut().find(|(key, _)| key == k) {
                    Some((_, values)) => values.push(Val::string(v.as_str())),
                    None => entries.push((k.clone(), vec![Val::string(v.as_str())])),
                }
            }
            Val::Map(Rc::new(entries.into_iter().map(|(k, v)| (Val::string(k), Val::list(v))).collect()))
        }
        _ => return Err(Error::no_overload()),
    })
}

fn of_ip<'a>(name: &str, ip: IpAddr, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    if !args.is_empty() {
        return Err(Error::no_overload());
    }
    Ok(match name {
        "family" => Val::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Val::Bool(ip.is_unspecified()),
        "isLoopback" => Val::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Val::Bool(match ip {
            IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
            IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
        }),
        "isLinkLocalUnicast" => Val::Bool(match ip {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
        }),
        "isGlobalUnicast" => Val::Bool(match ip {
            IpAddr::V4(a) => {
                !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_link_local() || a.is_broadcast())
            }
            IpAddr::V6(a) => {
                !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.segments()[0] & 0xffc0 == 0xfe80)
            }
        }),
        _ => return Err(Error::no_overload()),
    })
}

fn of_cidr<'a>(name: &str, net: &IpNet, args: &[Val<'a>]) -> Result<Val<'a>, Error> {
    match (name, args) {
        ("ip", []) => Ok(Val::Ip(net.addr())),
        ("masked", []) => Ok(Val::Cidr(net.trunc())),
        ("prefixLength", []) => Ok(Val::Int(net.prefix_len().into())),
        ("containsIP", [Val::Ip(ip)]) => Ok(Val::Bool(net.contains(ip))),
        ("containsIP", [Val::String(s)]) => parse_ip(s).map(|ip| Val::Bool(net.contains(&ip))),
        ("containsCIDR", [other]) => {
            let other = match other {
                Val::Cidr(other) => *other,
                Val::String(s) => parse_cidr(s)?,
                _ => return Err(Error::no_overload()),
            };
            Ok(Val::Bool(net.contains(&other)))
        }
        _ => Err(Error::no_overload()),
    }
}
