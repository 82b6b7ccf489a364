//! Where a container sees the pod's volumes.

use apimachinery::field::{Cursor, FieldErrors};

use super::Context;
use crate::validation::{Checks, paths, text};

fn held<'a>(container: &Cursor<'a>, list: &str, field: &str) -> Vec<&'a str> {
    container.value[list].items().iter().map(|item| item.str_at(&[field])).collect()
}

/// Volumes as directories. Upstream leaves the index out of some paths.
pub(super) fn mounts(errs: &mut FieldErrors, container: &Cursor<'_>, context: &Context<'_>) {
    let list = container.field("volumeMounts");
    let device_names = held(container, "volumeDevices", "name");
    let device_paths = held(container, "volumeDevices", "devicePath");
    let mut taken: Vec<&str> = Vec::new();
    for mount in list.elements() {
        let (name, path) = (mount.field("name"), mount.field("mountPath"));
        errs.present(&name, "");
        if !context.volumes.contains_key(text(&name)) {
            errs.not_found(&name.path, text(&name));
        }
        errs.present(&path, "");
        if taken.contains(&text(&path)) {
            errs.invalid_text(&path, "must be unique");
        }
        taken.push(text(&path));
        if device_names.contains(&text(&name)) {
            errs.invalid_text(&name, "must not already exist in volumeDevices");
        }
        if device_paths.contains(&text(&path)) {
            errs.invalid_text(&path, "must not already exist as a path in volumeDevices");
        }
        let whole = |field: &str| Cursor::new(list.path.child(field), &mount.value[field]);
        let (sub_path, expression) = (whole("subPath"), whole("subPathExpr"));
        if !text(&sub_path).is_empty() {
            paths::descending(errs, &sub_path);
        }
        if !text(&expression).is_empty() {
            if !text(&sub_path).is_empty() {
                errs.invalid(&mount.field("subPathExpr"), "subPathExpr and subPath are mutually exclusive");
            }
            paths::descending(errs, &expression);
        }
        propagation(errs, &whole("mountPropagation"), container);
        recursive_read_only(errs, &whole("recursiveReadOnly"), &mount);
    }
}

fn propagation(errs: &mut FieldErrors, at: &Cursor<'_>, container: &Cursor<'_>) {
    if at.is_absent() {
        return;
    }
    errs.one_of(at, &["Bidirectional", "HostToContainer", "None"]);
    let privileged = container.value.at(&["securityContext", "privileged"]).as_bool() == Some(true);
    if text(at) == "Bidirectional" && !privileged {
        errs.forbidden(&at.path, "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn recursive_read_only(errs: &mut FieldErrors, at: &Cursor<'_>, mount: &Cursor<'_>) {
    match text(at) {
        _ if at.is_absent() => {}
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if mount.value["readOnly"].as_bool() != Some(true) {
                errs.forbidden(&at.path, "may only be specified when readOnly is true");
            }
            if !["", "None"].contains(&mount.value.str_at(&["mountPropagation"])) {
                errs.forbidden(&at.path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => errs.not_supported(at, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Volumes as block devices.
pub(super) fn devices(errs: &mut FieldErrors, container: &Cursor<'_>, context: &Context<'_>) {
    let mount_names = held(container, "volumeMounts", "name");
    let mount_paths = held(container, "volumeMounts", "mountPath");
    let (mut names, mut taken): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for device in container.field("volumeDevices").elements() {
        let (name, path) = (device.field("name"), device.field("devicePath"));
        errs.present(&name, "");
        if names.contains(&text(&name)) {
            errs.invalid_text(&name, "must be unique");
        }
        match context.volumes.get(text(&name)) {
            None => errs.not_found(&name.path, text(&name)),
            Some(volume) if volume["persistentVolumeClaim"].is_null() && volume["ephemeral"].is_null() => errs
                .invalid_text(
                    &name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ),
            Some(_) => {}
        }
        errs.present(&path, "");
        if taken.contains(&text(&path)) {
            errs.invalid_text(&path, "must be unique");
        }
        if paths::steps_back(text(&path)) {
            errs.invalid_text(&path, "can not contain backsteps ('..')");
        } else {
            taken.push(text(&path));
        }
        if mount_names.contains(&text(&name)) {
            errs.invalid_text(&name, "must not already exist in volumeMounts");
        }
        if mount_paths.contains(&text(&path)) {
            errs.invalid_text(&path, "must not already exist as a path in volumeMounts");
        }
        if !text(&name).is_empty() {
            names.push(text(&name));
        }
    }
}
