//! Rules for the status of a pod, which its kubelet writes.

use std::net::IpAddr;

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{change, handlers};
use crate::validation::labels::label_name;
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::net::{legacy_ip, parse_ip_sloppy};
use crate::validation::numbers::identity;
use crate::validation::{Checks, int, text};

const LISTS: [(&str, &str); 3] = [
    ("containerStatuses", "containers"),
    ("initContainerStatuses", "initContainers"),
    ("ephemeralContainerStatuses", "ephemeralContainers"),
];

pub(super) fn validate(pod: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    change::annotations_stay(&mut errs, pod, old);
    let (status, before) = (Cursor::root(pod).field("status"), &old["status"]);
    conditions(&mut errs, &status.field("conditions"));
    nominated(&mut errs, &status.field("nominatedNodeName"), old);
    let observed = status.field("observedGeneration");
    if int(observed.value) < 0 {
        errs.invalid(&observed, "must be a non-negative integer");
    }
    let class = status.field("qosClass");
    if text(&class) != before.str_at(&["qosClass"]) {
        errs.invalid_text(&class, "field is immutable");
    }
    for (statuses, containers) in LISTS {
        transitions(&mut errs, &status.field(statuses), &before[statuses], &old["spec"], containers);
    }
    claims(&mut errs, &status.field("resourceClaimStatuses"), &pod["spec"]);
    extended_claims(&mut errs, &status.field("extendedResourceClaimStatus"), &pod["spec"]);
    addresses(&mut errs, &status.field("podIPs"), &before["podIPs"]);
    let hosts = status.field("hostIPs");
    if let Some(first) = hosts.elements().next()
        && first.value.str_at(&["ip"]) != status.value.str_at(&["hostIP"])
    {
        errs.invalid_text(&first.field("ip"), "must be equal to `hostIP`");
    }
    addresses(&mut errs, &hosts, &before["hostIPs"]);
    for (statuses, _) in LISTS {
        users(&mut errs, &status.field(statuses), pod.at(&["spec", "os"]));
    }
    for (statuses, containers) in LISTS {
        allocated(&mut errs, &status.field(statuses), &pod["spec"], containers);
    }
    errs
}

fn conditions(errs: &mut FieldErrors, list: &Cursor<'_>) {
    for condition in list.elements() {
        let observed = condition.field("observedGeneration");
        if int(observed.value) < 0 {
            errs.invalid(&observed, "must be a non-negative integer");
        }
        let kind = &condition.value["type"];
        if !matches!(kind.as_str(), Some("PodScheduled" | "Ready" | "Initialized")) {
            label_name(errs, &Cursor::new(condition.path.child("Type"), kind));
        }
    }
}

fn nominated(errs: &mut FieldErrors, name: &Cursor<'_>, old: &Value) {
    if text(name).is_empty() || text(name) == old.str_at(&["status", "nominatedNodeName"]) {
        return;
    }
    errs.each(name, dns_subdomain(text(name)));
    if !old.str_at(&["spec", "nodeName"]).is_empty() {
        errs.forbidden(&name.path, "may not be set on pods that are already bound to a node");
    }
}

