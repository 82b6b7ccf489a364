//! Dynamic resources (KEP-4381): the claims of a pod are prepared by their drivers before anything of it runs, and given back
//! after everything of it has ended.
//!
//! It alone knows which claims are prepared for whom; that stands in a file too, written before a driver is asked for
//! anything, so that a restarted kubelet gives back what is needed no more. What was allocated is the scheduler's to say.

pub(crate) mod drivers;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use parking_lot::Mutex;

use crate::context::Context;
use crate::plugins::dra::v1 as rpc;
use drivers::{Driver, Drivers};
use state::{Claim, Claims as Known, Device, Member, OfDriver};

const FILE: &str = "dra_manager_state";

pub(crate) struct Claims {
    file: PathBuf,
    known: Mutex<Known>,
    /// One pod at a time: a claim may be shared.
    turn: tokio::sync::Mutex<()>,
    pub(crate) drivers: Drivers,
}

impl Claims {
    /// # Errors
    /// When what an earlier kubelet wrote down cannot be read.
    pub(crate) fn new(root: &Path) -> Result<Self, String> {
        let file = root.join(FILE);
        let known = state::read(&file).map_err(|why| {
            format!("could not restore state from checkpoint {}: {why}, please drain this node and delete it before restarting Kubelet", file.display())
        })?;
        Ok(Claims { file, known: Mutex::new(known), turn: tokio::sync::Mutex::default(), drivers: Drivers::default() })
    }

