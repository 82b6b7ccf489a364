//! Devices of the node: plugins tell which there are (device plugin API v1beta1), containers get them with their start.
//!
//! It alone knows which container has which device; that stands in a file too, so that a restarted kubelet gives no device
//! twice.

mod choose;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tonic::transport::Channel;

use crate::numa::{Mask, Nodes};
use crate::plugins::device_plugin::device_plugin_client::DevicePluginClient;
use crate::plugins::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    DevicePluginOptions, PreStartContainerRequest, PreferredAllocationRequest,
};
use crate::pod::plan;
use crate::resources::Amounts;
use crate::topology::Hints;
use choose::Need;
pub(crate) use serve::check;

/// How long a resource whose plugin has gone keeps its place in the Node's capacity.
const GRACE: Duration = Duration::from_secs(300);
const CALL: Duration = Duration::from_secs(30);
const TOO_LATE: &str = "context deadline exceeded";
const FILE: &str = "allocations.json";

/// What a container has: the ids of its devices by resource, and what their plugins said that it gets with them.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Holding {
    ids: BTreeMap<String, BTreeSet<String>>,
    answer: Option<ContainerAllocateResponse>,
}

/// What outlives the kubelet.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Resources that a plugin has been there for.
    resources: BTreeSet<String>,
    /// By pod uid and container name.
    pods: BTreeMap<String, BTreeMap<String, Holding>>,
}

pub(crate) struct Devices {
    dir: PathBuf,
    state: Mutex<State>,
    /// Told when there are more or fewer devices than before.
    changed: Notify,
}

#[derive(Default)]
struct State {
    by_resource: BTreeMap<String, Resource>,
    kept: Kept,
    /// Counts the registrations, so that the end of an earlier one is told from that of the current one.
    registrations: u64,
}

#[derive(Default)]
struct Resource {
    healthy: BTreeSet<String>,
    unhealthy: BTreeSet<String>,
    /// The NUMA nodes of those devices that are near to some.
    nodes: BTreeMap<String, Mask>,
    options: DevicePluginOptions,
    /// Its plugin; none while there is nobody.
    client: Option<DevicePluginClient<Channel>>,
    registration: u64,
    gone_since: Option<Instant>,
}

/// A container cannot start because its devices are not to be had.
#[derive(Debug, thiserror::Error)]
#[error("Allocate failed due to {0}, which is unexpected")]
pub(crate) struct AllocateError(pub(crate) String);

impl Devices {
    pub(crate) fn new(root: &Path) -> Self {
        let dir = root.join("device-plugins");
        let file = std::fs::read(dir.join(FILE)).ok();
        let kept: Kept = file.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let gone = || Resource { gone_since: Some(Instant::now()), ..Resource::default() };
        let by_resource = kept.resources.iter().map(|name| (name.clone(), gone())).collect();
        Devices { dir, state: Mutex::new(State { by_resource, kept, registrations: 0 }), changed: Notify::new() }
    }

