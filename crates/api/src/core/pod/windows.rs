//! Windows: its options, its containers that run as processes of the host, and what a pod of either system may not say.

use std::sync::LazyLock;

use apimachinery::field::{Cursor, FieldErrors};
use regex::Regex;

use super::containers_of;
use crate::validation::names::dns_subdomain;
use crate::validation::{Checks, text};

const MAX_SPEC_KIB: usize = 64;
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;

#[expect(clippy::expect_used, reason = "the expressions are constants, and a test compiles them")]
fn expression(text: &str) -> Regex {
    Regex::new(text).expect("a constant expression")
}

static NET_BIOS: LazyLock<Regex> = LazyLock::new(|| expression(r#"^[^\\/:*?"<>|.][^\\/:*?"<>|]{0,14}$"#));
static DOMAIN: LazyLock<Regex> = LazyLock::new(|| {
    expression("^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$")
});

/// Options of a pod's or a container's security context.
pub(super) fn options(errs: &mut FieldErrors, options: &Cursor<'_>) {
    let (name, spec) = (options.field("gmsaCredentialSpecName"), options.field("gmsaCredentialSpec"));
    if !name.is_absent() {
        errs.each(&name, dns_subdomain(text(&name)));
    }
    if !spec.is_absent() {
        match text(&spec).len() {
            0 => errs.invalid(&spec, "gmsaCredentialSpec cannot be an empty string"),
            n if n > MAX_SPEC_KIB * 1024 => {
                errs.invalid(&spec, format!("gmsaCredentialSpec size must be under {MAX_SPEC_KIB} KiB"));
            }
            _ => {}
        }
    }
    let user = options.field("runAsUserName");
    if !user.is_absent() {
        for message in user_name(text(&user)) {
            errs.invalid(&user, message);
        }
    }
}

/// `USER` or `DOMAIN\USER`.
fn user_name(name: &str) -> Vec<String> {
    let one = |message: &str| vec![message.to_owned()];
    if name.is_empty() {
        return one("runAsUserName cannot be an empty string");
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return one("runAsUserName cannot contain control characters");
    }
    let (domain, user) = match name.split_once('\\') {
        Some((_, user)) if user.contains('\\') => return one("runAsUserName cannot contain more than one backslash"),
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut wrong = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= MAX_DOMAIN {
            wrong.push(format!("runAsUserName's Domain length must be under {MAX_DOMAIN} characters"));
        }
        if !NET_BIOS.is_match(domain) && !DOMAIN.is_match(domain) {
            wrong.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned());
        }
    }
    if user.is_empty() {
        wrong.push("runAsUserName's User cannot be empty".to_owned());
    } else if user.len() > MAX_USER {
        wrong.push(format!("runAsUserName's User length must not be longer than {MAX_USER} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        wrong.push("runAsUserName's User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        wrong.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".to_owned());
    }
    wrong
}

/// Containers that are processes of the host: all of them or none, and on the host's network.
pub(super) fn host_process(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let path = ["securityContext", "windowsOptions", "hostProcess"];
    let whole = spec.value.at(&path).as_bool();
    let (mut all, mut on_host) = (0, 0);
    for container in containers_of(spec) {
        all += 1;
        let own = container.fields(&path);
        if let (Some(whole), Some(own_value)) = (whole, own.value.as_bool())
            && whole != own_value
        {
            errs.invalid(&own, format!("pod hostProcess value must be identical if both are specified, was {whole}"));
        }
        if own.value.as_bool().or(whole) == Some(true) {
            on_host += 1;
        }
    }
    if on_host == 0 {
        return;
    }
    if on_host != all {
        errs.invalid_value(
            &spec.path,
            "",
            "If pod contains any hostProcess containers then all containers must be HostProcess containers",
        );
    }
    if spec.value["hostNetwork"].as_bool() != Some(true) {
        errs.invalid_value(
            &spec.path.child("hostNetwork"),
            false,
            "hostNetwork must be true if pod contains any hostProcess containers",
        );
    }
}

const NOT_WINDOWS: &str = "cannot be set for a windows pod";
const NOT_LINUX: &str = "windows options cannot be set for a linux pod";

/// What a pod's system forbids.
pub(super) fn operating_system(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let os = spec.field("os");
    if os.is_absent() {
        return;
    }
    let name = os.field("name");
    if !errs.present(&name, "") {
        return;
    }
    match text(&name) {
        "linux" => only_linux(errs, spec),
        "windows" => only_windows(errs, spec),
        _ => errs.not_supported(&Cursor::new(os.path.clone(), name.value), &["linux", "windows"]),
    }
}

fn only_linux(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    for owner in std::iter::once(spec.clone()).chain(containers_of(spec)) {
        let options = owner.fields(&["securityContext", "windowsOptions"]);
        if !options.is_absent() {
            errs.forbidden(&options.path, NOT_LINUX);
        }
    }
}

/// Upstream's order, in which fields of the pod stand between those of its context.
const LINUX_POD: &[&[&str]] = &[
    &["securityContext", "appArmorProfile"],
    &["securityContext", "seLinuxOptions"],
    &["hostUsers"],
    &["hostPID"],
    &["hostIPC"],
    &["securityContext", "seccompProfile"],
    &["securityContext", "fsGroup"],
    &["securityContext", "fsGroupChangePolicy"],
    &["securityContext", "sysctls"],
    &["shareProcessNamespace"],
    &["securityContext", "runAsUser"],
    &["securityContext", "runAsGroup"],
    &["securityContext", "supplementalGroups"],
    &["securityContext", "supplementalGroupsPolicy"],
    &["securityContext", "seLinuxChangePolicy"],
];

const LINUX_CONTAINER: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

fn only_windows(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    for path in LINUX_POD {
        let at = spec.fields(path);
        // Of these two only a true one counts, of the others any.
        let set = if matches!(**path, ["hostPID"] | ["hostIPC"]) { !at.is_empty_value() } else { !at.is_absent() };
        if set {
            errs.forbidden(&at.path, NOT_WINDOWS);
        }
    }
    for container in containers_of(spec) {
        let context = container.field("securityContext");
        for field in LINUX_CONTAINER {
            if !context.value[*field].is_null() {
                errs.forbidden(&context.path.child(field), NOT_WINDOWS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, findings: usize) {
        assert_eq!(user_name(name).len(), findings, "{name}: {:?}", user_name(name));
    }

    #[test]
    fn names_of_users() {
        check("Administrator", 0);
        check("NT AUTHORITY\\SYSTEM", 0);
        check("example.com\\bob", 0);
        check("", 1);
        check("a\\b\\c", 1);
        check("...", 1);
        check("a@b", 1);
        check("\\", 2);
    }
}
