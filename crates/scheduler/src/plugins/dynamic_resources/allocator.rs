//! Finds devices for claims on one node: the first choice, in the order in which drivers offer devices, that fulfils all.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use client::ObjectKey;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Toleration};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceClass, DeviceConstraint,
    DeviceRequestAllocationResult, DeviceSelector, DeviceToleration, ResourceClaim,
};

use super::devices::{DeviceId, Offered, Pools, Reach};
use super::selector::{Programs, qualified};
use crate::framework::Rejection;
use crate::listers::Listers;

/// Devices that are looked at before it is given up: with many constraints there can be more combinations than time.
const MOST_STEPS: usize = 100_000;

/// One request of a claim: the first of the alternatives that can be had.
pub(crate) struct Request {
    /// The claim's place among those to be allocated.
    claim: usize,
    constraints: Arc<Vec<DeviceConstraint>>,
    alternatives: Vec<Alternative>,
}

struct Alternative {
    /// `request`, or `request/subrequest`.
    name: String,
    class: Arc<DeviceClass>,
    expressions: Vec<String>,
    tolerations: Vec<DeviceToleration>,
    /// `None`: all devices that match.
    count: Option<usize>,
    admin_access: bool,
}

/// A device that was chosen.
pub(super) struct Pick {
    request: usize,
    alternative: usize,
    device: Arc<Offered>,
}

fn expressions(selectors: Option<&Vec<DeviceSelector>>) -> impl Iterator<Item = String> + '_ {
    selectors.into_iter().flatten().filter_map(|own| own.cel.as_ref()).map(|cel| cel.expression.clone())
}

/// What the claims ask for.
///
/// # Errors
/// When a class does not exist.
pub(super) fn requests_of(listers: &Listers, claims: &[Arc<ResourceClaim>]) -> Result<Vec<Request>, Rejection> {
    let mut requests = Vec::new();
    for (at, claim) in claims.iter().enumerate() {
        let Some(devices) = &claim.spec.devices else { continue };
        let constraints = Arc::new(devices.constraints.clone().unwrap_or_default());
        for request in devices.requests.iter().flatten() {
            let alternative = |name: String,
                               class: &str,
                               selectors: Option<&Vec<DeviceSelector>>,
                               tolerations: Option<&Vec<DeviceToleration>>,
                               mode: Option<&String>,
                               count: Option<i64>,
                               admin_access: bool| {
                let Some(found) = listers.device_classes.get(&ObjectKey::cluster(class)) else {
                    let why = format!("request {name}: device class {class} does not exist");
                    return Err(Rejection::unresolvable(why));
                };
                let of_class = expressions(found.spec.selectors.as_ref());
                let expressions = of_class.chain(expressions(selectors)).collect();
                let all = mode.is_some_and(|mode| mode == "All");
                let count = (!all).then(|| usize::try_from(count.unwrap_or(1)).unwrap_or_default());
                let tolerations = tolerations.cloned().unwrap_or_default();
                Ok(Alternative { name, class: found, expressions, tolerations, count, admin_access })
            };
            let mut alternatives = Vec::new();
            if let Some(own) = &request.exactly {
                alternatives.push(alternative(
                    request.name.clone(),
                    &own.device_class_name,
                    own.selectors.as_ref(),
                    own.tolerations.as_ref(),
                    own.allocation_mode.as_ref(),
                    own.count,
                    own.admin_access.unwrap_or_default(),
                )?);
            }
            for own in request.first_available.iter().flatten() {
                alternatives.push(alternative(
                    format!("{}/{}", request.name, own.name),
                    &own.device_class_name,
                    own.selectors.as_ref(),
                    own.tolerations.as_ref(),
                    own.allocation_mode.as_ref(),
                    own.count,
                    false,
                )?);
            }
            requests.push(Request { claim: at, constraints: constraints.clone(), alternatives });
        }
    }
    Ok(requests)
}

pub(super) struct Allocator<'a> {
    requests: &'a [Request],
    devices: Vec<Arc<Offered>>,
    pools: &'a Pools,
    taken: &'a BTreeSet<DeviceId>,
    programs: &'a Programs,
    picks: Vec<Pick>,
    steps: usize,
}

impl<'a> Allocator<'a> {
    pub(super) fn new(
        requests: &'a [Request],
        devices: Vec<Arc<Offered>>,
        pools: &'a Pools,
        taken: &'a BTreeSet<DeviceId>,
        programs: &'a Programs,
    ) -> Self {
        Self { requests, devices, pools, taken, programs, picks: Vec::new(), steps: 0 }
    }

