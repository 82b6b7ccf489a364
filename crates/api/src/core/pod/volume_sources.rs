//! What a volume comes from, kind by kind (those that show objects of the API are beside it).

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::spec::one_of_or_required;
use super::{Options, claim_template, containers};
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::resources::quantity;
use crate::validation::{Checks, int, paths, text};

pub(super) const BAD_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_AND_PORT: &str = "must be a host:port pair or multiple pairs separated by commas";

/// The bits of a file's mode.
pub(super) fn mode(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if !at.is_absent() && !(0..=0o777).contains(&int(at.value)) {
        errs.invalid(at, BAD_MODE);
    }
}

fn required(errs: &mut FieldErrors, at: &Cursor<'_>, fields: &[&str]) {
    for field in fields {
        errs.present(&at.field(field), "");
    }
}

fn secret_name(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if !at.value["secretRef"].is_null() {
        errs.present(&at.fields(&["secretRef", "name"]), "");
    }
}

pub(super) fn empty_dir(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let limit = at.field("sizeLimit");
    if quantity(&limit).is_negative() {
        errs.forbidden(&limit.path, "SizeLimit field must be a valid resource quantity");
    }
}

pub(super) fn host_path(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    const TYPES: &[&str] =
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    if !errs.present(&at.field("path"), "") {
        return;
    }
    paths::no_backsteps(errs, &at.field("path"));
    let kind = at.field("type");
    if !kind.is_absent() {
        errs.one_of(&kind, TYPES);
    }
}

pub(super) fn git_repo(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["repository"]);
    paths::descending(errs, &at.field("directory"));
}

fn partition(errs: &mut FieldErrors, at: &Cursor<'_>) {
    let partition = at.field("partition");
    if !(0..=255).contains(&int(partition.value)) {
        errs.invalid(&partition, "must be between 1 and 255, inclusive");
    }
}

/// Upstream shows it under another name.
pub(super) fn gce_disk(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let path = at.path.as_str().strip_suffix("gcePersistentDisk").unwrap_or_default();
    let at = Cursor::new(apimachinery::field::Path::new(&format!("{path}persistentDisk")), at.value);
    required(errs, &at, &["pdName"]);
    partition(errs, &at);
}

pub(super) fn aws_disk(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["volumeID"]);
    partition(errs, at);
}

pub(super) fn secret(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    keyed(errs, at, "secretName");
}

pub(super) fn config_map(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    keyed(errs, at, "name");
}

fn keyed(errs: &mut FieldErrors, at: &Cursor<'_>, name: &str) {
    required(errs, at, &[name]);
    mode(errs, &at.field("defaultMode"));
    for item in at.field("items").elements() {
        key_to_path(errs, &item);
    }
}

/// A key, and the file that it becomes.
pub(super) fn key_to_path(errs: &mut FieldErrors, item: &Cursor<'_>) {
    required(errs, item, &["key", "path"]);
    paths::not_reserved(errs, &item.field("path"));
    mode(errs, &item.field("mode"));
}

pub(super) fn nfs(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["server", "path"]);
    if !at.value.str_at(&["path"]).starts_with('/') {
        errs.invalid_text(&at.field("path"), "must be an absolute path");
    }
}

pub(super) fn iscsi(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    const START: &str = "must be valid format starting with iqn, eui, or naa";
    required(errs, at, &["targetPortal"]);
    let iqn = at.field("iqn");
    if errs.present(&iqn, "") {
        initiator(errs, &iqn, START);
    }
    lun(errs, &at.field("lun"));
    let authenticates = |field: &str| at.value[field].as_bool() == Some(true);
    if (authenticates("chapAuthDiscovery") || authenticates("chapAuthSession")) && at.value["secretRef"].is_null() {
        errs.required(&at.path.child("secretRef"), "");
    }
    let name = &at.value["initiatorName"];
    if !name.is_null() {
        initiator(errs, &Cursor::new(at.path.child("initiatorname"), name), START);
    }
}

