//! The volumes of a pod: one source each.

use std::collections::BTreeMap;

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{Options, projected, volume_sources as sources};
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::{Checks, text};

type Rule = fn(&mut FieldErrors, &Cursor<'_>, Options);

/// Upstream's order, which decides which of several sources counts as one too many. The middle column is the path of
/// that finding, where upstream's spelling is not the field's.
const SOURCES: &[(&str, &str, Rule)] = &[
    ("emptyDir", "emptyDir", sources::empty_dir),
    ("hostPath", "hostPath", sources::host_path),
    ("gitRepo", "gitRepo", sources::git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", sources::gce_disk),
    ("awsElasticBlockStore", "awsElasticBlockStore", sources::aws_disk),
    ("secret", "secret", sources::secret),
    ("nfs", "nfs", sources::nfs),
    ("iscsi", "iscsi", sources::iscsi),
    ("glusterfs", "glusterfs", sources::glusterfs),
    ("flocker", "flocker", sources::flocker),
    ("persistentVolumeClaim", "persistentVolumeClaim", sources::claim),
    ("rbd", "rbd", sources::rbd),
    ("cinder", "cinder", sources::cinder),
    ("cephfs", "cephFS", sources::cephfs),
    ("quobyte", "quobyte", sources::quobyte),
    ("downwardAPI", "downwarAPI", projected::downward_api),
    ("fc", "fc", sources::fibre_channel),
    ("flexVolume", "flexVolume", sources::flex),
    ("configMap", "configMap", sources::config_map),
    ("azureFile", "azureFile", sources::azure_file),
    ("vsphereVolume", "vsphereVolume", sources::vsphere),
    ("photonPersistentDisk", "photonPersistentDisk", sources::photon),
    ("portworxVolume", "portworxVolume", sources::portworx),
    ("azureDisk", "azureDisk", sources::azure_disk),
    ("storageos", "storageos", sources::storage_os),
    ("projected", "projected", projected::projected),
    ("scaleIO", "scaleIO", sources::scale_io),
    ("csi", "csi", sources::csi),
    ("ephemeral", "ephemeral", sources::ephemeral),
    ("image", "image", sources::image),
];

/// The rules for all volumes; gives those that are well formed, by name. `meta`: of the pod itself, because claims that
/// are made for it are named after it.
pub(super) fn validate<'a>(
    errs: &mut FieldErrors,
    list: &Cursor<'a>,
    meta: Option<&Value>,
    options: Options,
) -> BTreeMap<&'a str, &'a Value> {
    let pod = meta.map(|m| m.str_at(&["name"])).filter(|n| !n.is_empty());
    let made: Vec<String> = pod.map_or_else(Vec::new, |pod| {
        let ephemeral = list.value.items().iter().filter(|v| !v["ephemeral"].is_null());
        ephemeral.map(|v| format!("{pod}-{}", v.str_at(&["name"]))).collect()
    });
    let mut good = BTreeMap::new();
    for volume in list.elements() {
        let before = errs.0.len();
        source(errs, &volume, pod, options);
        let name = volume.field("name");
        if errs.present(&name, "") {
            errs.each(&name, dns_label(text(&name)));
        }
        if good.contains_key(text(&name)) {
            errs.duplicate(&name.path, text(&name));
        }
        if errs.0.len() == before {
            good.insert(text(&name), volume.value);
        }
        let claim = volume.fields(&["persistentVolumeClaim", "claimName"]);
        if made.iter().any(|m| m == text(&claim)) {
            errs.invalid(&claim, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
    good
}

fn source(errs: &mut FieldErrors, volume: &Cursor<'_>, pod: Option<&str>, options: Options) {
    let mut found = false;
    for (field, shown, rule) in SOURCES {
        let at = volume.field(field);
        if at.is_absent() {
            continue;
        }
        if found {
            errs.forbidden(&volume.path.child(shown), "may not specify more than 1 volume type");
        } else {
            rule(errs, &at, options);
        }
        match *field {
            "iscsi" => initiator_length(errs, volume, &at),
            "ephemeral" if !found => made_claim_name(errs, volume, pod),
            _ => {}
        }
        found = true;
    }
    if !found {
        errs.required(&volume.path, "must specify a volume type");
    }
}

fn initiator_length(errs: &mut FieldErrors, volume: &Cursor<'_>, iscsi: &Cursor<'_>) {
    let name = volume.value.str_at(&["name"]);
    let length = name.len() + 1 + iscsi.value.str_at(&["targetPortal"]).len();
    if !iscsi.value["initiatorName"].is_null() && length > 64 {
        errs.invalid_text(
            &volume.field("name"),
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
        );
    }
}

/// The claim that is made for an ephemeral volume has a name of its own, which must be a good one.
fn made_claim_name(errs: &mut FieldErrors, volume: &Cursor<'_>, pod: Option<&str>) {
    let name = volume.field("name");
    let Some(pod) = pod.filter(|_| !text(&name).is_empty()) else { return };
    let claim = format!("{pod}-{}", text(&name));
    for message in dns_subdomain(&claim) {
        errs.invalid_text(&name, format!("PVC name {claim:?}: {message}"));
    }
}

/// A projected token whose path leaves its volume, as old servers allowed.
pub(super) fn has_token_outside(spec: &Value) -> bool {
    spec["volumes"].items().iter().flat_map(|v| v.at(&["projected", "sources"]).items()).any(|s| {
        let path = s.str_at(&["serviceAccountToken", "path"]);
        path.starts_with('/') || path.starts_with("..") || path.split('/').any(|part| part == "..")
    })
}