    /// Returns when there are more or fewer devices than at the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// All devices and the healthy ones of each resource, in thousandths as other amounts are.
    pub(crate) fn amounts(&self) -> (Amounts, Amounts) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX / 1000) * 1000;
        let mut state = self.state.lock();
        for resource in state.by_resource.values_mut() {
            if resource.gone_since.is_some_and(|since| since.elapsed() > GRACE) {
                resource.unhealthy.clear();
            }
        }
        let all = state.by_resource.iter();
        let capacity = all.clone().map(|(name, r)| (name.clone(), count(r.healthy.len() + r.unhealthy.len())));
        let allocatable = all.map(|(name, r)| (name.clone(), count(r.healthy.len())));
        (capacity.collect(), allocatable.collect())
    }

    /// Forgets what pods had that are none of these.
    pub(crate) fn keep_only(&self, is_here: impl Fn(&str) -> bool) {
        let mut state = self.state.lock();
        let before = state.kept.pods.len();
        state.kept.pods.retain(|uid, _| is_here(uid));
        if state.kept.pods.len() != before {
            self.write(&state.kept);
        }
    }

    /// Gives a container its devices, the same ones at each of its starts, and tells what it gets with them.
    pub(crate) async fn allocate(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<ContainerAllocateResponse, AllocateError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let wanted = self.wanted(container);
        if wanted.is_empty() {
            return Ok(ContainerAllocateResponse::default());
        }
        let mut given = BTreeMap::new();
        for (resource, count) in wanted {
            let ids = self.give(pod, container, &resource, count, None).await?;
            given.insert(resource, ids);
        }
        let known = self.holding(uid, &container.name).and_then(|h| h.answer);
        let answer = match known {
            Some(answer) => answer,
            None => {
                let mut answer = ContainerAllocateResponse::default();
                for (resource, ids) in &given {
                    merge(&mut answer, self.ask(resource, ids).await?);
                }
                self.note(uid, &container.name, |holding| holding.answer = Some(answer.clone()));
                answer
            }
        };
        self.before_start(given).await?;
        Ok(answer)
    }

    /// Chooses a container's devices before anything of its pod runs, near these NUMA nodes as far as they go.
    pub(crate) async fn reserve(
        &self,
        pod: &Pod,
        container: &Container,
        near: Option<Mask>,
    ) -> Result<(), AllocateError> {
        for (resource, count) in self.wanted(container) {
            self.give(pod, container, &resource, count, near).await?;
        }
        Ok(())
    }

    /// Which NUMA nodes would do for a container, or for the pod as a whole: hints for each of its resources.
    pub(crate) fn wishes(&self, pod: &Pod, container: Option<&Container>, nodes: &Nodes) -> Vec<Hints> {
        let wanted = match container {
            Some(container) => self.wanted(container).into_iter().collect(),
            None => self.wanted_by_all(pod),
        };
        let state = self.state.lock();
        let numbers: Vec<usize> = nodes.keys().copied().collect();
        let hints = |(resource, count): (String, usize)| {
            let of = &state.by_resource.get(&resource)?.nodes;
            if of.is_empty() {
                return None; // all are as near to every node
            }
            Some(match look(&state, pod, container, &resource, count) {
                Ok(Look::Has(ids)) => choose::hints(count, &ids, of, &numbers),
                Ok(Look::Free { available, .. }) => choose::hints(count, &available, of, &numbers),
                Err(_) => Vec::new(),
            })
        };
        wanted.into_iter().map(hints).collect()
    }

    /// By resource, how many the pod has at the most demanding moment of its life.
    fn wanted_by_all(&self, pod: &Pod) -> BTreeMap<String, usize> {
        let (mut all, mut peak) = (BTreeMap::new(), BTreeMap::<String, usize>::new());
        for init in plan::init_containers(pod) {
            for (resource, count) in self.wanted(init) {
                let beside: &mut usize = all.entry(resource.clone()).or_default();
                if plan::is_sidecar(init) {
                    *beside += count;
                } else {
                    let most = peak.entry(resource).or_default();
                    *most = (*most).max(*beside + count);
                }
            }
        }
        for (resource, count) in plan::containers(pod).iter().flat_map(|c| self.wanted(c)) {
            *all.entry(resource).or_default() += count;
        }
        for (resource, count) in &mut all {
            *count = (*count).max(peak.get(resource).copied().unwrap_or_default());
        }
        all
    }

    fn holding(&self, uid: &str, container: &str) -> Option<Holding> {
        self.state.lock().kept.pods.get(uid)?.get(container).cloned()
    }

    fn note(&self, uid: &str, container: &str, change: impl FnOnce(&mut Holding)) {
        let mut state = self.state.lock();
        let of_pod = state.kept.pods.entry(uid.to_owned()).or_default();
        change(of_pod.entry(container.to_owned()).or_default());
        self.write(&state.kept);
    }

    /// The resources of a container that are devices here, and how many of each.
    fn wanted(&self, container: &Container) -> Vec<(String, usize)> {
        let state = self.state.lock();
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let wanted = limits.into_iter().flatten().filter(|(name, _)| state.by_resource.contains_key(*name));
        let wanted =
            wanted.filter_map(|(name, q)| Some((name.clone(), usize::try_from(crate::cgroups::whole(q)?).ok()?)));
        wanted.filter(|(_, count)| *count > 0).collect()
    }

    async fn give(
        &self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        count: usize,
        near: Option<Mask>,
    ) -> Result<BTreeSet<String>, AllocateError> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        // What is free, of which the near ones come first.
        let found = |state: &State| {
            let found = look(state, pod, Some(container), resource, count).map_err(AllocateError)?;
            Ok(match (found, near, state.by_resource.get(resource)) {
                (Look::Free { available, kept }, Some(near), Some(known)) => {
                    let (available, kept) = choose::align(count, available, kept, near, &known.nodes);
                    Look::Free { available, kept }
                }
                (found, ..) => found,
            })
        };
        // The plugin's preference is asked for between two looks; whoever came first meanwhile keeps what he has.
        let first = found(&self.state.lock())?;
        let preferred = match first {
            Look::Has(ids) => return Ok(ids),
            Look::Free { available, kept } => self.preference(resource, &available, &kept, count).await,
        };
        let mut state = self.state.lock();
        let ids = match found(&state)? {
            Look::Has(ids) => return Ok(ids),
            Look::Free { available, kept } => choose::choose(count, &available, kept, &preferred),
        };
        let holding = state.kept.pods.entry(uid).or_default().entry(container.name.clone()).or_default();
        holding.ids.insert(resource.to_owned(), ids.clone());
        self.write(&state.kept);
        Ok(ids)
    }

    async fn preference(
        &self,
        resource: &str,
        available: &BTreeSet<String>,
        kept: &BTreeSet<String>,
        count: usize,
    ) -> Vec<String> {
        let client = self
            .state
            .lock()
            .by_resource
            .get(resource)
            .and_then(|r| r.client.clone().filter(|_| r.options.get_preferred_allocation_available));
        let Some(mut client) = client else { return Vec::new() };
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: available.iter().cloned().collect(),
                must_include_device_ids: kept.iter().cloned().collect(),
                allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
            }],
        };
        match tokio::time::timeout(CALL, client.get_preferred_allocation(request)).await {
            Ok(Ok(answer)) => {
                answer.into_inner().container_responses.into_iter().next().map(|r| r.device_ids).unwrap_or_default()
            }
            _ => Vec::new(), // what it would have liked is not known
        }
    }

    fn client(&self, resource: &str) -> Result<DevicePluginClient<Channel>, AllocateError> {
        let client = self.state.lock().by_resource.get(resource).and_then(|r| r.client.clone());
        client.ok_or_else(|| AllocateError(format!("unknown Device Plugin {resource}")))
    }

    async fn ask(&self, resource: &str, ids: &BTreeSet<String>) -> Result<ContainerAllocateResponse, AllocateError> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest { devices_ids: ids.iter().cloned().collect() }],
        };
        let answer = tokio::time::timeout(CALL, self.client(resource)?.allocate(request)).await;
        let answer = answer.map_err(|_| AllocateError(TOO_LATE.to_owned()))?.map_err(failed)?;
        let answer = answer.into_inner().container_responses.into_iter().next();
        answer.ok_or_else(|| AllocateError("no containers return in allocation response".to_owned()))
    }

    async fn before_start(&self, given: BTreeMap<String, BTreeSet<String>>) -> Result<(), AllocateError> {
        for (resource, ids) in given {
            let wants = self.state.lock().by_resource.get(&resource).is_some_and(|r| r.options.pre_start_required);
            if !wants {
                continue;
            }
            let request = PreStartContainerRequest { devices_ids: ids.into_iter().collect() };
            let done = tokio::time::timeout(CALL, self.client(&resource)?.pre_start_container(request)).await;
            done.map_err(|_| AllocateError(TOO_LATE.to_owned()))?.map_err(failed)?;
        }
        Ok(())
    }

    fn write(&self, kept: &Kept) {
        let fresh = self.dir.join(".allocations.json.new");
        let written = std::fs::create_dir_all(&self.dir)
            .and_then(|()| std::fs::write(&fresh, serde_json::to_vec(kept)?))
            .and_then(|()| std::fs::rename(&fresh, self.dir.join(FILE)));
        if let Err(error) = written {
            tracing::error!(%error, dir = %self.dir.display(), "who has which device could not be written down");
        }
    }
}

