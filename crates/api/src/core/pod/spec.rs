//! The whole of a pod's spec, in upstream's order.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{Context, Options, containers, containers_of, dns, resources, scheduling, security, volumes, windows};
use crate::validation::labels::label_map;
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::{Checks, int, labels, net, resources as amounts, text};

/// Rules for a pod's spec. `meta`: of the pod itself; none for a template, whose pods have names of their own.
pub(crate) fn validate(errs: &mut FieldErrors, spec: &Cursor<'_>, meta: Option<&Value>, options: Options) {
    let grace = spec.field("terminationGracePeriodSeconds");
    if grace.is_absent() {
        errs.required(&grace.path, "");
    }
    let volumes = volumes::validate(errs, &spec.field("volumes"), meta, options);
    resources::claims(errs, &spec.field("resourceClaims"), meta);
    let context = Context::new(spec, volumes, options);
    containers::validate(errs, spec, &context);
    resources::of_pod(errs, spec, &context);
    host_ports(errs, spec, options);
    restart_policy(errs, &spec.field("restartPolicy"));
    one_of_or_required(errs, &spec.field("dnsPolicy"), &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    label_map(errs, &spec.field("nodeSelector"));
    security::of_pod(errs, spec, options);
    scheduling::affinity(errs, &spec.field("affinity"), options);
    dns::config(errs, spec);
    for gate in spec.field("readinessGates").elements() {
        labels::label_name(errs, &gate.field("conditionType"));
    }
    scheduling::gates(errs, &spec.field("schedulingGates"));
    scheduling::spread(errs, &spec.field("topologySpreadConstraints"), options);
    windows::host_process(errs, spec);
    user_namespace(errs, spec, options);
    dns::hostname_override(errs, spec);
    names(errs, spec);
    limits(errs, spec);
    scheduling::tolerations(errs, &spec.field("tolerations"));
    for alias in spec.field("hostAliases").elements() {
        net::legacy_ip(errs, &alias.field("ip"), &[]);
        for name in alias.field("hostnames").elements() {
            errs.each(&name, dns_subdomain(text(&name)));
        }
    }
    classes(errs, spec);
    let overhead = spec.field("overhead");
    for (name, amount) in overhead.map_entries() {
        // It is checked as the limits of a container are, below a path of its own.
        let at = Cursor::new(overhead.path.child("limits").key(name), amount.value);
        amounts::container_resource_name(errs, &at, name);
        amounts::amount_of(errs, &at, name);
    }
    windows::operating_system(errs, spec);
    group(errs, &spec.field("schedulingGroup"));
    containers::files_of_environment(errs, spec);
}

/// One of these; upstream tells what is absent from what is wrong.
pub(crate) fn one_of_or_required(errs: &mut FieldErrors, at: &Cursor<'_>, allowed: &[&str]) {
    if errs.present(at, "") {
        errs.one_of(at, allowed);
    }
}

pub(crate) fn restart_policy(errs: &mut FieldErrors, at: &Cursor<'_>) {
    one_of_or_required(errs, at, &["Always", "OnFailure", "Never"]);
}

/// On the host's network a container has no ports of its own. (A template may leave them out: its pods will have them.)
fn host_ports(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    if spec.value["hostNetwork"].as_bool() != Some(true) {
        return;
    }
    for port in spec.field("containers").elements().flat_map(|c| c.field("ports").elements()) {
        let (host, own) = (int(&port.value["hostPort"]), int(&port.value["containerPort"]));
        if (options.is_pod || host != 0) && host != own {
            errs.invalid_int(&port.field("hostPort"), "must match `containerPort` when `hostNetwork` is true");
        }
    }
}

fn user_namespace(errs: &mut FieldErrors, spec: &Cursor<'_>, options: Options) {
    const WHY: &str = "when `hostUsers` is false";
    if spec.value["hostUsers"].as_bool() != Some(false) {
        return;
    }
    // Upstream spells two of these paths with a capital.
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.value[field].as_bool() == Some(true) {
            errs.forbidden(&spec.path.child(shown), WHY);
        }
    }
    if !options.devices_in_user_namespace {
        for container in containers_of(spec).filter(|c| !c.value["volumeDevices"].items().is_empty()) {
            errs.forbidden(&container.path.child("volumeDevices"), WHY);
        }
    }
}

/// Fields that name something.
fn names(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    for field in ["serviceAccountName", "nodeName"] {
        let at = spec.field(field);
        if !text(&at).is_empty() {
            errs.each(&at, dns_subdomain(text(&at)));
        }
    }
}

fn limits(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let deadline = spec.field("activeDeadlineSeconds");
    if !deadline.is_absent() && !(1..=i64::from(i32::MAX)).contains(&int(deadline.value)) {
        errs.invalid(&deadline, "must be between 1 and 2147483647, inclusive");
    }
    for field in ["hostname", "subdomain"] {
        let at = spec.field(field);
        if !text(&at).is_empty() {
            errs.each(&at, dns_label(text(&at)));
        }
    }
}

fn classes(errs: &mut FieldErrors, spec: &Cursor<'_>) {
    let priority = spec.field("priorityClassName");
    if !text(&priority).is_empty() {
        errs.each(&priority, dns_subdomain(text(&priority)));
    }
    let runtime = spec.field("runtimeClassName");
    if !runtime.is_absent() {
        errs.each(&runtime, dns_subdomain(text(&runtime)));
    }
    let preemption = spec.field("preemptionPolicy");
    if !preemption.is_absent() {
        one_of_or_required(errs, &preemption, &["PreemptLowerPriority", "Never"]);
    }
}

/// The group that the pod is scheduled with.
fn group(errs: &mut FieldErrors, group: &Cursor<'_>) {
    if group.is_absent() {
        return;
    }
    let name = group.field("podGroupName");
    if errs.present(&name, "") {
        errs.each(&name, dns_subdomain(text(&name)));
    }
}