/// What has ended stays ended, unless it is one of those that are started again.
fn transitions(errs: &mut FieldErrors, list: &Cursor<'_>, old: &Value, spec: &Value, containers: &str) {
    let is_ephemeral = containers == "ephemeralContainers";
    let restarts_all = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| spec[*l].items())
        .any(|c| c["restartPolicyRules"].items().iter().any(|r| r.str_at(&["action"]) == "RestartAllContainers"));
    if restarts_all && !is_ephemeral {
        return;
    }
    for (i, before) in old.items().iter().enumerate() {
        let ended = before.at(&["state", "terminated"]);
        let name = before.str_at(&["name"]);
        let now = list.value.items().iter().find(|s| s.str_at(&["name"]) == name);
        if ended.is_null() || now.is_none_or(|now| !now.at(&["state", "terminated"]).is_null()) {
            continue;
        }
        let container = spec[containers].items().iter().find(|c| c.str_at(&["name"]) == name);
        let policy = spec.str_at(&["restartPolicy"]);
        let may = !is_ephemeral && container.is_some_and(|c| handlers::may_restart(c, policy, int(&ended["exitCode"])));
        if !may {
            errs.forbidden(&list.path.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

fn claims(errs: &mut FieldErrors, list: &Cursor<'_>, spec: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for status in list.elements() {
        let name = status.field("name");
        if !spec["resourceClaims"].items().iter().any(|c| c.str_at(&["name"]) == text(&name)) {
            errs.invalid_text(&name, "must match the name of an entry in `spec.resourceClaims`");
        }
        if seen.contains(&text(&name)) {
            errs.duplicate(&name.path, text(&name));
        }
        seen.push(text(&name));
        let claim = &status.value["resourceClaimName"];
        if let Some(claim) = claim.as_str() {
            for message in dns_subdomain(claim) {
                errs.invalid_value(&name.path, claim, message);
            }
        }
    }
}

fn extended_claims(errs: &mut FieldErrors, status: &Cursor<'_>, spec: &Value) {
    if status.is_absent() {
        return;
    }
    let mappings = status.field("requestMappings");
    errs.present(&mappings, "at least one request mapping is required");
    let mut seen: Vec<[&str; 3]> = Vec::new();
    for mapping in mappings.elements() {
        let [container, resource, request] = ["containerName", "resourceName", "requestName"].map(|f| mapping.field(f));
        let found = ["containers", "initContainers"]
            .iter()
            .flat_map(|l| spec[*l].items())
            .find(|c| c.str_at(&["name"]) == text(&container));
        match found {
            None => errs.invalid_text(
                &container,
                "must match the name of an entry in spec.initContainers.name or spec.containers.name",
            ),
            Some(c) if c.at(&["resources", "requests", text(&resource)]).is_null() => errs.invalid_text(
                &resource,
                "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                 spec.containers.resources.requests",
            ),
            Some(_) => {}
        }
        errs.each(&Cursor::new(status.path.child("requestName"), request.value), dns_label(text(&request)));
        let key = [text(&container), text(&resource), text(&request)];
        if seen.contains(&key) {
            for at in [&container, &resource, &request] {
                errs.duplicate(&at.path, text(at));
            }
        }
        seen.push(key);
    }
    let claim = status.field("resourceClaimName");
    if errs.present(&claim, "") {
        errs.each(&claim, dns_subdomain(text(&claim)));
    }
}

/// At most one address of each family.
fn addresses(errs: &mut FieldErrors, list: &Cursor<'_>, old: &Value) {
    let known: Vec<&str> = old.items().iter().map(|ip| ip.str_at(&["ip"])).collect();
    for ip in list.elements() {
        legacy_ip(errs, &Cursor::new(ip.path.clone(), &ip.value["ip"]), &known);
    }
    let parsed: Vec<Option<IpAddr>> = list.value.items().iter().map(|ip| parse_ip_sloppy(ip.str_at(&["ip"]))).collect();
    if parsed.len() < 2 {
        return;
    }
    if let Some(bad) = parsed.iter().position(Option::is_none) {
        let ips: Vec<&str> = list.value.items().iter().map(|ip| ip.str_at(&["ip"])).collect();
        errs.internal(&list.path, format!("failed to check for dual stack with error:invalid IP[{bad}]: {}", ips[bad]));
    }
    let families = |is: fn(&IpAddr) -> bool| parsed.iter().flatten().filter(|ip| is(ip)).count();
    if parsed.len() > 2 || families(IpAddr::is_ipv4) != 1 || families(IpAddr::is_ipv6) != 1 {
        errs.invalid_struct(list, "may specify no more than one IP for each IP family");
    }
}

fn users(errs: &mut FieldErrors, list: &Cursor<'_>, os: &Value) {
    for status in list.elements() {
        let user = status.fields(&["user", "linux"]);
        if user.is_absent() {
            continue;
        }
        match os.str_at(&["name"]) {
            "windows" => errs.forbidden(&user.path, "cannot be set for a windows pod"),
            _ => {
                for at in [user.field("uid"), user.field("gid")]
                    .into_iter()
                    .chain(user.field("supplementalGroups").elements())
                {
                    identity(errs, &at);
                }
            }
        }
    }
}

/// How the devices of a container are.
fn allocated(errs: &mut FieldErrors, list: &Cursor<'_>, spec: &Value, containers: &str) {
    for status in list.elements() {
        let resources = status.field("allocatedResourcesStatus");
        if containers == "ephemeralContainers" {
            if !resources.is_empty_value() {
                errs.forbidden(&resources.path, "must not be specified in container status");
            }
            continue;
        }
        let container = spec[containers].items().iter().find(|c| c.str_at(&["name"]) == status.value.str_at(&["name"]));
        for resource in resources.elements() {
            let name = resource.field("name");
            if let Some(why) = container.and_then(|c| unknown_resource(c, text(&name))) {
                errs.invalid_text(&name, why);
            }
            let mut seen: Vec<&str> = Vec::new();
            for device in resource.field("resources").elements() {
                errs.one_of(&device.field("health"), &["Healthy", "Unhealthy", "Unknown"]);
                let id = device.field("resourceID");
                if seen.contains(&text(&id)) {
                    errs.duplicate(&id.path, text(&id));
                } else {
                    seen.push(text(&id));
                }
            }
        }
    }
}

fn unknown_resource(container: &Value, name: &str) -> Option<&'static str> {
    if !name.starts_with("claim:") {
        let known = !container.at(&["resources", "requests", name]).is_null();
        return (!known).then_some("must match one of the container's resource requests");
    }
    let known = container.at(&["resources", "claims"]).items().iter().any(|claim| {
        let (claim, request) = (claim.str_at(&["name"]), claim.str_at(&["request"]));
        if request.is_empty() { name == format!("claim:{claim}") } else { name == format!("claim:{claim}/{request}") }
    });
    (!known).then_some(
        "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or \
         'claim:<claimName>' if request is empty",
    )
}
