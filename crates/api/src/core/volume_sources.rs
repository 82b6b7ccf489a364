//! The sources of PersistentVolumes: what each must have.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::validation::names::dns_subdomain;
use crate::validation::{Checks, int, text};

/// A source, the fields that it must have, and its rules beyond them.
type Source = (&'static str, &'static [&'static str], fn(&Cursor<'_>, &mut FieldErrors));

fn no_more(_: &Cursor<'_>, _: &mut FieldErrors) {}

/// In the order in which upstream looks for them: the first that is there counts, any other is one too many.
const SOURCES: &[Source] = &[
    ("hostPath", &["path"], host_path),
    ("gcePersistentDisk", &["pdName"], partition),
    ("awsElasticBlockStore", &["volumeID"], partition),
    ("glusterfs", &["endpoints", "path"], no_more),
    ("flocker", &[], flocker),
    ("nfs", &["server", "path"], nfs),
    ("rbd", &["monitors", "image"], no_more),
    ("quobyte", &["registry", "volume"], no_more),
    ("cephfs", &["monitors"], no_more),
    ("iscsi", &["targetPortal", "iqn"], iscsi),
    ("cinder", &["volumeID"], no_more),
    ("fc", &[], fibre_channel),
    ("azureFile", &["secretName", "shareName"], no_more),
    ("vsphereVolume", &["volumePath"], no_more),
    ("photonPersistentDisk", &["pdID"], no_more),
    ("portworxVolume", &["volumeID"], no_more),
    ("azureDisk", &["diskName", "diskURI"], azure_disk),
    ("scaleIO", &["gateway", "system", "volumeName"], no_more),
    ("local", &["path"], local),
    ("storageos", &[], no_more),
    ("csi", &[], csi),
];

pub(super) const NAMES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
    "flexVolume",
];

