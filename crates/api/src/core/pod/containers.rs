//! Containers of all three kinds.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::spec::one_of_or_required;
use super::{Context, containers_of, environment, handlers, mounts, resources, security};
use crate::validation::names::{dns_label, port_name};
use crate::validation::net::BAD_PORT;
use crate::validation::{Checks, int, text};

pub(super) const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// The rules for all containers of a spec.
pub(super) fn validate(errs: &mut FieldErrors, spec: &Cursor<'_>, context: &Context<'_>) {
    regular(errs, &spec.field("containers"), context);
    init(errs, spec, context);
    ephemeral(errs, spec, context);
}

fn name(container: &Value) -> &str {
    container.str_at(&["name"])
}

fn regular(errs: &mut FieldErrors, containers: &Cursor<'_>, context: &Context<'_>) {
    if !errs.present(containers, "") {
        return;
    }
    let mut names: Vec<&str> = Vec::new();
    for container in containers.elements() {
        common(errs, &container, context);
        unique(errs, &container, &mut names);
        running(errs, &container, context);
        handlers::restart_rules(errs, &container);
    }
    let mut ports = Vec::new();
    for container in containers.elements() {
        unique_host_ports(errs, &container, &container, &mut ports);
    }
}

fn init(errs: &mut FieldErrors, spec: &Cursor<'_>, context: &Context<'_>) {
    let mut names: Vec<&str> = spec.value["containers"].items().iter().map(name).collect();
    let list = spec.field("initContainers");
    for container in list.elements() {
        common(errs, &container, context);
        if container.value["restartPolicy"].is_null() {
            if !container.value["restartPolicyRules"].items().is_empty() {
                errs.required(
                    &container.path.child("restartPolicy"),
                    "must specify restartPolicy when restart rules are used",
                );
            }
        } else {
            handlers::restart_rules(errs, &container);
        }
        let own = name(container.value);
        if names.contains(&own) {
            errs.duplicate(&container.path.child("name"), own);
        } else if !own.is_empty() {
            names.push(own);
        }
        // They run one after the other, so that each is alone with its ports; upstream always shows the first one's path.
        let shown = Cursor::new(list.path.index(0), container.value);
        unique_host_ports(errs, &container, &shown, &mut Vec::new());
        if container.value.str_at(&["restartPolicy"]) == "Always" {
            running(errs, &container, context);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if !container.value[field].is_null() {
                errs.forbidden(
                    &container.path.child(field),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
        }
    }
}

/// What an ephemeral container may not have: it is not what the pod is for.
const NOT_EPHEMERAL: &[&str] = &[
    "ports",
    "resources",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
];

fn ephemeral(errs: &mut FieldErrors, spec: &Cursor<'_>, context: &Context<'_>) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    let others: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|list| spec.value[*list].items()).map(name).collect();
    let mut names = others.clone();
    for container in spec.field("ephemeralContainers").elements() {
        common(errs, &container, context);
        only_for_pods(errs, &container);
        unique(errs, &container, &mut names);
        let target = container.value.str_at(&["targetContainerName"]);
        if !target.is_empty() && !others.contains(&target) {
            errs.not_found(&container.path.child("targetContainerName"), target);
        }
        for field in NOT_EPHEMERAL {
            if !container.value[*field].is_empty_value() {
                errs.forbidden(&container.path.child(field), WHY);
            }
        }
        for mount in container.field("volumeMounts").elements() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.value.str_at(&[field]).is_empty() {
                    errs.forbidden(&mount.path.child(field), WHY);
                }
            }
        }
    }
}

fn unique<'a>(errs: &mut FieldErrors, container: &Cursor<'a>, names: &mut Vec<&'a str>) {
    let own = name(container.value);
    if names.contains(&own) {
        errs.duplicate(&container.path.child("name"), own);
    } else {
        names.push(own);
    }
}

/// What a container has that goes on running.
fn running(errs: &mut FieldErrors, container: &Cursor<'_>, context: &Context<'_>) {
    handlers::lifecycle(errs, &container.field("lifecycle"), context);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        handlers::probe(errs, &container.field(probe), probe, context);
    }
}

/// The rules that hold for every container.
fn common(errs: &mut FieldErrors, container: &Cursor<'_>, context: &Context<'_>) {
    let name = container.field("name");
    if errs.present(&name, "") {
        errs.each(&name, dns_label(text(&name)));
    }
    errs.present(&container.field("image"), "");
    one_of_or_required(errs, &container.field("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"]);
    ports(errs, &container.field("ports"));
    environment::variables(errs, &container.field("env"));
    environment::sources(errs, &container.field("envFrom"));
    mounts::mounts(errs, container, context);
    mounts::devices(errs, container, context);
    one_of_or_required(errs, &container.field("imagePullPolicy"), PULL_POLICIES);
    resources::of_container(errs, &container.field("resources"), context);
    resources::resize_policy(errs, &container.field("resizePolicy"), context.restart_policy);
    security::of_container(errs, &container.field("securityContext"), context.host_users);
}

/// Rules for pods that templates need not keep.
pub(super) fn only_for_pods(errs: &mut FieldErrors, container: &Cursor<'_>) {
    let image = container.field("image");
    if text(&image).trim() != text(&image) {
        errs.invalid(&image, "must not have leading or trailing whitespace");
    }
}

fn ports(errs: &mut FieldErrors, ports: &Cursor<'_>) {
    let mut names: Vec<&str> = Vec::new();
    for port in ports.elements() {
        let name = port.field("name");
        if !text(&name).is_empty() {
            let wrong = port_name(text(&name));
            if !wrong.is_empty() {
                errs.each(&name, wrong);
            } else if names.contains(&text(&name)) {
                errs.duplicate(&name.path, text(&name));
            } else {
                names.push(text(&name));
            }
        }
        let number = port.field("containerPort");
        if errs.present(&number, "") && !(1..=65535).contains(&int(number.value)) {
            errs.invalid(&number, BAD_PORT);
        }
        let host = port.field("hostPort");
        if int(host.value) != 0 && !(1..=65535).contains(&int(host.value)) {
            errs.invalid(&host, BAD_PORT);
        }
        one_of_or_required(errs, &port.field("protocol"), PROTOCOLS);
    }
}

/// No two containers take the same port of the host.
fn unique_host_ports(errs: &mut FieldErrors, container: &Cursor<'_>, shown: &Cursor<'_>, taken: &mut Vec<String>) {
    for (i, port) in container.value["ports"].items().iter().enumerate() {
        let number = int(&port["hostPort"]);
        if number == 0 {
            continue;
        }
        let this = format!("{}/{}/{number}", port.str_at(&["protocol"]), port.str_at(&["hostIP"]));
        if taken.contains(&this) {
            errs.duplicate(&shown.path.child("ports").index(i).child("hostPort"), this);
        } else {
            taken.push(this);
        }
    }
}

/// A variable that comes from a file comes from an emptyDir of the pod.
pub(super) fn files_of_environment(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    for variable in containers_of(spec).flat_map(|c| c.field("env").elements()) {
        let at = variable.fields(&["valueFrom", "fileKeyRef", "volumeName"]);
        if variable.value.at(&["valueFrom", "fileKeyRef"]).is_null() {
            continue;
        }
        match spec.value["volumes"].items().iter().rev().find(|v| v.str_at(&["name"]) == text(&at)) {
            None => errs.not_found(&at.path, text(&at)),
            Some(volume) if volume["emptyDir"].is_null() => {
                errs.invalid_text(&at, "referenced volume must be of type emptyDir");
            }
            Some(_) => {}
        }
    }
}