    /// # Errors
    /// When there were too many combinations to try.
    pub(super) fn allocate(mut self) -> Result<Option<Vec<Pick>>, String> {
        Ok(self.pick_from(0)?.then_some(self.picks))
    }

    fn pick_from(&mut self, at: usize) -> Result<bool, String> {
        let Some(request) = self.requests.get(at) else { return Ok(true) };
        for (place, alternative) in request.alternatives.iter().enumerate() {
            let matching: Vec<usize> =
                (0..self.devices.len()).filter(|device| self.matches(alternative, &self.devices[*device])).collect();
            let done = match alternative.count {
                Some(count) => self.pick_some(at, place, &matching, count)?,
                None => self.pick_all(at, place, &matching)?,
            };
            if done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn pick_some(&mut self, at: usize, place: usize, from: &[usize], count: usize) -> Result<bool, String> {
        if count == 0 {
            return self.pick_from(at + 1);
        }
        for (next, device) in from.iter().enumerate() {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err("allocation takes too long".to_owned());
            }
            if !self.try_pick(at, place, *device) {
                continue;
            }
            if self.pick_some(at, place, &from[next + 1..], count - 1)? {
                return Ok(true);
            }
            self.picks.pop();
        }
        Ok(false)
    }

    /// All or none; there has to be one at least.
    fn pick_all(&mut self, at: usize, place: usize, from: &[usize]) -> Result<bool, String> {
        let before = self.picks.len();
        let all = !from.is_empty() && from.iter().all(|device| self.try_pick(at, place, *device));
        if all && self.pick_from(at + 1)? {
            return Ok(true);
        }
        self.picks.truncate(before);
        Ok(false)
    }

    fn matches(&self, alternative: &Alternative, device: &Offered) -> bool {
        alternative.expressions.iter().all(|expression| self.programs.matches(expression, device))
    }

    fn try_pick(&mut self, request: usize, alternative: usize, device: usize) -> bool {
        let own = &self.requests[request];
        let wanted = &own.alternatives[alternative];
        let device = self.devices[device].clone();
        let picked = |id: &DeviceId| self.exclusive_picks().any(|other| other == id);
        let free = wanted.admin_access
            || (!self.taken.contains(&device.id)
                && !picked(&device.id)
                && self.pools.counters_suffice(self.taken.iter().chain(self.exclusive_picks()), &device));
        if !free || !tolerated(&device, &wanted.tolerations) {
            return false;
        }
        let others: Vec<&Pick> =
            self.picks.iter().filter(|pick| self.requests[pick.request].claim == own.claim).collect();
        let name_of = |pick: &Pick| &*self.requests[pick.request].alternatives[pick.alternative].name;
        let fulfils = own.constraints.iter().filter(|own| concerns(own, &wanted.name)).all(|constraint| {
            let others = others.iter().filter(|pick| concerns(constraint, name_of(pick)));
            holds(constraint, &device, others.map(|pick| &*pick.device))
        });
        if fulfils {
            self.picks.push(Pick { request, alternative, device });
        }
        fulfils
    }

    fn exclusive_picks(&self) -> impl Iterator<Item = &DeviceId> {
        let exclusive = |pick: &&Pick| !self.requests[pick.request].alternatives[pick.alternative].admin_access;
        self.picks.iter().filter(exclusive).map(|pick| &pick.device.id)
    }
}

/// Whether a constraint is for a request; one that names none is for all.
fn concerns(constraint: &DeviceConstraint, name: &str) -> bool {
    let main = name.split('/').next().unwrap_or_default();
    let requests = constraint.requests.as_deref().unwrap_or_default();
    requests.is_empty() || requests.iter().any(|own| own == name || own == main)
}

fn holds<'a>(constraint: &DeviceConstraint, device: &Offered, mut others: impl Iterator<Item = &'a Offered>) -> bool {
    let value = |device: &Offered, key: &str| {
        let mut attributes = device.device.attributes.iter().flatten();
        let driver = &*device.id.driver;
        attributes.find(|(own, _)| qualified(own, driver) == qualified(key, driver)).map(|(_, value)| value.clone())
    };
    if let Some(key) = &constraint.match_attribute {
        let own = value(device, key);
        return own.is_some() && others.all(|other| value(other, key) == own);
    }
    if let Some(key) = &constraint.distinct_attribute {
        let own = value(device, key);
        return own.is_some() && others.all(|other| value(other, key) != own);
    }
    false
}

