//! What the functions and operators of the language and of Kubernetes' libraries take and give, as data.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::DeclaredType;

/// One form of a function.
#[derive(Debug)]
pub(super) struct Overload {
    /// Called on its first argument.
    pub member: bool,
    pub arguments: Vec<DeclaredType>,
    pub result: DeclaredType,
    /// How many parameters its types have.
    pub parameters: usize,
}

/// All forms of a function; `None`: there is none of that name.
pub(super) fn overloads(name: &str) -> Option<&'static [Overload]> {
    static ALL: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
        let mut all: HashMap<&'static str, Vec<Overload>> = HashMap::new();
        for line in DECLARATIONS.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, overload) = parse(line);
            all.entry(name).or_default().push(overload);
        }
        let pairs = ORDERED.iter().map(|of| (of, of));
        let mixed = NUMBERS.iter().flat_map(|a| NUMBERS.iter().map(move |b| (a, b))).filter(|(a, b)| a != b);
        for (a, b) in pairs.chain(mixed) {
            for operator in ["_<_", "_<=_", "_>_", "_>=_"] {
                let arguments = [a, b].map(|of| type_named(of, &mut 0)).into();
                let overload = Overload { member: false, arguments, result: DeclaredType::Bool, parameters: 0 };
                all.entry(operator).or_default().push(overload);
            }
        }
        for of in ORDERED.iter().map(|of| type_named(of, &mut 0)) {
            for name in ["min", "max"] {
                let arguments = vec![DeclaredType::List(of.clone().into())];
                let overload = Overload { member: true, arguments, result: of.clone(), parameters: 0 };
                all.entry(name).or_default().push(overload);
            }
        }
        all
    });
    ALL.get(name).map(Vec::as_slice)
}

/// Types that can be ordered, and the numbers, which can be ordered among each other.
const ORDERED: &[&str] = &["bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration"];
const NUMBERS: &[&str] = &["int", "uint", "double"];

