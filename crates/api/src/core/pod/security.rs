//! With which rights a pod and its containers run.

use apimachinery::field::{Cursor, FieldErrors};

use super::{Options, windows};
use crate::validation::numbers::identity;
use crate::validation::{Checks, paths, text};

/// The whole pod's context.
pub(super) fn of_pod(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    let context = spec.field("securityContext");
    if context.is_absent() {
        return;
    }
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        identity(errs, &context.field(field));
    }
    for group in context.field("supplementalGroups").elements() {
        identity(errs, &group);
    }
    let share = &spec.value["shareProcessNamespace"];
    if share.as_bool() == Some(true) && spec.value["hostPID"].as_bool() == Some(true) {
        errs.invalid_value(
            &context.path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(errs, spec, options);
    optional(errs, &context.field("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]);
    seccomp(errs, &context.field("seccompProfile"));
    windows::options(errs, &context.field("windowsOptions"));
    app_armor(errs, &context.field("appArmorProfile"));
    optional(errs, &context.field("supplementalGroupsPolicy"), &["Merge", "Strict"]);
    let policies: &[&str] = if options.any_selinux_policy { &["MountOption", "Recursive"] } else { &["Recursive"] };
    optional(errs, &context.field("seLinuxChangePolicy"), policies);
}

fn optional(errs: &mut FieldErrors, at: &Cursor<'_>, allowed: &[&str]) {
    if !at.is_absent() {
        errs.one_of(at, allowed);
    }
}

const SYSCTL: &str = "must have at most 253 characters and match regex \
                      ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn is_sysctl(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let segment = |s: &str| {
        let bytes = s.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn sysctls(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    let mut seen: Vec<&str> = Vec::new();
    for sysctl in spec.fields(&["securityContext", "sysctls"]).elements() {
        let name = sysctl.field("name");
        if errs.present(&name, "") {
            if !is_sysctl(text(&name)) {
                errs.invalid(&name, SYSCTL);
            } else if seen.contains(&text(&name)) {
                errs.duplicate(&name.path, text(&name));
            }
        }
        if !options.any_sysctls {
            host_sysctl(errs, &name, spec);
        }
        seen.push(text(&name));
    }
}

/// Sysctls of a namespace that the pod shares with the host would change the host.
pub(super) fn host_sysctls(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    for sysctl in spec.fields(&["securityContext", "sysctls"]).elements() {
        host_sysctl(errs, &sysctl.field("name"), spec);
    }
}

fn host_sysctl(errs: &mut FieldErrors, name: &Cursor<'_>, spec: &Cursor<'_>) {
    let dotted = match text(name).find(['.', '/']) {
        Some(i) if text(name).as_bytes()[i] == b'/' => text(name)
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => text(name).to_owned(),
    };
    let is_ipc =
        dotted == "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p));
    let shares = |field: &str| spec.value[field].as_bool() == Some(true);
    if dotted.starts_with("net.") && shares("hostNetwork") {
        errs.invalid_text(name, "may not be specified when 'hostNetwork' is true");
    } else if is_ipc && shares("hostIPC") {
        errs.invalid_text(name, "may not be specified when 'hostIPC' is true");
    }
}

fn seccomp(errs: &mut FieldErrors, profile: &Cursor<'_>) {
    if profile.is_absent() {
        return;
    }
    let (kind, path) = (profile.field("type"), profile.field("localhostProfile"));
    if errs.present(&kind, "type is required when seccompProfile is set") {
        errs.one_of(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
    }
    match (text(&kind) == "Localhost", path.is_absent()) {
        (true, true) => errs.required(&path.path, "must be set when seccomp type is Localhost"),
        (true, false) => paths::descending(errs, &path),
        (false, false) => {
            let whole = Cursor::new(path.path.clone(), profile.value);
            errs.invalid_struct(&whole, "can only be set when seccomp type is Localhost");
        }
        (false, true) => {}
    }
}

fn app_armor(errs: &mut FieldErrors, profile: &Cursor<'_>) {
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    const MAX: usize = 4095;
    if profile.is_absent() {
        return;
    }
    let (kind, path) = (profile.field("type"), profile.field("localhostProfile"));
    match text(&kind) {
        "Localhost" if path.is_absent() => errs.required(&path.path, NEEDED),
        "Localhost" => {
            if text(&path).trim() != text(&path) {
                errs.invalid(&path, "must not be padded with whitespace");
            } else if text(&path).is_empty() {
                errs.required(&path.path, NEEDED);
            }
            if text(&path).len() > MAX {
                errs.too_long(&path.path, MAX);
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if !path.is_absent() {
                errs.invalid(&path, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errs.required(&kind.path, "type is required when appArmorProfile is set"),
        _ => errs.not_supported(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

/// One container's context.
pub(super) fn of_container(errs: &mut FieldErrors, context: &Cursor<'_>, host_users: bool) {
    if context.is_absent() {
        return;
    }
    for field in ["runAsUser", "runAsGroup"] {
        identity(errs, &context.field(field));
    }
    let mount = context.field("procMount");
    if !mount.is_absent() {
        errs.one_of(&mount, &["Default", "Unmasked"]);
        if host_users && text(&mount) == "Unmasked" {
            errs.invalid(&mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(errs, &context.field("seccompProfile"));
    if context.value["allowPrivilegeEscalation"].as_bool() == Some(false) {
        if context.value["privileged"].as_bool() == Some(true) {
            errs.invalid_struct(context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        for _ in
            context.value.at(&["capabilities", "add"]).items().iter().filter(|c| c.as_str() == Some("CAP_SYS_ADMIN"))
        {
            errs.invalid_struct(
                context,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    windows::options(errs, &context.field("windowsOptions"));
    app_armor(errs, &context.field("appArmorProfile"));
}
