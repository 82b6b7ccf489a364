//! What a pod asks of its node: requests and limits of all its containers together.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource,
};

/// Amounts by the name of the resource.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

pub(crate) fn quantity(text: &resource::Quantity) -> Quantity {
    // The server took it, so it can be read.
    text.0.parse().unwrap_or_default()
}

pub(crate) fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let known = sum.entry(name.clone()).or_insert_with(|| Quantity::new(0, amount.format));
        *known = known.saturating_add(*amount);
    }
}

fn max(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let known = most.entry(name.clone()).or_insert(*amount);
        *known = (*known).max(*amount);
    }
}

/// Which of the two lists of a container is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Requests,
    Limits,
}

pub(crate) fn amounts_of(resources: Option<&ResourceRequirements>, side: Side) -> Amounts {
    let list = resources.and_then(|resources| match side {
        Side::Requests => resources.requests.as_ref(),
        Side::Limits => resources.limits.as_ref(),
    });
    list.into_iter().flatten().map(|(name, amount)| (name.clone(), quantity(amount))).collect()
}

/// Init containers run before the others, except those that are restarted always, which run beside all that come later.
/// What the pod as a whole says replaces what its containers add up to.
pub(crate) fn pod_amounts(pod: &Pod, side: Side) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let of = |container: &Container| container_amounts(pod, container, side);
    let mut sum = Amounts::new();
    for container in &spec.containers {
        add(&mut sum, &of(container));
    }
    let (mut beside, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        let mut now = beside.clone();
        add(&mut now, &own);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sum, &own);
            beside.clone_from(&now);
        }
        max(&mut peak, &now);
    }
    max(&mut sum, &peak);
    sum.extend(amounts_of(spec.resources.as_ref(), side));
    let overhead = spec.overhead.iter().flatten().map(|(name, amount)| (name.clone(), quantity(amount)));
    let mut overhead: Amounts = overhead.collect();
    if side == Side::Limits {
        // What is unlimited stays so.
        overhead.retain(|name, _| sum.contains_key(name));
    }
    add(&mut sum, &overhead);
    sum
}

/// While a container is being resized, the larger of what it has and what it is to have.
fn container_amounts(pod: &Pod, container: &Container, side: Side) -> Amounts {
    let mut amounts = amounts_of(container.resources.as_ref(), side);
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let status = statuses.iter().find(|status| status.name == container.name);
    if let Some(actual) = status.and_then(|status| status.resources.as_ref()) {
        max(&mut amounts, &amounts_of(Some(actual), side));
    }
    amounts
}

/// Whether neither the pod nor any of its containers asks for processors or memory.
pub(crate) fn is_best_effort(spec: &PodSpec) -> bool {
    let asks = |resources: Option<&ResourceRequirements>| {
        [Side::Requests, Side::Limits].into_iter().any(|side| {
            let amounts = amounts_of(resources, side);
            ["cpu", "memory"].iter().any(|name| amounts.get(*name).is_some_and(|amount| !amount.is_zero()))
        })
    };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    !asks(spec.resources.as_ref()) && !containers.any(|container| asks(container.resources.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, cpu: &str, restart: Option<&str>) -> Container {
        let requests = [("cpu".to_owned(), resource::Quantity(cpu.to_owned()))].into();
        Container {
            name: name.into(),
            restart_policy: restart.map(str::to_owned),
            resources: Some(ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() }),
            ..Container::default()
        }
    }

    #[track_caller]
    fn check(init: &[(&str, Option<&str>)], main: &[&str], want: &str) {
        let init = init.iter().map(|(cpu, restart)| container("i", cpu, *restart)).collect();
        let containers = main.iter().map(|cpu| container("c", cpu, None)).collect();
        let spec = PodSpec { init_containers: Some(init), containers, ..PodSpec::default() };
        let pod = Pod { spec: Some(spec), ..Pod::default() };
        assert_eq!(pod_amounts(&pod, Side::Requests)["cpu"].to_string(), want);
    }

    #[test]
    fn sidecars_run_beside_and_init_containers_before() {
        check(&[], &["100m", "200m"], "300m");
        check(&[("500m", None)], &["100m", "200m"], "500m");
        check(&[("1", Some("Always"))], &["100m"], "1100m");
        check(&[("1", Some("Always")), ("2", None)], &["100m"], "3");
        check(&[("2", None), ("1", Some("Always"))], &["100m"], "2");
    }
}
