//! Variables of a container's environment, and references to fields of the pod.

use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::names::{config_key, dns_label, dns_subdomain, or_prefix, qualified_name};
use crate::validation::resources::quantity;
use crate::validation::{Checks, paths, text};

const VARIABLE_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub(super) const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Fields that a reference may name at all, whether or not they serve where it stands.
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const AMOUNTS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const HUGE: [&str; 2] = ["limits.hugepages-", "requests.hugepages-"];
const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// The name of a variable: nearly anything that can be printed.
pub(super) fn variable_name(name: &str) -> Vec<String> {
    if name.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

pub(super) fn variables(errs: &mut FieldErrors, list: &Cursor<'_>) {
    for variable in list.elements() {
        let name = variable.field("name");
        if errs.present(&name, "") {
            errs.each(&name, variable_name(text(&name)));
        }
        value_from(errs, &variable);
    }
}

fn value_from(errs: &mut FieldErrors, variable: &Cursor<'_>) {
    let from = variable.field("valueFrom");
    if from.is_absent() {
        return;
    }
    let mut sources = 0;
    for source in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let at = from.field(source);
        if at.is_absent() {
            continue;
        }
        sources += 1;
        match source {
            "fieldRef" => field_reference(errs, &at, VARIABLE_FIELDS),
            "resourceFieldRef" => amount_reference(errs, &at, false),
            "fileKeyRef" => file_key(errs, &at),
            _ => key_reference(errs, &at),
        }
    }
    let why = match sources {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !variable.value.str_at(&["value"]).is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errs.invalid_value(&from.path, "", why);
}

/// A field of the pod itself.
pub(super) fn field_reference(errs: &mut FieldErrors, at: &Cursor<'_>, allowed: &[&str]) {
    let path = at.field("fieldPath");
    let version = at.field("apiVersion");
    if !errs.present(&version, "") || !errs.present(&path, "") {
        return;
    }
    let asked = text(&path);
    let subscript = asked.strip_suffix("']").and_then(|p| p.split_once("['")).filter(|(base, _)| !base.is_empty());
    let problem = match subscript {
        _ if text(&version) != "v1" => Some(format!("unsupported pod version: {}", text(&version))),
        Some(("metadata.annotations" | "metadata.labels", _)) => None,
        Some(_) => Some(format!("field label does not support subscript: {asked}")),
        None if asked == "spec.host" || KNOWN_FIELDS.contains(&asked) => None,
        None => Some(format!("field label not supported: {asked}")),
    };
    if let Some(problem) = problem {
        errs.invalid(&path, format!("error converting fieldPath: {problem}"));
        return;
    }
    match subscript {
        Some((base, key)) => {
            let key = if base == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
            for message in qualified_name(&key) {
                errs.invalid_value(&at.path, key.as_str(), message);
            }
        }
        None => {
            let asked = if asked == "spec.host" { "spec.nodeName" } else { asked };
            if !allowed.contains(&asked) {
                errs.not_supported(&Cursor::new(path.path.clone(), &asked.into()), allowed);
            }
        }
    }
}

/// An amount of a container's resources. A volume belongs to no container: it has to say which one it means.
pub(super) fn amount_reference(errs: &mut FieldErrors, at: &Cursor<'_>, in_volume: bool) {
    let resource = at.field("resource");
    let container = at.field("containerName");
    let name = text(&resource);
    let huge = HUGE.iter().any(|prefix| name.starts_with(prefix));
    if in_volume && text(&container).is_empty() {
        errs.required(&container.path, "");
    } else if name.is_empty() {
        errs.required(&resource.path, "");
    } else if !AMOUNTS.contains(&name) && !huge {
        errs.not_supported(&resource, AMOUNTS);
    }
    let divisor = at.field("divisor");
    let amount = quantity(&divisor);
    if amount.is_zero() {
        return;
    }
    let (what, allowed) = match name.split_once('.').map_or("", |(_, rest)| rest) {
        "cpu" => ("cpu", &["1m", "1"][..]),
        "memory" => ("memory", SIZES),
        "ephemeral-storage" => ("local ephemeral storage", SIZES),
        _ if huge => ("hugepages", SIZES),
        _ => return,
    };
    if !allowed.contains(&amount.to_string().as_str()) {
        let listed = if what == "cpu" { "1m and 1".to_owned() } else { SIZES.join(", ") };
        let why = format!("only divisor's values {listed} are supported with the {what} resource");
        errs.invalid_value(&divisor.path, name, why);
    }
}

/// A key of a ConfigMap or Secret.
fn key_reference(errs: &mut FieldErrors, at: &Cursor<'_>) {
    let (name, key) = (at.field("name"), at.field("key"));
    errs.each(&name, dns_subdomain(text(&name)));
    if errs.present(&key, "") {
        errs.each(&key, config_key(text(&key)));
    }
}

/// A variable of a file that an init container wrote.
fn file_key(errs: &mut FieldErrors, at: &Cursor<'_>) {
    let (key, volume, path) = (at.field("key"), at.field("volumeName"), at.field("path"));
    if errs.present(&key, "") {
        errs.each(&key, variable_name(text(&key)));
    }
    if errs.present(&volume, "") {
        errs.each(&volume, dns_label(text(&volume)));
    }
    if errs.present(&path, "") {
        paths::no_backsteps(errs, &path);
    }
}

/// Whole ConfigMaps and Secrets as variables.
pub(super) fn sources(errs: &mut FieldErrors, list: &Cursor<'_>) {
    for source in list.elements() {
        let prefix = source.field("prefix");
        if !text(&prefix).is_empty() {
            errs.each(&prefix, variable_name(text(&prefix)));
        }
        let given = ["configMapRef", "secretRef"].map(|f| source.field(f));
        for reference in given.iter().filter(|r| !r.is_absent()) {
            let name = reference.field("name");
            if errs.present(&name, "") {
                errs.each(&name, or_prefix(dns_subdomain, text(&name), true));
            }
        }
        // Upstream names the list, not its element.
        match given.iter().filter(|r| !r.is_absent()).count() {
            0 => errs.invalid_value(&list.path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errs.invalid_value(&list.path, "", "may not have more than one field specified at a time"),
        }
    }
}
