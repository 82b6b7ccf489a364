//! The devices that drivers offer.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{AllocationResult, CounterSet, Device, ResourceSlice};

use crate::quantity::Amount;
use crate::selector::{Labels, NodeMatcher};

/// Driver, pool and name of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeviceId {
    pub(super) driver: String,
    pub(super) pool: String,
    pub(super) device: String,
}

/// The devices that an allocation takes. Access for administration takes none.
pub(super) fn taken_by(allocation: &AllocationResult) -> Vec<DeviceId> {
    let results = allocation.devices.as_ref().and_then(|devices| devices.results.as_deref()).unwrap_or_default();
    let taken = results.iter().filter(|result| result.admin_access != Some(true));
    let id = |result: &k8s_openapi::api::resource::v1::DeviceRequestAllocationResult| DeviceId {
        driver: result.driver.clone(),
        pool: result.pool.clone(),
        device: result.device.clone(),
    };
    taken.map(id).collect()
}

/// From which nodes a device can be reached.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    Node(String),
    Some(NodeSelector, NodeMatcher),
    All,
    None,
}

impl Reach {
    fn of(node: Option<&String>, selector: Option<&NodeSelector>, all: Option<bool>) -> Self {
        match (node, selector, all) {
            (Some(node), _, _) if !node.is_empty() => Self::Node(node.clone()),
            (_, Some(selector), _) => Self::Some(selector.clone(), NodeMatcher::of(selector)),
            (_, _, Some(true)) => Self::All,
            _ => Self::None,
        }
    }

    fn has(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Node(own) => own == name,
            Self::Some(_, matcher) => matcher.matches(name, labels),
            Self::All => true,
            Self::None => false,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Offered {
    pub(super) id: DeviceId,
    pub(super) device: Device,
    pub(super) reach: Reach,
}

/// All devices, from the newest complete generation of each pool.
#[derive(Default)]
pub(crate) struct Pools {
    devices: Vec<Arc<Offered>>,
    /// By node, as places in `devices`; those for several nodes stand in `shared`.
    by_node: BTreeMap<String, Vec<usize>>,
    shared: Vec<usize>,
    /// By driver and pool: what devices of the pool share.
    counters: BTreeMap<(String, String), Vec<CounterSet>>,
}

impl Pools {
    pub(super) fn of(slices: &[Arc<ResourceSlice>]) -> Self {
        let mut by_pool: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
        for slice in slices {
            by_pool.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default().push(slice);
        }
        let mut pools = Self::default();
        for ((driver, pool), mut slices) in by_pool {
            let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
            slices.retain(|slice| Some(slice.spec.pool.generation) == newest);
            // A pool that is being published is not to be used yet.
            let complete = slices.iter().all(|slice| {
                usize::try_from(slice.spec.pool.resource_slice_count).is_ok_and(|count| count == slices.len())
            });
            if !complete {
                continue;
            }
            slices.sort_by_key(|slice| slice.metadata.name.clone());
            for slice in slices {
                pools.add(driver, pool, slice);
            }
        }
        pools
    }

    fn add(&mut self, driver: &str, pool: &str, slice: &ResourceSlice) {
        let spec = &slice.spec;
        let of_slice = Reach::of(spec.node_name.as_ref(), spec.node_selector.as_ref(), spec.all_nodes);
        self.counters
            .entry((driver.to_owned(), pool.to_owned()))
            .or_default()
            .extend(spec.shared_counters.iter().flatten().cloned());
        for device in spec.devices.iter().flatten() {
            let reach = if spec.per_device_node_selection == Some(true) {
                Reach::of(device.node_name.as_ref(), device.node_selector.as_ref(), device.all_nodes)
            } else {
                of_slice.clone()
            };
            let place = self.devices.len();
            match &reach {
                Reach::Node(node) => self.by_node.entry(node.clone()).or_default().push(place),
                _ => self.shared.push(place),
            }
            let id = DeviceId { driver: driver.to_owned(), pool: pool.to_owned(), device: device.name.clone() };
            self.devices.push(Arc::new(Offered { id, device: device.clone(), reach }));
        }
    }

    /// The devices that the node can reach, in the order of pools.
    pub(super) fn on(&self, name: &str, labels: &Labels) -> Vec<Arc<Offered>> {
        let mut places = self.by_node.get(name).cloned().unwrap_or_default();
        places.extend(self.shared.iter().filter(|at| self.devices[**at].reach.has(name, labels)));
        places.sort_unstable();
        places.into_iter().map(|at| self.devices[at].clone()).collect()
    }

    /// Whether the counters that devices share are enough for these devices of one pool and one more.
    pub(super) fn counters_suffice<'a>(&self, users: impl Iterator<Item = &'a DeviceId>, more: &Offered) -> bool {
        let Some(consumed) = &more.device.consumes_counters else { return true };
        let key = (more.id.driver.clone(), more.id.pool.clone());
        let Some(sets) = self.counters.get(&key) else { return false };
        let users: Vec<&DeviceId> = users.filter(|id| id.driver == key.0 && id.pool == key.1).collect();
        let using = |set: &str, counter: &str| -> Amount {
            let devices = self.devices.iter().filter(|own| users.contains(&&own.id));
            let consumed = devices.flat_map(|own| own.device.consumes_counters.iter().flatten());
            let of_set = consumed.filter(|own| own.counter_set == set);
            of_set.filter_map(|own| own.counters.get(counter)).map(|own| Amount::of(&own.value)).sum()
        };
        consumed.iter().all(|own| {
            let Some(set) = sets.iter().find(|set| set.name == own.counter_set) else { return false };
            own.counters.iter().all(|(name, counter)| {
                let Some(there) = set.counters.get(name) else { return false };
                let mut sum = using(&own.counter_set, name);
                sum += Amount::of(&counter.value);
                sum <= Amount::of(&there.value)
            })
        })
    }
}
