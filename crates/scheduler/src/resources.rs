//! What pods ask for and nodes have: CPU, memory, ephemeral storage and any number of named resources.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::Amount;

/// A resource other than the three that every node has; see [`ScalarNames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScalarId(u16);

impl ScalarId {
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Names of extended resources, huge pages and the like, each with a small number, so that columns can be kept by it.
#[derive(Debug, Default)]
pub struct ScalarNames {
    ids: HashMap<Arc<str>, ScalarId>,
    names: Vec<Arc<str>>,
}

impl ScalarNames {
    /// The number of `name`, a new one if it was never seen. Beyond 65,535 names all share the last number.
    pub fn intern(&mut self, name: &str) -> ScalarId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = ScalarId(u16::try_from(self.names.len()).unwrap_or(u16::MAX));
        let name: Arc<str> = name.into();
        self.names.push(name.clone());
        self.ids.insert(name, id);
        id
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<ScalarId> {
        self.ids.get(name).copied()
    }

    #[must_use]
    pub fn name(&self, id: ScalarId) -> &str {
        self.names.get(id.index()).map_or("", |name| name)
    }
}

/// Amounts of resources. CPU is in thousandths of a core, the rest in bytes or pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Sorted by id, each at most once.
    pub scalars: Box<[(ScalarId, i64)]>,
}

impl Resources {
    #[must_use]
    pub fn scalar(&self, id: ScalarId) -> i64 {
        self.scalars.iter().find(|(own, _)| *own == id).map_or(0, |(_, amount)| *amount)
    }
}

/// What containers without a request are taken to use when nodes are compared: 0.1 cores and 200 MiB.
const ASSUMED_CPU: Amount = Amount::milli(100);
const ASSUMED_MEMORY: Amount = Amount::whole(200 * 1024 * 1024);

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRequests {
    pub real: Resources,
    /// CPU (thousandths) and memory (bytes) with something assumed for each container that asks for none.
    pub non_zero: (i64, i64),
}

impl PodRequests {
    #[must_use]
    pub fn of(pod: &Pod, names: &mut ScalarNames) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let real = aggregate(pod, spec, false);
        let assumed = aggregate(pod, spec, true);
        let take = |amounts: &Amounts<'_>, name: &str| amounts.get(name).copied().unwrap_or_default();
        let non_zero = (take(&assumed, "cpu").milli_value(), take(&assumed, "memory").value());
        Self { real: resources_of(&real, names), non_zero }
    }
}

/// What a list of quantities says, by name.
type Amounts<'a> = BTreeMap<&'a str, Amount>;

/// A node's capacity. Its number of pods is not among it.
#[must_use]
pub fn allocatable_of(list: &BTreeMap<String, Quantity>, names: &mut ScalarNames) -> Resources {
    let amounts = list.iter().map(|(name, quantity)| (name.as_str(), Amount::of(quantity))).collect();
    resources_of(&amounts, names)
}

fn resources_of(amounts: &Amounts<'_>, names: &mut ScalarNames) -> Resources {
    let mut resources = Resources::default();
    let mut scalars = Vec::new();
    for (&name, &amount) in amounts {
        match name {
            "cpu" => resources.milli_cpu = amount.milli_value(),
            "memory" => resources.memory = amount.value(),
            "ephemeral-storage" => resources.ephemeral_storage = amount.value(),
            "pods" => {}
            name if is_scalar(name) => scalars.push((names.intern(name), amount.value())),
            _ => {}
        }
    }
    scalars.sort_unstable();
    resources.scalars = scalars.into();
    resources
}

/// Extended resources, huge pages, `kubernetes.io/` resources and attachable volumes are counted as pieces.
#[must_use]
pub fn is_scalar(name: &str) -> bool {
    is_extended(name)
        || name.starts_with("hugepages-")
        || name.contains("kubernetes.io/")
        || name.starts_with("attachable-volumes-")
}