/// The name of an iSCSI node, in one of three forms.
fn initiator(errs: &mut FieldErrors, at: &Cursor<'_>, start: &str) {
    let name = text(at);
    let alphanumeric = |rest: &str, length| rest.len() == length && rest.bytes().all(|b| b.is_ascii_alphanumeric());
    let good = match name.get(..3) {
        Some("iqn") => is_qualified_initiator(name),
        Some("eui") => name.get(4..).is_some_and(|rest| alphanumeric(rest, 16)),
        Some("naa") => name.get(4..).is_some_and(|rest| alphanumeric(rest, 32)),
        _ => {
            errs.invalid_text(at, start);
            return;
        }
    };
    if !good {
        errs.invalid_text(at, "must be valid format");
    }
}

/// `iqn.YYYY-MM.domain:name`.
fn is_qualified_initiator(name: &str) -> bool {
    let Some((domain, unique)) = name.strip_prefix("iqn.").and_then(|n| n.split_once(':')) else { return false };
    let (Some(date), Some(owner)) = (domain.get(..8), domain.get(8..)) else { return false };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    digits(&date[..4])
        && date.as_bytes()[4] == b'-'
        && digits(&date[5..7])
        && date.ends_with('.')
        && !owner.is_empty()
        && owner.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !unique.is_empty()
        && !unique.chars().any(|c| c.is_whitespace() || ",;*&$|".contains(c))
}

fn lun(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if !(0..=255).contains(&int(at.value)) {
        errs.invalid(at, "must be between 0 and 255, inclusive");
    }
}

pub(super) fn glusterfs(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["endpoints", "path"]);
}

pub(super) fn flocker(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let (name, uuid) = (at.value.str_at(&["datasetName"]), at.value.str_at(&["datasetUUID"]));
    if name.is_empty() && uuid.is_empty() {
        errs.required(&at.path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errs.invalid_value(&at.path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errs.invalid(&at.field("datasetName"), "must not contain '/'");
    }
}

pub(super) fn claim(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["claimName"]);
}

pub(super) fn rbd(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["monitors", "image"]);
}

pub(super) fn cinder(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["volumeID"]);
    secret_name(errs, at);
}

pub(super) fn cephfs(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["monitors"]);
}

pub(super) fn quobyte(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let registry = at.field("registry");
    if errs.present(&registry, HOST_AND_PORT) {
        if at.value.str_at(&["tenant"]).len() >= 65 {
            errs.required(&at.path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
        } else {
            for _ in text(&registry).split(',').filter(|pair| !is_host_and_port(pair)) {
                errs.invalid(&registry, HOST_AND_PORT);
            }
        }
    }
    required(errs, at, &["volume"]);
}

/// What Go's `SplitHostPort` accepts.
fn is_host_and_port(pair: &str) -> bool {
    match pair.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").is_some_and(|(_, port)| !port.contains([':', '[', ']'])),
        None => pair.split_once(':').is_some_and(|(_, port)| !port.contains(':')) && !pair.contains(['[', ']']),
    }
}

pub(super) fn fibre_channel(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let (names, ids) = (at.field("targetWWNs"), at.field("wwids"));
    if names.is_empty_value() && ids.is_empty_value() {
        errs.required(&names.path, "must specify either targetWWNs or wwids, but not both");
    }
    if !names.is_empty_value() && !ids.is_empty_value() {
        errs.invalid(&names, "targetWWNs and wwids can not be specified simultaneously");
    }
    if !names.is_empty_value() {
        let lun_at = at.field("lun");
        if lun_at.is_absent() {
            errs.required(&lun_at.path, "lun is required if targetWWNs is specified");
        } else {
            lun(errs, &lun_at);
        }
    }
}

