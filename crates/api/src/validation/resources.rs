//! Names of resources (cpu, memory, …) and amounts of them.

use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::quantity::Quantity;

use super::names::qualified_name;
use super::text;

const CONTAINER: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// Counted in whole numbers, of quotas.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

const QUOTA_AMOUNTS: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

const HUGE: &str = "hugepages-";

/// An amount that the codec has let through; anything else counts as none.
pub(crate) fn quantity(at: &Cursor<'_>) -> Quantity {
    match at.value {
        apimachinery::Value::String(s) => s.parse().unwrap_or_default(),
        apimachinery::Value::Int(i) => Quantity::new(*i, apimachinery::quantity::Format::DecimalSi),
        _ => Quantity::default(),
    }
}

pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with(HUGE)
}

fn is_quota_huge_page(name: &str) -> bool {
    is_huge_page(name) || name.strip_prefix("requests.").is_some_and(is_huge_page)
}

pub(crate) fn is_standard_quota(name: &str) -> bool {
    COUNTED.contains(&name) || QUOTA_AMOUNTS.contains(&name) || is_quota_huge_page(name)
}

fn is_standard(name: &str) -> bool {
    name == "storage" || is_standard_quota(name)
}

pub(crate) fn is_standard_container(name: &str) -> bool {
    CONTAINER.contains(&name) || is_huge_page(name)
}

/// Of Kubernetes itself, rather than of a device plugin.
pub(crate) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Of a device plugin, with a name that a quota can speak of.
pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && qualified_name(&format!("requests.{name}")).is_empty()
}

pub(crate) fn is_integer(name: &str) -> bool {
    COUNTED.contains(&name) || is_extended(name)
}

/// More of it may be promised than there is.
pub(crate) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// A resource's name anywhere.
pub(crate) fn resource_name(errs: &mut FieldErrors, at: &Cursor<'_>, name: &str) {
    let wrong = qualified_name(name);
    let bad = !wrong.is_empty();
    for message in wrong {
        errs.invalid_value(&at.path, name, message);
    }
    if !bad && !name.contains('/') && !is_standard(name) {
        errs.invalid_value(&at.path, name, "must be a standard resource type or fully qualified");
    }
}

/// The name of a resource that a container may have.
pub(crate) fn container_resource_name(errs: &mut FieldErrors, at: &Cursor<'_>, name: &str) {
    resource_name(errs, at, name);
    if !name.contains('/') {
        if !is_standard_container(name) {
            errs.invalid_value(&at.path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errs.invalid_value(&at.path, name, "doesn't follow extended resource name standard");
    }
}

/// The name of a resource that a quota may limit.
pub(crate) fn quota_resource_name(errs: &mut FieldErrors, at: &Cursor<'_>, name: &str) {
    resource_name(errs, at, name);
    if !name.contains('/') && !is_standard_quota(name) {
        errs.invalid_value(&at.path, name, "must be a standard resource for quota");
    }
}

/// An amount of that resource: not negative, and whole where only whole ones exist.
pub(crate) fn amount_of(errs: &mut FieldErrors, at: &Cursor<'_>, name: &str) {
    non_negative(errs, at);
    if is_integer(name) && quantity(at).milli_value() % 1000 != 0 {
        errs.invalid(at, "must be an integer");
    }
}

pub(crate) fn non_negative(errs: &mut FieldErrors, at: &Cursor<'_>) {
    if quantity(at).is_negative() {
        errs.invalid(at, "must be greater than or equal to 0");
    }
}

pub(crate) fn positive(errs: &mut FieldErrors, at: &Cursor<'_>) {
    let amount = quantity(at);
    if amount.is_negative() || amount.is_zero() {
        let shown = if at.is_absent() { "0" } else { text(at) };
        errs.invalid_value(&at.path, shown, "must be greater than zero");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_resources() {
        assert!(is_extended("example.com/gpu") && !is_extended("kubernetes.io/x") && !is_extended("cpu"));
        assert!(is_standard_quota("requests.hugepages-2Mi") && !is_standard_quota("storage"));
        assert!(may_overcommit("cpu") && !may_overcommit("hugepages-2Mi"));
    }
}