/// A name of somebody's own domain, which is not a quota's.
#[must_use]
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// Upstream's rule: application containers and sidecars together, or any init container with the sidecars before it,
/// whichever is more; pod-level requests replace that; overhead comes on top.
fn aggregate<'a>(pod: &'a Pod, spec: &'a PodSpec, assume: bool) -> Amounts<'a> {
    let status = pod.status.as_ref();
    let statuses = |list: Option<&'a Vec<ContainerStatus>>| list.map_or(&[][..], Vec::as_slice);
    let running = statuses(status.and_then(|s| s.container_statuses.as_ref()));
    let initialised = statuses(status.and_then(|s| s.init_container_statuses.as_ref()));
    let infeasible = resize_is_infeasible(pod);
    let request = |container: &'a Container, statuses: &'a [ContainerStatus]| {
        let mut amounts = container_request(container, statuses, infeasible);
        if assume {
            amounts.entry("cpu").or_insert(ASSUMED_CPU);
            amounts.entry("memory").or_insert(ASSUMED_MEMORY);
        }
        amounts
    };
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &request(container, running));
    }
    let mut sidecars = Amounts::new();
    let mut initial = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let mut own = request(container, initialised);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own.clone_from(&sidecars);
        } else {
            add(&mut own, &sidecars);
        }
        max(&mut initial, own);
    }
    max(&mut total, initial);
    let pod_level = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    for (name, quantity) in pod_level.into_iter().flatten() {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            total.insert(name, Amount::of(quantity));
        }
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        *total.entry(name).or_default() += Amount::of(quantity);
    }
    total
}

/// The larger of what is asked for and what the kubelet has given already: while a pod is resized both count.
fn container_request<'a>(container: &'a Container, statuses: &'a [ContainerStatus], infeasible: bool) -> Amounts<'a> {
    let list = |quantities: Option<&'a BTreeMap<String, Quantity>>| -> Amounts<'a> {
        quantities.into_iter().flatten().map(|(name, quantity)| (name.as_str(), Amount::of(quantity))).collect()
    };
    let asked = list(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let Some(status) = statuses.iter().find(|status| status.name == container.name) else { return asked };
    let actual = list(status.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let allocated = list(status.allocated_resources.as_ref());
    if actual.is_empty() && allocated.is_empty() {
        return asked;
    }
    // A resize that cannot be done is not counted: what the container has stays.
    let mut amounts = if infeasible { Amounts::new() } else { asked };
    max(&mut amounts, actual);
    max(&mut amounts, allocated);
    amounts
}

fn resize_is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible"))
}

fn add<'a>(to: &mut Amounts<'a>, from: &Amounts<'a>) {
    for (name, amount) in from {
        *to.entry(name).or_default() += *amount;
    }
}

fn max<'a>(to: &mut Amounts<'a>, from: Amounts<'a>) {
    for (name, amount) in from {
        let own = to.entry(name).or_insert(amount);
        *own = (*own).max(amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: serde_json::Value, want: &str) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let mut names = ScalarNames::default();
        let requests = PodRequests::of(&pod, &mut names);
        let r = &requests.real;
        let scalars: Vec<_> = r.scalars.iter().map(|(id, n)| format!(" {}={n}", names.name(*id))).collect();
        let (cpu, memory) = requests.non_zero;
        let shown = format!("cpu={} memory={}{} assumed={cpu}/{memory}", r.milli_cpu, r.memory, scalars.concat());
        assert_eq!(shown, want);
    }

    #[test]
    fn containers_are_added_up() {
        let container = json!({"name": "a", "resources": {"requests": {"cpu": "250m", "example.com/gpu": "2"}}});
        check(
            json!({"containers": [container, {"name": "b"}]}),
            "cpu=250 memory=0 example.com/gpu=2 assumed=350/419430400",
        );
    }

    #[test]
    fn the_largest_init_container_counts_with_the_sidecars_before_it() {
        check(
            json!({
                "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1", "memory": "1"}}},
                    {"name": "i", "resources": {"requests": {"cpu": "5", "memory": "1"}}}],
                "containers": [{"name": "a", "resources": {"requests": {"cpu": "2", "memory": "7"}}}],
                "overhead": {"cpu": "10m"}}),
            "cpu=6010 memory=8 assumed=6010/8",
        );
    }

    #[test]
    fn pod_level_requests_replace_the_containers() {
        check(
            json!({
                "resources": {"requests": {"cpu": "1"}},
                "containers": [{"name": "a", "resources": {"requests": {"cpu": "2", "memory": "7"}}}]}),
            "cpu=1000 memory=7 assumed=1000/7",
        );
    }

    #[test]
    fn while_a_pod_is_resized_the_larger_amount_counts() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                "allocatedResources": {"cpu": "3"}, "resources": {"requests": {"cpu": "2"}}}]}}))
        .unwrap();
        let cpu = |pod: &Pod| PodRequests::of(pod, &mut ScalarNames::default()).real.milli_cpu;
        assert_eq!(cpu(&pod), 3000);
        let spec = pod.spec.as_mut().unwrap();
        spec.containers[0].resources.as_mut().unwrap().requests = Some([("cpu".into(), Quantity("9".into()))].into());
        assert_eq!(cpu(&pod), 9000);
        let condition = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        pod.status.as_mut().unwrap().conditions = serde_json::from_value(condition).unwrap();
        assert_eq!(cpu(&pod), 3000);
    }
}