/// `name(types) type`, or `type: name(types) type` for what is called on a value. A capital letter is any type, and the same
/// one wherever it stands in a line.
const DECLARATIONS: &str = "
    !_(bool) bool
    _&&_(bool, bool) bool
    _||_(bool, bool) bool
    @not_strictly_false(bool) bool
    _?_:_(bool, A, A) A
    _==_(A, A) bool
    _!=_(A, A) bool
    -_(int) int
    -_(double) double
    _+_(int, int) int
    _+_(uint, uint) uint
    _+_(double, double) double
    _+_(string, string) string
    _+_(bytes, bytes) bytes
    _+_(list(A), list(A)) list(A)
    _+_(timestamp, duration) timestamp
    _+_(duration, timestamp) timestamp
    _+_(duration, duration) duration
    _-_(int, int) int
    _-_(uint, uint) uint
    _-_(double, double) double
    _-_(timestamp, timestamp) duration
    _-_(timestamp, duration) timestamp
    _-_(duration, duration) duration
    _*_(int, int) int
    _*_(uint, uint) uint
    _*_(double, double) double
    _/_(int, int) int
    _/_(uint, uint) uint
    _/_(double, double) double
    _%_(int, int) int
    _%_(uint, uint) uint
    @in(A, list(A)) bool
    @in(A, map(A, B)) bool
    _[_](list(A), int) A
    _[_](map(A, B), A) B
    _[_](optional(list(A)), int) optional(A)
    _[_](optional(map(A, B)), A) optional(B)
    _[?_](list(A), int) optional(A)
    _[?_](optional(list(A)), int) optional(A)
    _[?_](map(A, B), A) optional(B)
    _[?_](optional(map(A, B)), A) optional(B)

    size(string) int
    size(bytes) int
    size(list(A)) int
    size(map(A, B)) int
    string: size() int
    bytes: size() int
    list(A): size() int
    map(A, B): size() int
    type(A) type
    dyn(A) dyn
    string(string) string
    string(bool) string
    string(bytes) string
    string(double) string
    string(duration) string
    string(int) string
    string(uint) string
    string(timestamp) string
    string(ip) string
    string(cidr) string
    string(semver) string
    int(int) int
    int(double) int
    int(duration) int
    int(string) int
    int(timestamp) int
    int(uint) int
    uint(uint) uint
    uint(double) uint
    uint(int) uint
    uint(string) uint
    double(double) double
    double(int) double
    double(string) double
    double(uint) double
    bool(bool) bool
    bool(string) bool
    bytes(bytes) bytes
    bytes(string) bytes
    timestamp(timestamp) timestamp
    timestamp(string) timestamp
    timestamp(int) timestamp
    duration(duration) duration
    duration(string) duration
    duration(int) duration

    matches(string, string) bool
    string: matches(string) bool
    string: contains(string) bool
    string: startsWith(string) bool
    string: endsWith(string) bool
    string: charAt(int) string
    string: indexOf(string) int
    string: indexOf(string, int) int
    string: lastIndexOf(string) int
    string: lastIndexOf(string, int) int
    string: lowerAscii() string
    string: upperAscii() string
    string: replace(string, string) string
    string: replace(string, string, int) string
    string: split(string) list(string)
    string: split(string, int) list(string)
    string: substring(int) string
    string: substring(int, int) string
    string: trim() string
    string: reverse() string
    string: format(list(dyn)) string
    string: find(string) string
    string: findAll(string) list(string)
    string: findAll(string, int) list(string)
    list(string): join() string
    list(string): join(string) string

    timestamp: getFullYear() int
    timestamp: getFullYear(string) int
    timestamp: getMonth() int
    timestamp: getMonth(string) int
    timestamp: getDate() int
    timestamp: getDate(string) int
    timestamp: getDayOfMonth() int
    timestamp: getDayOfMonth(string) int
    timestamp: getDayOfWeek() int
    timestamp: getDayOfWeek(string) int
    timestamp: getDayOfYear() int
    timestamp: getDayOfYear(string) int
    timestamp: getHours() int
    timestamp: getHours(string) int
    timestamp: getMinutes() int
    timestamp: getMinutes(string) int
    timestamp: getSeconds() int
    timestamp: getSeconds(string) int
    timestamp: getMilliseconds() int
    timestamp: getMilliseconds(string) int
    duration: getHours() int
    duration: getMinutes() int
    duration: getSeconds() int
    duration: getMilliseconds() int

    optional.of(A) optional(A)
    optional.ofNonZeroValue(A) optional(A)
    optional.none() optional(A)
    optional(A): value() A
    optional(A): hasValue() bool
    optional(A): or(optional(A)) optional(A)
    optional(A): orValue(A) A

    list(A): first() optional(A)
    list(A): last() optional(A)
    list(A): slice(int, int) list(A)
    list(list(A)): flatten() list(A)
    list(dyn): flatten() list(dyn)
    list(A): reverse() list(A)
    list(A): distinct() list(A)
    list(int): sort() list(int)
    list(uint): sort() list(uint)
    list(double): sort() list(double)
    list(bool): sort() list(bool)
    list(string): sort() list(string)
    list(bytes): sort() list(bytes)
    list(duration): sort() list(duration)
    list(timestamp): sort() list(timestamp)
    list(int): isSorted() bool
    list(uint): isSorted() bool
    list(double): isSorted() bool
    list(bool): isSorted() bool
    list(string): isSorted() bool
    list(bytes): isSorted() bool
    list(duration): isSorted() bool
    list(timestamp): isSorted() bool
    list(int): sum() int
    list(uint): sum() uint
    list(double): sum() double
    list(duration): sum() duration
    list(A): indexOf(A) int
    list(A): lastIndexOf(A) int
    sets.contains(list(A), list(A)) bool
    sets.equivalent(list(A), list(A)) bool
    sets.intersects(list(A), list(A)) bool

    quantity(string) quantity
    isQuantity(string) bool
    quantity: isInteger() bool
    quantity: asInteger() int
    quantity: asApproximateFloat() double
    quantity: sign() int
    quantity: add(quantity) quantity
    quantity: add(int) quantity
    quantity: sub(quantity) quantity
    quantity: sub(int) quantity
    quantity: isGreaterThan(quantity) bool
    quantity: isLessThan(quantity) bool
    quantity: compareTo(quantity) int
    url(string) url
    isURL(string) bool
    url: getScheme() string
    url: getHost() string
    url: getHostname() string
    url: getPort() string
    url: getEscapedPath() string
    url: getQuery() map(string, list(string))
    ip(string) ip
    isIP(string) bool
    ip.isCanonical(string) bool
    ip: family() int
    ip: isUnspecified() bool
    ip: isLoopback() bool
    ip: isLinkLocalMulticast() bool
    ip: isLinkLocalUnicast() bool
    ip: isGlobalUnicast() bool
    cidr(string) cidr
    isCIDR(string) bool
    cidr: containsIP(string) bool
    cidr: containsIP(ip) bool
    cidr: containsCIDR(string) bool
    cidr: containsCIDR(cidr) bool
    cidr: ip() ip
    cidr: prefixLength() int
    cidr: masked() cidr
    semver(string) semver
    semver(string, bool) semver
    isSemver(string) bool
    isSemver(string, bool) bool
    semver: major() int
    semver: minor() int
    semver: patch() int
    semver: isGreaterThan(semver) bool
    semver: isLessThan(semver) bool
    semver: compareTo(semver) int
    format.named(string) optional(format)
    format.dns1123Label() format
    format.dns1123Subdomain() format
    format.dns1035Label() format
    format.dns1123LabelPrefix() format
    format.dns1123SubdomainPrefix() format
    format.dns1035LabelPrefix() format
    format.qualifiedName() format
    format.labelValue() format
    format.uri() format
    format.uuid() format
    format.byte() format
    format.date() format
    format.datetime() format
    format: validate(string) optional(list(string))
    jsonpatch.escapeKey(string) string

    authorizer: path(string) pathcheck
    authorizer: group(string) groupcheck
    authorizer: serviceAccount(string, string) authorizer
    groupcheck: resource(string) resourcecheck
    resourcecheck: subresource(string) resourcecheck
    resourcecheck: namespace(string) resourcecheck
    resourcecheck: name(string) resourcecheck
    resourcecheck: fieldSelector(string) resourcecheck
    resourcecheck: labelSelector(string) resourcecheck
    pathcheck: check(string) decision
    resourcecheck: check(string) decision
    decision: allowed() bool
    decision: errored() bool
    decision: error() string
    decision: reason() string