/// The name of the source that counts.
pub(super) fn validate(spec: &Cursor<'_>, errs: &mut FieldErrors) -> Option<&'static str> {
    let mut found = None;
    for (name, required, more) in SOURCES {
        let source = spec.field(name);
        if source.is_absent() {
            continue;
        }
        if found.is_some() {
            errs.forbidden(&source.path, "may not specify more than 1 volume type");
            continue;
        }
        found = Some(*name);
        for field in *required {
            errs.present(&source.field(field), "");
        }
        more(&source, errs);
    }
    if found.is_none() && spec["flexVolume"].is_null() {
        errs.required(&spec.path, "must specify a volume type");
    }
    found
}

fn no_backsteps(path: &Cursor<'_>, errs: &mut FieldErrors) {
    if text(path).split('/').any(|part| part == "..") {
        errs.invalid(path, "must not contain '..'");
    }
}

fn host_path(source: &Cursor<'_>, errs: &mut FieldErrors) {
    no_backsteps(&source.field("path"), errs);
    let kind = source.field("type");
    if !kind.is_absent() {
        let kinds =
            ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        errs.one_of(&kind, &kinds);
    }
}

fn partition(source: &Cursor<'_>, errs: &mut FieldErrors) {
    let partition = source.field("partition");
    if !(0..=255).contains(&int(&partition)) {
        errs.invalid(&partition, "must be between 1 and 255, inclusive");
    }
}

fn flocker(source: &Cursor<'_>, errs: &mut FieldErrors) {
    let (name, uuid) = (source.str_at(&["datasetName"]), source.str_at(&["datasetUUID"]));
    if name.is_empty() && uuid.is_empty() {
        errs.required(&source.path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errs.invalid_struct(source, "resource");
    }
    if name.contains('/') {
        errs.invalid(&source.field("datasetName"), "must not contain '/'");
    }
}

fn nfs(source: &Cursor<'_>, errs: &mut FieldErrors) {
    let path = source.field("path");
    if !text(&path).starts_with('/') {
        errs.invalid_text(&path, "must be an absolute path");
    }
}

fn lun(source: &Cursor<'_>, errs: &mut FieldErrors) {
    let lun = source.field("lun");
    if !(0..=255).contains(&int(&lun)) {
        errs.invalid(&lun, "must be between 0 and 255, inclusive");
    }
}

fn iscsi(source: &Cursor<'_>, errs: &mut FieldErrors) {
    let iqn = source.field("iqn");
    let name = text(&iqn);
    if !name.is_empty() && !["iqn", "eui", "naa"].iter().any(|kind| name.starts_with(kind)) {
        errs.invalid(&iqn, "must be valid format starting with iqn, eui, or naa");
    }
    lun(source, errs);
    let chap = ["chapAuthDiscovery", "chapAuthSession"].iter().any(|f| source[f].as_bool() == Some(true));
    if chap && source["secretRef"].is_null() {
        errs.required(&source.path.child("secretRef"), "");
    }
}

fn fibre_channel(source: &Cursor<'_>, errs: &mut FieldErrors) {
    let (names, ids) = (source.field("targetWWNs"), source.field("wwids"));
    match (names.items().is_empty(), ids.items().is_empty()) {
        (true, true) => errs.required(&names.path, "must specify either targetWWNs or wwids, but not both"),
        (false, false) => errs.invalid(&names, "targetWWNs and wwids can not be specified simultaneously"),
        _ => {}
    }
    if !names.items().is_empty() {
        if source["lun"].is_null() {
            errs.required(&source.path.child("lun"), "lun is required if targetWWNs is specified");
        } else {
            lun(source, errs);
        }
    }
}

fn azure_disk(source: &Cursor<'_>, errs: &mut FieldErrors) {
    let (caching, kind) = (source.field("cachingMode"), source.field("kind"));
    if !caching.is_absent() {
        errs.one_of(&caching, &["None", "ReadOnly", "ReadWrite"]);
    }
    if !kind.is_absent() {
        errs.one_of(&kind, &["Dedicated", "Managed", "Shared"]);
    }
    let uri = source.field("diskURI");
    if text(&kind) == "Managed" && !text(&uri).starts_with("/subscriptions/") {
        errs.not_supported(
            &uri,
            &["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"],
        );
    }
    if text(&kind) != "Managed" && !text(&uri).starts_with("https://") {
        errs.not_supported(&uri, &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"]);
    }
}

fn local(source: &Cursor<'_>, errs: &mut FieldErrors) {
    no_backsteps(&source.field("path"), errs);
}

/// The name of a CSI driver, wherever it stands.
pub(crate) fn csi_driver_name(name: &Cursor<'_>, errs: &mut FieldErrors) {
    if !errs.present(name, "") {
        return;
    }
    if text(name).len() > 63 {
        errs.too_long(&name.path, 63);
    }
    errs.each(name, dns_subdomain(&text(name).to_lowercase()));
}

fn csi(source: &Cursor<'_>, errs: &mut FieldErrors) {
    csi_driver_name(&source.field("driver"), errs);
    errs.present(&source.field("volumeHandle"), "");
    let secrets = [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "nodeExpandSecretRef",
    ];
    for secret in secrets.map(|name| source.field(name)).into_iter().filter(|s| !s.is_absent()) {
        errs.present(&secret.field("name"), "");
        errs.present(&secret.field("namespace"), "");
    }
}

/// What the sources say when nothing is said.
pub(super) fn default(spec: &mut Value) {
    let defaults: &[(&str, &[(&str, &str)])] = &[
        ("hostPath", &[("type", "")]),
        ("rbd", &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")]),
        ("iscsi", &[("iscsiInterface", "default")]),
        ("azureDisk", &[("cachingMode", "ReadWrite"), ("kind", "Shared"), ("fsType", "ext4")]),
        ("scaleIO", &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")]),
    ];
    for (source, fields) in defaults {
        if spec[*source].is_null() {
            continue;
        }
        for (field, value) in *fields {
            spec.set_default(&[source, field], *value);
        }
    }
    if !spec["azureDisk"].is_null() {
        spec.set_default(&["azureDisk", "readOnly"], false);
    }
}

/// Sources that nobody serves any more.
pub(super) fn warnings(spec: &Value) -> Vec<String> {
    let gone = [
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ];
    let found = gone.into_iter().filter(|(name, _)| !spec[*name].is_null());
    found.map(|(name, what)| format!("spec.{name}: {what}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[track_caller]
    fn check(spec: &str, want: &[&str]) {
        let object: Value = serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap();
        let mut errs = FieldErrors::new();
        validate(&Cursor::root(&object).field("spec"), &mut errs);
        assert_findings(&errs, want);
    }

    #[test]
    fn one_source_with_what_it_needs() {
        check("{}", &["spec: Required value: must specify a volume type"]);
        check(
            r#"{"hostPath":{"path":"/a/../b"},"nfs":{}}"#,
            &[
                r#"spec.hostPath.path: Invalid value: "/a/../b": must not contain '..'"#,
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
            ],
        );
        check(
            r#"{"csi":{"driver":"a_b"}}"#,
            &[
                "spec.csi.driver: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                "spec.csi.volumeHandle: Required value",
            ],
        );
        assert!(SOURCES.iter().all(|(name, ..)| NAMES.contains(name)));
    }
}
