//! What pods ask for and what the node can give them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::cgroups::milli;
use crate::pod::plan;

/// By resource name, in thousandths.
pub(crate) type Amounts = BTreeMap<String, i64>;

pub(crate) fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    list.into_iter().flatten().filter_map(|(name, q)| Some((name.clone(), milli(q)?))).collect()
}

/// A resource that no part of Kubernetes itself knows: a device, or something that an administrator counts.
pub(crate) fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, name)| {
        let is_whole = !domain.is_empty() && !name.is_empty();
        is_whole && !domain.ends_with("kubernetes.io") && !domain.starts_with("requests.")
    })
}

/// What a list of resources asks for; a limit stands for a request that is not given.
fn asked(resources: Option<&ResourceRequirements>) -> Amounts {
    let mut asked = amounts(resources.and_then(|r| r.limits.as_ref()));
    asked.extend(amounts(resources.and_then(|r| r.requests.as_ref())));
    asked
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += amount;
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let now = to.entry(name.clone()).or_default();
        *now = (*now).max(*amount);
    }
}

/// All that a pod needs at the most demanding moment of its life: its containers and sidecars together, or one init
/// container with the sidecars before it; pod-level requests stand above both; overhead comes on top.
pub(crate) fn requests(pod: &Pod) -> Amounts {
    sum(pod, |c| asked(c.resources.as_ref()), |r| asked(Some(r)))
}

/// The limits of a pod, for those resources that all of its containers limit.
pub(crate) fn limits(pod: &Pod) -> Amounts {
    let of = |c: &Container| amounts(c.resources.as_ref().and_then(|r| r.limits.as_ref()));
    let mut limits = sum(pod, of, |r| amounts(r.limits.as_ref()));
    let own = pod.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.limits.clone()).unwrap_or_default();
    let sidecars = || plan::init_containers(pod).iter().filter(|c| plan::is_sidecar(c));
    limits.retain(|name, _| {
        own.contains_key(name)
            || plan::containers(pod).iter().chain(sidecars()).all(|c| of(c).get(name).is_some_and(|v| *v > 0))
    });
    limits
}

fn sum(pod: &Pod, of: impl Fn(&Container) -> Amounts, own: impl Fn(&ResourceRequirements) -> Amounts) -> Amounts {
    let mut total = Amounts::new();
    for container in plan::containers(pod) {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for init in plan::init_containers(pod) {
        let mut now = of(init);
        if plan::is_sidecar(init) {
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        raise(&mut peak, &now);
    }
    add(&mut total, &sidecars);
    raise(&mut total, &peak);
    let spec = pod.spec.as_ref();
    if let Some(resources) = spec.and_then(|s| s.resources.as_ref()) {
        total.extend(own(resources));
    }
    add(&mut total, &amounts(spec.and_then(|s| s.overhead.as_ref())));
    total
}

/// A threshold of the node: an absolute amount or a share of the capacity.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Threshold {
    Amount(i64),
    Share(f64),
}

impl Threshold {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(percent) => {
                percent.parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p)).map(|p| Threshold::Share(p / 100.0))
            }
            None => crate::cgroups::whole(&Quantity(text.to_owned())).map(Threshold::Amount),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a share of a capacity needs no last digit"
    )]
    pub(crate) fn of(&self, capacity: i64) -> i64 {
        match self {
            Threshold::Amount(amount) => *amount,
            Threshold::Share(share) => (capacity as f64 * share) as i64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value, cpu: i64) {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
        assert_eq!(requests(&pod).get("cpu").copied().unwrap_or_default(), cpu);
    }

    fn c(name: &str, cpu: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_pod_needs_what_it_needs_at_its_most_demanding_moment() {
        let mut side = c("s", "100m");
        side["restartPolicy"] = "Always".into();
        check(serde_json::json!({"containers": [c("a", "1"), c("b", "500m")]}), 1500);
        check(serde_json::json!({"initContainers": [c("i", "2")], "containers": [c("a", "1")]}), 2000);
        check(serde_json::json!({"initContainers": [side, c("i", "2")], "containers": [c("a", "1")]}), 2100);
        let overhead = serde_json::json!({"containers": [c("a", "1")], "overhead": {"cpu": "250m"},
            "resources": {"requests": {"cpu": "3"}}});
        check(overhead, 3250);
        check(serde_json::json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]}), 1000);
    }

    #[test]
    fn thresholds_are_amounts_or_shares() {
        assert_eq!(Threshold::parse("100Mi").map(|t| t.of(0)), Some(100 << 20));
        assert_eq!(Threshold::parse("10%").map(|t| t.of(2000)), Some(200));
        assert_eq!(Threshold::parse("110%"), None);
    }
}