fn failed(status: tonic::Status) -> AllocateError {
    AllocateError(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
}

/// What a look at the devices of one resource finds for a container.
enum Look {
    Has(BTreeSet<String>),
    Free { available: BTreeSet<String>, kept: BTreeSet<String> },
}

/// Without a container, for the pod as a whole.
fn look(state: &State, pod: &Pod, container: Option<&Container>, resource: &str, count: usize) -> Result<Look, String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let of = |held: &Holding| held.ids.get(resource).cloned();
    let held = state.kept.pods.get(uid);
    let own = match container {
        Some(container) => held.and_then(|p| p.get(&container.name)).and_then(of),
        None => held.map(|p| p.values().filter_map(of).flatten().collect()).filter(|ids: &BTreeSet<_>| !ids.is_empty()),
    };
    if let Some(ids) = own {
        return Ok(Look::Has(ids));
    }
    let is_past = |name: &str| plan::init_containers(pod).iter().any(|c| c.name == name && !plan::is_sidecar(c));
    let (mut taken, mut reusable) = (BTreeSet::new(), BTreeSet::new());
    for (other, containers) in &state.kept.pods {
        for (name, held) in containers {
            let ids = of(held).unwrap_or_default();
            if other == uid && is_past(name) { reusable.extend(ids) } else { taken.extend(ids) }
        }
    }
    let reusable: BTreeSet<String> = reusable.difference(&taken).cloned().collect();
    let nothing = BTreeSet::new();
    let healthy = state.by_resource.get(resource).map_or(&nothing, |r| &r.healthy);
    let need = Need { resource, count, healthy, taken: &taken, reusable: &reusable };
    let available = choose::available(&need)?;
    let kept = choose::kept(&need, &available);
    Ok(Look::Free { available, kept })
}

fn merge(to: &mut ContainerAllocateResponse, more: ContainerAllocateResponse) {
    to.envs.extend(more.envs);
    to.annotations.extend(more.annotations);
    to.mounts.extend(more.mounts);
    to.devices.extend(more.devices);
}
