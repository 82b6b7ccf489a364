//! What containers and pods ask for: amounts, and claims of devices.

use apimachinery::Value;
use apimachinery::field::{Cursor, ErrorKind, FieldError, FieldErrors, shown};
use apimachinery::quantity::Quantity;

use super::{Context, containers_of};
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::resources::{
    amount_of, container_resource_name, is_huge_page, may_overcommit, quantity, resource_name,
};
use crate::validation::{Checks, text};

/// What a pod as a whole may ask for.
fn pod_resource_name(errs: &mut FieldErrors, at: &Cursor<'_>, name: &str) {
    let before = errs.0.len();
    resource_name(errs, at, name);
    if errs.0.len() == before && !matches!(name, "cpu" | "memory") && !is_huge_page(name) {
        errs.not_supported(&Cursor::new(at.path.clone(), &name.into()), &["cpu", "hugepages-", "memory"]);
    }
}

type NameRule = fn(&mut FieldErrors, &Cursor<'_>, &str);

pub(super) fn of_container(errs: &mut FieldErrors, resources: &Cursor<'_>, context: &Context<'_>) {
    requirements(errs, resources, container_resource_name, context);
}

fn requirements(errs: &mut FieldErrors, resources: &Cursor<'_>, name_rule: NameRule, context: &Context<'_>) {
    let (limits, requests) = (resources.field("limits"), resources.field("requests"));
    let (mut huge, mut computes) = (false, false);
    for list in [&limits, &requests] {
        for (name, at) in list.map_entries() {
            name_rule(errs, &at, name);
            amount_of(errs, &at, name);
            if list.path == requests.path {
                within_limit(errs, &requests, &limits, name, &at);
            }
            huge |= is_huge_page(name);
            computes |= matches!(name, "cpu" | "memory");
            if !context.options.indivisible_huge_pages && !is_divisible(name, at.value) {
                errs.invalid(&at, format!("{} is not positive integer multiple of {name}", text(&at)));
            }
        }
    }
    if huge && !computes {
        errs.forbidden(&resources.path, "HugePages require cpu or memory");
    }
    claim_names(errs, &resources.field("claims"), &context.claims);
}

fn within_limit(errs: &mut FieldErrors, requests: &Cursor<'_>, limits: &Cursor<'_>, name: &str, at: &Cursor<'_>) {
    let limit = Cursor::new(limits.path.clone(), &limits.value[name]);
    if limit.is_absent() {
        if !may_overcommit(name) {
            errs.required(&limits.path, "Limit must be set for non overcommitable resources");
        }
        return;
    }
    let order = quantity(at).cmp(&quantity(&limit));
    let why = if order.is_ne() && !may_overcommit(name) {
        "equal to"
    } else if order.is_gt() {
        "less than or equal to"
    } else {
        return;
    };
    errs.invalid_value(&requests.path, text(at), format!("must be {why} {name} limit of {}", text(&limit)));
}

/// Is it a number of whole huge pages of that size?
fn is_divisible(name: &str, amount: &Value) -> bool {
    let Some(page) = name.strip_prefix("hugepages-") else { return true };
    let Ok(page) = page.parse::<Quantity>() else { return false };
    let amount = amount.as_str().and_then(|a| a.parse::<Quantity>().ok()).unwrap_or_default();
    !page.is_zero() && page.is_integer() && amount.is_integer() && amount.value() % page.value() == 0
}

pub(super) fn has_indivisible_huge_pages(spec: &Value) -> bool {
    let spec = Cursor::root(spec);
    containers_of(&spec).any(|c| {
        ["limits", "requests"].iter().any(|list| {
            c.value.at(&["resources", list]).entries().iter().any(|(name, amount)| !is_divisible(name, amount))
        })
    })
}

/// Claims of the pod that a container uses, whole or by request.
fn claim_names(errs: &mut FieldErrors, list: &Cursor<'_>, known: &[&str]) {
    let mut names: Vec<String> = Vec::new();
    for claim in list.elements() {
        let (name, request) = (claim.value.str_at(&["name"]), claim.field("request"));
        if name.is_empty() {
            errs.required(&claim.path, "");
            continue;
        }
        if names.iter().any(|n| n == name) {
            errs.duplicate(&claim.path, name);
        } else {
            let mut key = name.to_owned();
            if !text(&request).is_empty() {
                errs.each(&request, dns_label(text(&request)));
                key = format!("{name}/{}", text(&request));
            }
            if names.contains(&key) {
                errs.duplicate(&claim.path, key.as_str());
            } else if text(&request).is_empty() {
                let parts = names.iter().filter(|n| n.split_once('/').is_some_and(|(n, _)| n == name)).count();
                (0..parts).for_each(|_| errs.duplicate(&claim.path, name));
            }
            names.push(key);
        }
        if !known.contains(&name) {
            let mut sorted = known.to_vec();
            sorted.sort_unstable();
            let rest = if known.is_empty() { " which is empty".to_owned() } else { format!(": {}", sorted.join(", ")) };
            errs.0.push(FieldError {
                kind: ErrorKind::NotFound,
                path: claim.path.clone(),
                shown: Some(shown(&name.into())),
                detail: format!("must be one of the names in pod.spec.resourceClaims{rest}"),
            });
        }
    }
}

/// The pod's claims of devices.
pub(super) fn claims(errs: &mut FieldErrors, list: &Cursor<'_>, meta: Option<&Value>) {
    let is_static = meta.is_some_and(|m| !m.at(&["annotations", super::annotations::MIRROR]).is_null());
    let mut names: Vec<&str> = Vec::new();
    for claim in list.elements() {
        if is_static {
            errs.forbidden(&apimachinery::field::Path::root(), "static pods do not support resource claims");
            continue;
        }
        let name = claim.field("name");
        if text(&name).is_empty() {
            errs.required(&name.path, "");
        } else if names.contains(&text(&name)) {
            errs.duplicate(&name.path, text(&name));
        } else {
            errs.each(&name, dns_label(text(&name)));
            names.push(text(&name));
        }
        let sources = ["resourceClaimName", "resourceClaimTemplateName"].map(|f| claim.field(f));
        match sources.iter().filter(|s| !s.is_absent()).count() {
            0 => errs.invalid_struct(&claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            1 => {}
            _ => errs.invalid_struct(
                &claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
        }
        for source in sources.iter().filter(|s| !s.is_absent()) {
            errs.each(source, dns_subdomain(text(source)));
        }
    }
}

/// What happens to a container when its resources change.
pub(super) fn resize_policy(errs: &mut FieldErrors, list: &Cursor<'_>, pod_policy: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for policy in list.elements() {
        let resource = policy.value.str_at(&["resourceName"]);
        if seen.contains(&resource) {
            errs.duplicate(&policy.path, resource);
        }
        seen.push(resource);
        // Upstream names the list, not its element.
        let of = |field: &str| Cursor::new(list.path.clone(), &policy.value[field]);
        super::spec::one_of_or_required(errs, &of("resourceName"), &["cpu", "memory"]);
        super::spec::one_of_or_required(errs, &of("restartPolicy"), &["NotRequired", "RestartContainer"]);
        if pod_policy == "Never" && policy.value.str_at(&["restartPolicy"]) != "NotRequired" {
            errs.invalid_text(&of("restartPolicy"), "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

/// What the pod as a whole asks for, and that its containers fit into that.
pub(super) fn of_pod(errs: &mut FieldErrors, spec: &Cursor<'_>, context: &Context<'_>) {
    let resources = spec.field("resources");
    if resources.is_absent() {
        return;
    }
    if context.os == Some("windows") {
        errs.forbidden(&resources.path, "may not be set for a windows pod");
        return;
    }
    if !resources.value["claims"].is_null() {
        errs.forbidden(&resources.path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(errs, &resources, pod_resource_name, context);
    for (name, own) in resources.field("requests").map_entries() {
        let sum = aggregate(spec.value, "requests", name);
        if sum.cmp(&quantity(&own)).is_gt() {
            errs.invalid(&own, format!("must be greater than or equal to aggregate container requests of {sum}"));
        }
    }
    for (name, own) in resources.field("limits").map_entries().filter(|(name, _)| is_huge_page(name)) {
        let sum = aggregate(spec.value, "limits", name);
        if sum.cmp(&quantity(&own)).is_gt() {
            errs.invalid(&own, format!("must be greater than or equal to aggregate container limits of {sum}"));
        }
    }
    for (i, container) in spec.value["containers"].items().iter().enumerate() {
        for (name, limit) in container.at(&["resources", "limits"]).entries().iter() {
            let path = resources.path.child("containers").index(i).key(name).child("limits");
            let (limit, whole) = (Cursor::new(path, limit), resources.field("limits"));
            let whole = Cursor::new(whole.path.clone(), &whole.value[name.as_str()]);
            if !whole.is_absent() && quantity(&limit).cmp(&quantity(&whole)).is_gt() {
                errs.invalid(&limit, format!("must be less than or equal to pod limits of {}", text(&whole)));
            }
        }
    }
}

/// The most that the containers need of a resource at any time: init containers run one by one, sidecars go on.
pub(super) fn aggregate(spec: &Value, list: &str, name: &str) -> Quantity {
    let of = |container: &Value| {
        container.at(&["resources", list, name]).as_str().and_then(|q| q.parse::<Quantity>().ok()).unwrap_or_default()
    };
    let running = spec["containers"].items().iter().map(of).fold(Quantity::default(), Quantity::saturating_add);
    let (mut sidecars, mut most) = (Quantity::default(), Quantity::default());
    for container in spec["initContainers"].items() {
        let peak = if container.str_at(&["restartPolicy"]) == "Always" {
            sidecars = sidecars.saturating_add(of(container));
            sidecars
        } else {
            sidecars.saturating_add(of(container))
        };
        most = if peak.cmp(&most).is_gt() { peak } else { most };
    }
    let running = running.saturating_add(sidecars);
    if running.cmp(&most).is_lt() { most } else { running }
}