";

/// A line of the declarations.
fn parse(line: &'static str) -> (&'static str, Overload) {
    let mut parameters = 0;
    let mut of = |text: &str| type_named(text, &mut parameters);
    let (receiver, rest) = match line.split_once(": ") {
        Some((receiver, rest)) => (Some(of(receiver)), rest),
        None => (None, line),
    };
    let open = rest.find('(').unwrap_or(rest.len());
    let close = matching(rest, open);
    let arguments = receiver.iter().cloned().chain(list_of(&rest[open + 1..close]).into_iter().map(&mut of)).collect();
    let result = of(rest[close + 1..].trim());
    (&rest[..open], Overload { member: receiver.is_some(), arguments, result, parameters })
}

/// Where the parenthesis that opens there is closed.
fn matching(text: &str, open: usize) -> usize {
    let mut depth = 0;
    for (i, c) in text.char_indices().skip(open) {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    text.len()
}

/// Types between commas, outside of parentheses.
fn list_of(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn type_named(text: &str, parameters: &mut usize) -> DeclaredType {
    if let Some((name, rest)) = text.split_once('(') {
        let mut inner = list_of(rest.strip_suffix(')').unwrap_or(rest)).into_iter().map(|t| type_named(t, parameters));
        let first = Arc::new(inner.next().unwrap_or(DeclaredType::Dyn));
        return match name {
            "list" => DeclaredType::List(first),
            "optional" => DeclaredType::Optional(first),
            _ => DeclaredType::Map(first, Arc::new(inner.next().unwrap_or(DeclaredType::Dyn))),
        };
    }
    match text {
        "null" => DeclaredType::Null,
        "bool" => DeclaredType::Bool,
        "int" => DeclaredType::Int,
        "uint" => DeclaredType::Uint,
        "double" => DeclaredType::Double,
        "string" => DeclaredType::String,
        "bytes" => DeclaredType::Bytes,
        "timestamp" => DeclaredType::Timestamp,
        "duration" => DeclaredType::Duration,
        "type" => DeclaredType::Type,
        "A" | "B" => {
            let nth = text.as_bytes()[0] - b'A';
            *parameters = (*parameters).max(usize::from(nth) + 1);
            DeclaredType::Parameter(nth)
        }
        _ => OPAQUE
            .iter()
            .find(|(short, _)| *short == text)
            .map_or(DeclaredType::Dyn, |(_, name)| DeclaredType::Opaque(name)),
    }
}

/// The types of the libraries, as the declarations call them, with their names.
const OPAQUE: &[(&str, &str)] = &[
    ("quantity", "kubernetes.Quantity"),
    ("url", "kubernetes.URL"),
    ("ip", "net.IP"),
    ("cidr", "net.CIDR"),
    ("semver", "kubernetes.Semver"),
    ("format", "kubernetes.NamedFormat"),
    ("authorizer", AUTHORIZER),
    ("pathcheck", "kubernetes.authorization.PathCheck"),
    ("groupcheck", "kubernetes.authorization.GroupCheck"),
    ("resourcecheck", RESOURCE_CHECK),
    ("decision", "kubernetes.authorization.Decision"),
];

/// Of `authorizer` and `authorizer.requestResource`.
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        let shown = |name: &str| -> Vec<String> {
            let forms = overloads(name).unwrap_or_default().iter();
            forms.map(|o| format!("{} {:?} {:?} {}", o.member, o.arguments, o.result, o.parameters)).collect()
        };
        assert_eq!(
            shown("@in"),
            [
                "false [Parameter(0), List(Parameter(0))] Bool 1",
                "false [Parameter(0), Map(Parameter(0), Parameter(1))] Bool 2",
            ]
        );
        assert_eq!(shown("getPort"), [r#"true [Opaque("kubernetes.URL")] String 0"#]);
        assert_eq!(shown("ip.isCanonical"), ["false [String] Bool 0"]);
        assert_eq!(shown("_<_").len(), 14);
        assert_eq!(shown("max").len(), 8);
        assert!(overloads("nothing").is_none());
        let dynamic = DECLARATIONS.lines().filter(|line| line.trim().ends_with(" dyn")).count();
        assert_eq!(dynamic, 1, "every type but dyn's is known");
    }
}
