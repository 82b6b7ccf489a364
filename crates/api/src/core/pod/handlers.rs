//! Probes, hooks and rules for restarts: what the kubelet does while a container runs.

use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors};

use super::Context;
use crate::validation::net::{port, port_or_name};
use crate::validation::{Checks, int, text};

/// A probe, if there is one.
pub(super) fn probe(errs: &mut FieldErrors, probe: &Cursor<'_>, kind: &str, context: &Context<'_>) {
    if probe.is_absent() {
        return;
    }
    handler(errs, probe, &["exec", "httpGet", "tcpSocket", "grpc"], context);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errs.non_negative(&probe.field(field));
    }
    let grace = probe.field("terminationGracePeriodSeconds");
    if !grace.is_absent() && int(grace.value) <= 0 {
        errs.invalid(&grace, "must be greater than 0");
    }
    let success = probe.field("successThreshold");
    match kind {
        "readinessProbe" if !grace.is_absent() => errs.invalid(&grace, "must not be set for readinessProbes"),
        "readinessProbe" => {}
        _ if int(success.value) != 1 => errs.invalid_int(&success, "must be 1"),
        _ => {}
    }
}

/// Hooks at the start and before the end, and the signal that ends the container.
pub(super) fn lifecycle(errs: &mut FieldErrors, lifecycle: &Cursor<'_>, context: &Context<'_>) {
    for hook in ["postStart", "preStop"] {
        let hook = lifecycle.field(hook);
        if !hook.is_absent() {
            handler(errs, &hook, &["exec", "httpGet", "tcpSocket", "sleep"], context);
        }
    }
    let signal = lifecycle.field("stopSignal");
    if signal.is_absent() {
        return;
    }
    match context.os {
        None => errs.forbidden(&signal.path, "may not be set for containers with empty `spec.os.name`"),
        Some("windows") => {
            errs.one_of(&signal, &["SIGKILL", "SIGTERM"]);
        }
        Some("linux") => {
            errs.one_of(&signal, SIGNALS);
        }
        Some(_) => {}
    }
}

/// One of several kinds of handlers.
fn handler(errs: &mut FieldErrors, at: &Cursor<'_>, kinds: &[&str], context: &Context<'_>) {
    let mut given = kinds.iter().map(|kind| (*kind, at.field(kind))).filter(|(_, handler)| !handler.is_absent());
    let Some((kind, first)) = given.next() else {
        errs.required(&at.path, "must specify a handler type");
        return;
    };
    match kind {
        "exec" => {
            errs.present(&first.field("command"), "");
        }
        "httpGet" => http_get(errs, &first),
        "tcpSocket" => port_or_name(errs, &first.field("port")),
        "grpc" => port(errs, &first.field("port")),
        _ => sleep(errs, &first, context.grace),
    }
    for (_, other) in given {
        errs.forbidden(&other.path, "may not specify more than 1 handler type");
    }
}

fn sleep(errs: &mut FieldErrors, at: &Cursor<'_>, grace: Option<i64>) {
    let seconds = int(&at.value["seconds"]);
    if let Some(grace) = grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errs.invalid_value(&at.path, seconds, why);
    }
}

fn http_get(errs: &mut FieldErrors, get: &Cursor<'_>) {
    errs.present(&get.field("path"), "");
    port_or_name(errs, &get.field("port"));
    errs.one_of(&get.field("scheme"), &["HTTP", "HTTPS"]);
    for header in get.value["httpHeaders"].items() {
        let name = header.str_at(&["name"]);
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            errs.invalid_value(
                &get.path.child("httpHeaders"),
                name,
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
                 validation is '[-A-Za-z0-9]+')",
            );
        }
    }
}

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

/// When a container is started again, if it says so itself.
pub(super) fn restart_rules(errs: &mut FieldErrors, container: &Cursor<'_>) {
    let policy = container.field("restartPolicy");
    let rules = container.field("restartPolicyRules");
    if !policy.is_absent() {
        errs.one_of(&policy, &["Always", "Never", "OnFailure"]);
    } else if rules.value.items().is_empty() {
        return;
    } else {
        errs.required(&policy.path, "must specify restartPolicy when restart rules are used");
    }
    too_long(errs, &rules, MAX_RULES);
    for rule in rules.elements() {
        let action = rule.field("action");
        if !["Restart", "RestartAllContainers"].contains(&text(&action)) {
            // The longer list is what is allowed, the shorter what upstream shows.
            errs.one_of(&action, &["Restart"]);
        }
        let codes = rule.field("exitCodes");
        if codes.is_absent() {
            errs.required(&codes.path, "must be specified");
            continue;
        }
        errs.one_of(&codes.field("operator"), &["In", "NotIn"]);
        too_long(errs, &codes.field("values"), MAX_EXIT_CODES);
    }
}

/// Upstream speaks of bytes where it counts items.
fn too_long(errs: &mut FieldErrors, at: &Cursor<'_>, max: usize) {
    if at.value.items().len() > max {
        let detail = format!("may not be more than {max} bytes");
        errs.0.push(FieldError { kind: ErrorKind::TooLong, path: at.path.clone(), shown: None, detail });
    }
}

/// Would a container that ended with this code be started again?
pub(super) fn may_restart(container: &Value, pod_policy: &str, exit_code: i64) -> bool {
    let by_policy = |policy: &str| match policy {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    };
    let own = container.str_at(&["restartPolicy"]);
    if own.is_empty() {
        return by_policy(pod_policy);
    }
    let by_rule = container["restartPolicyRules"].items().iter().any(|rule| {
        let listed = rule.at(&["exitCodes", "values"]).items().iter().any(|v| v.as_i64() == Some(exit_code));
        match rule.str_at(&["exitCodes", "operator"]) {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    });
    by_rule || by_policy(own)
}

const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];