    /// The pods that claims are prepared for.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.known.lock().values().flat_map(|claim| claim.pod_uids.keys().cloned()).collect()
    }

    fn write(&self, known: &Known) -> Result<(), String> {
        state::write(&self.file, known).map_err(|e| format!("checkpoint ResourceClaim state: {e}"))
    }

    /// Has the pod's claims prepared by their drivers. Those that are already stay as they are.
    pub(crate) async fn prepare(&self, context: &Context, pod: &Pod) -> Result<(), String> {
        let names = names_of(pod)?;
        if names.is_empty() {
            return Ok(());
        }
        let client = context.client.as_ref().ok_or("there is no apiserver to ask for claims")?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace);
        let mut wanted = Vec::new();
        for (name, is_generated) in names {
            let claim = api.get(&name).await.map_err(|e| format!("fetch ResourceClaim {name}: {e}"))?;
            wanted.push(allocated(pod, &claim, is_generated)?);
        }
        let _turn = self.turn.lock().await;
        let mut batches: BTreeMap<String, (Driver, Vec<rpc::Claim>)> = BTreeMap::new();
        // Without its driver nothing is noted of a claim: a pod that never got as far can go without it.
        for driver in wanted.iter().flat_map(|claim| claim.driver_state.keys()) {
            batches.insert(driver.clone(), (self.drivers.get(driver)?, Vec::new()));
        }
        {
            let mut known = self.known.lock();
            for claim in &wanted {
                let key = (claim.namespace.clone(), claim.name.clone());
                let noted = known.entry(key).or_insert_with(|| claim.clone());
                if noted.uid != claim.uid {
                    return Err(format!(
                        "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                        claim.name, noted.uid
                    ));
                }
                noted.pod_uids.insert(pod.metadata.uid.clone().unwrap_or_default(), Member {});
                if noted.is_prepared {
                    continue;
                }
                for driver in noted.driver_state.keys() {
                    if let Some((_, batch)) = batches.get_mut(driver) {
                        batch.push(asked_for(noted));
                    }
                }
            }
            self.write(&known)?;
        }
        for (name, (mut driver, batch)) in batches {
            if batch.is_empty() {
                continue;
            }
            let answer = driver.prepare(batch.clone()).await?;
            let mut answers = answer.claims;
            for claim in &batch {
                let prepared = answers.remove(&claim.uid).ok_or("NodePrepareResources skipped 1 ResourceClaims")?;
                if !prepared.error.is_empty() {
                    let (name, error) = (&claim.name, prepared.error);
                    return Err(format!("NodePrepareResources failed for ResourceClaim {name}: {error}"));
                }
                let devices = prepared.devices.into_iter().map(device).collect();
                if let Some(noted) = self.known.lock().get_mut(&(claim.namespace.clone(), claim.name.clone())) {
                    noted.driver_state.insert(name.clone(), OfDriver { devices: Some(devices) });
                }
            }
            if let Some(uid) = answers.keys().next() {
                return Err(format!("NodePrepareResources returned result for unknown claim UID {uid}"));
            }
        }
        let mut known = self.known.lock();
        for claim in wanted {
            if let Some(noted) = known.get_mut(&(claim.namespace, claim.name)) {
                noted.is_prepared = true;
            }
        }
        self.write(&known)
    }

    /// Gives back what was prepared for a pod, where no other pod needs it.
    pub(crate) async fn unprepare(&self, pod_uid: &str) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let held: Vec<Claim> = {
            let known = self.known.lock();
            known.values().filter(|claim| claim.pod_uids.contains_key(pod_uid)).cloned().collect()
        };
        if held.is_empty() {
            return Ok(());
        }
        let last: Vec<&Claim> = held.iter().filter(|claim| claim.pod_uids.len() == 1).collect();
        let mut batches: BTreeMap<&str, Vec<rpc::Claim>> = BTreeMap::new();
        for claim in &last {
            for driver in claim.driver_state.keys() {
                batches.entry(driver).or_default().push(asked_for(claim));
            }
        }
        for (driver, batch) in batches {
            let mut answers = self.drivers.get(driver)?.unprepare(batch.clone()).await?.claims;
            for claim in batch {
                let done = answers.remove(&claim.uid).ok_or("NodeUnprepareResources skipped 1 ResourceClaims")?;
                if !done.error.is_empty() {
                    let (name, error) = (claim.name, done.error);
                    return Err(format!("NodeUnprepareResources failed for ResourceClaim {name}: {error}"));
                }
            }
        }
        let mut known = self.known.lock();
        for claim in held {
            let key = (claim.namespace, claim.name);
            if let Some(noted) = known.get_mut(&key) {
                noted.pod_uids.remove(pod_uid);
                if noted.pod_uids.is_empty() {
                    known.remove(&key);
                }
            }
        }
        self.write(&known)
    }

    /// The devices of a container under their names in the Container Device Interface.
    pub(crate) fn cdi_devices(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        for (_, name, request) in requests_of(pod, container)? {
            for (_, device) in self.devices(pod, &name, request.as_deref())? {
                all.extend(device.cdi_device_ids.unwrap_or_default());
            }
        }
        let mut seen = BTreeSet::new();
        all.retain(|id| seen.insert(id.clone()));
        Ok(all)
    }

    /// What the status of a container says of its devices' health.
    pub(crate) fn health(&self, pod: &Pod, container: &Container) -> Vec<ResourceStatus> {
        let mut all: BTreeMap<String, Vec<ResourceHealth>> = BTreeMap::new();
        for (shown, name, request) in requests_of(pod, container).unwrap_or_default() {
            let Some(shown) = shown else { continue };
            let mut devices = BTreeMap::new();
            for (driver, device) in self.devices(pod, &name, request.as_deref()).unwrap_or_default() {
                let health = self.drivers.health_of(&driver, &device.pool_name, &device.device_name);
                let plain = format!("{driver}/{}/{}", device.pool_name, device.device_name);
                let id = device.cdi_device_ids.and_then(|ids| ids.into_iter().next()).unwrap_or(plain);
                devices.entry(id).or_insert(health);
            }
            let health = devices.into_iter().map(|(resource_id, health)| ResourceHealth {
                resource_id,
                health: Some(health.to_owned()),
                ..ResourceHealth::default()
            });
            all.insert(shown, health.collect());
        }
        all.retain(|_, devices| !devices.is_empty());
        all.into_iter().map(|(name, devices)| ResourceStatus { name, resources: Some(devices) }).collect()
    }

    /// What was prepared for a claim of the pod, each device with its driver.
    fn devices(&self, pod: &Pod, claim: &str, request: Option<&str>) -> Result<Vec<(String, Device)>, String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let known = self.known.lock();
        let noted = known.get(&(namespace, claim.to_owned()));
        let noted = noted.ok_or_else(|| format!("unable to get information for ResourceClaim {claim}"))?;
        let each = noted
            .driver_state
            .iter()
            .flat_map(|(driver, of)| of.devices.iter().flatten().map(move |device| (driver.clone(), device.clone())));
        Ok(each.filter(|(_, device)| device.serves(request)).collect())
    }
}