fn tolerated(device: &Offered, tolerations: &[DeviceToleration]) -> bool {
    let taints = device.device.taints.iter().flatten();
    let mut keeping_away = taints.filter(|taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute"));
    keeping_away.all(|taint| {
        let taint = k8s_openapi::api::core::v1::Taint {
            key: taint.key.clone(),
            value: taint.value.clone(),
            effect: taint.effect.clone(),
            time_added: None,
        };
        tolerations.iter().any(|own| {
            let own = Toleration {
                key: own.key.clone(),
                operator: own.operator.clone(),
                value: own.value.clone(),
                effect: own.effect.clone(),
                toleration_seconds: None,
            };
            crate::taints::tolerates(&own, &taint)
        })
    })
}

/// The allocations that the picks make, by the claims' uids.
pub(super) fn results_of(
    claims: &[Arc<ResourceClaim>],
    requests: &[Request],
    picks: &[Pick],
    node: &str,
) -> HashMap<String, AllocationResult> {
    let result = |(at, claim): (usize, &Arc<ResourceClaim>)| {
        let picks: Vec<&Pick> = picks.iter().filter(|pick| requests[pick.request].claim == at).collect();
        let devices = DeviceAllocationResult {
            results: Some(picks.iter().map(|pick| result_of(requests, pick)).collect()),
            config: Some(configuration(claim, requests, &picks)).filter(|config| !config.is_empty()),
        };
        let allocation = AllocationResult {
            devices: Some(devices),
            node_selector: reach_of(&picks, node),
            allocation_timestamp: None,
        };
        (claim.metadata.uid.clone().unwrap_or_default(), allocation)
    };
    claims.iter().enumerate().map(result).collect()
}

fn result_of(requests: &[Request], pick: &Pick) -> DeviceRequestAllocationResult {
    let alternative = &requests[pick.request].alternatives[pick.alternative];
    DeviceRequestAllocationResult {
        request: alternative.name.clone(),
        driver: pick.device.id.driver.clone(),
        pool: pick.device.id.pool.clone(),
        device: pick.device.id.device.clone(),
        admin_access: alternative.admin_access.then_some(true),
        tolerations: Some(alternative.tolerations.clone()).filter(|own| !own.is_empty()),
        binding_conditions: pick.device.device.binding_conditions.clone(),
        binding_failure_conditions: pick.device.device.binding_failure_conditions.clone(),
        ..DeviceRequestAllocationResult::default()
    }
}

/// What the classes and the claim tell the drivers: the classes first.
fn configuration(claim: &ResourceClaim, requests: &[Request], picks: &[&Pick]) -> Vec<DeviceAllocationConfiguration> {
    let mut config = Vec::new();
    let mut seen = BTreeSet::new();
    for pick in picks {
        let alternative = &requests[pick.request].alternatives[pick.alternative];
        if !seen.insert(alternative.name.clone()) {
            continue;
        }
        config.extend(alternative.class.spec.config.iter().flatten().map(|own| DeviceAllocationConfiguration {
            source: "FromClass".to_owned(),
            requests: Some(vec![alternative.name.clone()]),
            opaque: own.opaque.clone(),
        }));
    }
    let of_claim = claim.spec.devices.iter().flat_map(|devices| devices.config.iter().flatten());
    let concerned = of_claim.filter(|own| {
        let requests = own.requests.as_deref().unwrap_or_default();
        let main = |name: &str| name.split('/').next().map(str::to_owned);
        requests.is_empty()
            || requests
                .iter()
                .any(|name| seen.contains(name) || seen.iter().any(|own| main(own).as_ref() == Some(name)))
    });
    config.extend(concerned.map(|own| DeviceAllocationConfiguration {
        source: "FromClaim".to_owned(),
        requests: own.requests.clone(),
        opaque: own.opaque.clone(),
    }));
    config
}

/// From where all of the devices can be reached; `None`: from everywhere.
fn reach_of(picks: &[&Pick], node: &str) -> Option<NodeSelector> {
    let mut terms: Vec<NodeSelectorRequirement> = Vec::new();
    for pick in picks {
        match &pick.device.reach {
            Reach::Node(_) => {
                let here = NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![node.to_owned()]),
                };
                let term = NodeSelectorTerm { match_fields: Some(vec![here]), match_expressions: None };
                return Some(NodeSelector { node_selector_terms: vec![term] });
            }
            Reach::Some(selector, _) => {
                // The API allows one term here.
                let requirements = selector.node_selector_terms.iter().take(1);
                for requirement in requirements.flat_map(|term| term.match_expressions.iter().flatten()) {
                    if !terms.contains(requirement) {
                        terms.push(requirement.clone());
                    }
                }
            }
            Reach::All | Reach::None => {}
        }
    }
    let term = NodeSelectorTerm { match_expressions: Some(terms), match_fields: None };
    term.match_expressions
        .as_ref()
        .is_some_and(|terms| !terms.is_empty())
        .then(|| NodeSelector { node_selector_terms: vec![term] })
}