pub(super) fn flex(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["driver"]);
    for (key, option) in at.field("options").map_entries() {
        let namespace = format!(".{}", key.split_once('/').map_or(key, |(ns, _)| ns).to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            errs.invalid_value(&option.path, key, "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}

pub(super) fn azure_file(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["secretName", "shareName"]);
}

pub(super) fn vsphere(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["volumePath"]);
}

pub(super) fn photon(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["pdID"]);
}

pub(super) fn portworx(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["volumeID"]);
}

pub(super) fn azure_disk(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    required(errs, at, &["diskName", "diskURI"]);
    let (caching, kind, uri) = (at.field("cachingMode"), at.field("kind"), at.field("diskURI"));
    if !caching.is_absent() {
        errs.one_of(&caching, &["None", "ReadOnly", "ReadWrite"]);
    }
    if kind.is_absent() {
        return;
    }
    errs.one_of(&kind, &["Dedicated", "Managed", "Shared"]);
    let (start, form) = if text(&kind) == "Managed" { ("/subscriptions/", MANAGED) } else { ("https://", BLOB) };
    if !text(&uri).starts_with(start) {
        errs.one_of(&uri, &[form]);
    }
}

pub(super) fn storage_os(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let (name, namespace) = (at.field("volumeName"), at.field("volumeNamespace"));
    if errs.present(&name, "") {
        errs.each(&name, dns_label(text(&name)));
    }
    if !text(&namespace).is_empty() {
        errs.each(&namespace, dns_label(text(&namespace)));
    }
    secret_name(errs, at);
}

pub(super) fn scale_io(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    required(errs, at, &["gateway", "system", "volumeName"]);
}

pub(super) fn csi(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let driver = at.field("driver");
    if errs.present(&driver, "") {
        if text(&driver).len() > 63 {
            errs.too_long(&driver.path, 63);
        }
        errs.each(&driver, dns_subdomain(&text(&driver).to_lowercase()));
    }
    if !at.value["nodePublishSecretRef"].is_null() {
        let name = at.fields(&["nodePublishSecretRef", "name"]);
        if errs.present(&name, "") {
            errs.each(&Cursor::new(at.path.child("name"), name.value), dns_subdomain(text(&name)));
        }
    }
}

pub(super) fn ephemeral(errs: &mut FieldErrors, at: &Cursor<'_>, _: Options) {
    let template = at.field("volumeClaimTemplate");
    if template.is_absent() {
        errs.required(&template.path, "");
    } else {
        claim_template::validate(errs, &template);
    }
}

pub(super) fn image(errs: &mut FieldErrors, at: &Cursor<'_>, options: Options) {
    if options.is_pod {
        required(errs, at, &["reference"]);
    }
    one_of_or_required(errs, &at.field("pullPolicy"), containers::PULL_POLICIES);
}

/// Disks that several pods share may only be read.
pub(crate) fn read_only_disks(errs: &mut FieldErrors, volumes: &Cursor<'_>) {
    for volume in volumes.elements() {
        let disk = volume.field("gcePersistentDisk");
        if !disk.is_absent() && disk.value["readOnly"] != Value::Bool(true) {
            let read_only = disk.value["readOnly"].as_bool().unwrap_or_default();
            errs.invalid_value(
                &disk.path.child("readOnly"),
                read_only,
                "must be true for replicated pods > 1; GCE PD can only be mounted on multiple machines if it is read-only",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiators_have_one_of_three_forms() {
        assert!(is_qualified_initiator("iqn.2001-04.com.example:storage"));
        assert!(!is_qualified_initiator("iqn.2001-04.com.example"));
        assert!(!is_qualified_initiator("iqn.01-04.com.example:x"));
        assert!(!is_qualified_initiator("iqn.2001-04.com.example:a b"));
    }

    #[test]
    fn pairs_of_host_and_port() {
        for good in ["a:1", "[::1]:2", ":3"] {
            assert!(is_host_and_port(good), "{good}");
        }
        for bad in ["a", "a:1:2", "[::1]"] {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