fn asked_for(claim: &Claim) -> rpc::Claim {
    rpc::Claim { namespace: claim.namespace.clone(), uid: claim.uid.clone(), name: claim.name.clone() }
}

fn device(told: rpc::Device) -> Device {
    Device {
        pool_name: told.pool_name,
        device_name: told.device_name,
        share_id: told.share_id,
        request_names: Some(told.request_names),
        cdi_device_ids: Some(told.cdi_device_ids),
    }
}

/// The claim behind a name of the pod, and whether it was made for the pod; none where none is needed.
fn name_of(pod: &Pod, claim: &PodResourceClaim) -> Result<Option<(String, bool)>, String> {
    if let Some(name) = &claim.resource_claim_name {
        return Ok(Some((name.clone(), false)));
    }
    let mut made = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    match made.find(|status| status.name == claim.name) {
        Some(status) => Ok(status.resource_claim_name.clone().map(|name| (name, true))),
        None => {
            let text = |s: &Option<String>| s.clone().unwrap_or_default();
            let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
            Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"))
        }
    }
}

/// All claims of a pod: its own, and the one that stands for its extended resources.
fn names_of(pod: &Pod) -> Result<Vec<(String, bool)>, String> {
    let mut names = Vec::new();
    for claim in pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()) {
        names.extend(name_of(pod, claim)?);
    }
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    names.extend(extended.map(|e| (e.resource_claim_name.clone(), false)));
    Ok(names)
}

/// What a container uses: what its status calls it, the claim, and the request of the claim if it is one alone.
type Request = (Option<String>, String, Option<String>);

fn requests_of(pod: &Pod, container: &Container) -> Result<Vec<Request>, String> {
    let mut all = Vec::new();
    for used in container.resources.iter().flat_map(|r| r.claims.iter().flatten()) {
        let mut claims = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
        let Some(claim) = claims.find(|claim| claim.name == used.name) else { continue };
        if let Some((name, _)) = name_of(pod, claim)? {
            let request = used.request.clone().filter(|r| !r.is_empty());
            let shown = match &request {
                Some(request) => format!("claim:{}/{request}", used.name),
                None => format!("claim:{}", used.name),
            };
            all.push((Some(shown), name, request));
        }
    }
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    for mapping in extended.iter().flat_map(|e| &e.request_mappings).filter(|m| m.container_name == container.name) {
        let name = extended.map(|e| e.resource_claim_name.clone()).unwrap_or_default();
        all.push((None, name, Some(mapping.request_name.clone())));
    }
    Ok(all)
}

/// A claim as it is prepared for the pod: it must be the pod's to use.
fn allocated(pod: &Pod, claim: &ResourceClaim, is_generated: bool) -> Result<Claim, String> {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let (name, uid) = (text(&claim.metadata.name), text(&claim.metadata.uid));
    let (namespace, pod_name, pod_uid) =
        (text(&pod.metadata.namespace), text(&pod.metadata.name), text(&pod.metadata.uid));
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if is_generated && !owners.any(|owner| owner.controller == Some(true) && owner.uid == pod_uid) {
        return Err(format!(
            "ResourceClaim {namespace}/{name} was not created for pod {namespace}/{pod_name} (pod is not owner)"
        ));
    }
    let status = claim.status.clone().unwrap_or_default();
    if !status.reserved_for.iter().flatten().any(|user| user.uid == pod_uid) {
        return Err(format!("pod {pod_name} ({pod_uid}) is not allowed to use ResourceClaim {name} ({uid})"));
    }
    let allocation = status.allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
    let results = allocation.devices.and_then(|d| d.results).unwrap_or_default();
    let driver_state = results.into_iter().map(|result| (result.driver, OfDriver::default())).collect();
    Ok(Claim { uid, name, namespace, driver_state, ..Claim::default() })
}

#[cfg(test)]
mod tests;
