//! DynamicResources: pods get devices through claims, which drivers offer in slices.

mod allocator;
mod claims;
mod devices;
mod prepare;
mod selector;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use parking_lot::Mutex;

use crate::cluster::{Cluster, NodeRef};
use crate::cycle::{Attempt, PostFilterOutcome};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PostFilter, PreBind, PreEnqueue,
    PreFilter, Rejection, Reserve, Reuse, Signature,
};
use crate::listers::Listers;
use crate::pod::PodInfo;
use crate::selector::NodeMatcher;
use allocator::{Allocator, Request};
use claims::{claims_of, has_claims};
use devices::{DeviceId, Pools};
use selector::Programs;

const REASON_ELSEWHERE: &str = "resourceclaim not available on the node";
const REASON_NO_DEVICES: &str = "cannot allocate all claims";
/// Pods that may use one claim.
const USERS_PER_CLAIM: usize = 256;

pub(super) struct DynamicResources {
    client: Option<kube::Client>,
    listers: Listers,
    programs: Programs,
    /// What was decided and the API server does not tell of yet, by the claim's uid.
    decided: Arc<Mutex<HashMap<String, AllocationResult>>>,
}

/// A pod's claim, with the devices that it has already.
#[derive(Clone)]
pub(crate) struct PodClaim {
    claim: Arc<ResourceClaim>,
    allocation: Option<Arc<AllocationResult>>,
    /// Where these devices can be reached; everywhere without one.
    nodes: Option<NodeMatcher>,
}

#[derive(Clone)]
pub(crate) struct Wanted {
    claims: Arc<Vec<PodClaim>>,
    /// What the claims without devices ask for; empty if all have some.
    requests: Arc<Vec<Request>>,
    pools: Arc<Pools>,
    taken: Arc<BTreeSet<DeviceId>>,
}

/// Devices for the claims that have none yet, by the claim's uid.
#[derive(Default)]
pub(crate) struct Held {
    claims: Vec<(Arc<ResourceClaim>, Option<AllocationResult>)>,
}

impl DynamicResources {
    pub(super) fn new(client: Option<kube::Client>, listers: &Listers) -> Self {
        Self { client, listers: listers.clone(), programs: Programs::default(), decided: Arc::default() }
    }

    fn allocation_of(&self, claim: &ResourceClaim) -> Option<Arc<AllocationResult>> {
        let told = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        let mut decided = self.decided.lock();
        if told.is_some() {
            decided.remove(uid);
        }
        told.or_else(|| decided.get(uid)).cloned().map(Arc::new)
    }

    fn wanted(&self, pod: &PodInfo) -> Result<Wanted, Rejection> {
        let mut claims = Vec::new();
        for claim in claims_of(&self.listers, pod)? {
            let allocation = self.allocation_of(&claim);
            let users = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default();
            let ours = users.iter().any(|user| user.uid == pod.uid.as_str());
            if allocation.is_some() && !ours && users.len() >= USERS_PER_CLAIM {
                return Err(Rejection::unresolvable("resourceclaim in use"));
            }
            let nodes = allocation.as_ref().and_then(|own| own.node_selector.as_ref()).map(NodeMatcher::of);
            claims.push(PodClaim { claim, allocation, nodes });
        }
        let unallocated = claims.iter().filter(|own| own.allocation.is_none());
        let unallocated: Vec<_> = unallocated.map(|own| own.claim.clone()).collect();
        let requests = allocator::requests_of(&self.listers, &unallocated)?;
        let (mut pools, mut taken) = (Pools::default(), BTreeSet::new());
        if !requests.is_empty() {
            pools = Pools::of(&self.listers.resource_slices.list());
            for claim in self.listers.resource_claims.list() {
                taken.extend(self.allocation_of(&claim).iter().flat_map(|own| devices::taken_by(own)));
            }
            // Of claims that the cache does not have yet, too.
            taken.extend(self.decided.lock().values().flat_map(devices::taken_by));
        }
        Ok(Wanted {
            claims: Arc::new(claims),
            requests: Arc::new(requests),
            pools: Arc::new(pools),
            taken: Arc::new(taken),
        })
    }

    fn allocate(&self, wanted: &Wanted, node: NodeRef<'_>) -> Result<HashMap<String, AllocationResult>, FilterStatus> {
        let elsewhere =
            |own: &PodClaim| own.nodes.as_ref().is_some_and(|nodes| !nodes.matches(node.name(), node.labels()));
        if wanted.claims.iter().any(elsewhere) {
            return Err(FilterStatus::unresolvable(REASON_ELSEWHERE));
        }
        if wanted.requests.is_empty() {
            return Ok(HashMap::new());
        }
        let devices = wanted.pools.on(node.name(), node.labels());
        let allocator = Allocator::new(&wanted.requests, devices, &wanted.pools, &wanted.taken, &self.programs);
        match allocator.allocate() {
            Ok(Some(chosen)) => {
                Ok(allocator::results_of(&wanted.claims_to_allocate(), &wanted.requests, &chosen, node.name()))
            }
            Ok(None) => Err(FilterStatus::unresolvable(REASON_NO_DEVICES)),
            Err(error) => Err(FilterStatus::Error(error)),
        }
    }
}

impl Wanted {
    fn claims_to_allocate(&self) -> Vec<Arc<ResourceClaim>> {
        let unallocated = self.claims.iter().filter(|own| own.allocation.is_none());
        unallocated.map(|own| own.claim.clone()).collect()
    }
}

impl Plugin for DynamicResources {
    const NAME: &'static str = "DynamicResources";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_LABEL)),
        ClusterEvent::new(EventResource::ResourceClaim, Actions::ADD.or(Actions::UPDATE).or(Actions::DELETE)),
        ClusterEvent::new(EventResource::UnscheduledPod, Actions::UPDATE),
        ClusterEvent::new(EventResource::DeviceClass, Actions::ADD.or(Actions::UPDATE)),
        ClusterEvent::new(EventResource::ResourceSlice, Actions::ADD.or(Actions::UPDATE)),
    ];

    /// A claim that came helps the pods that it is for; one that let go of devices may help any.
    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        let has = |claim: &ResourceClaim| claim.status.as_ref().is_some_and(|status| status.allocation.is_some());
        match change.object::<ResourceClaim>() {
            (old, Some(new)) => {
                let freed = old.is_some_and(|old| has(old) && !has(new));
                let ours = new.metadata.namespace.as_deref() == Some(pod.namespace());
                Hint::queue_if(freed || (ours && claims_of(&self.listers, pod).is_ok()))
            }
            (Some(gone), None) => Hint::queue_if(has(gone)),
            (None, None) => Hint::Queue,
        }
    }
}

impl PreEnqueue for DynamicResources {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection> {
        claims_of(&self.listers, pod).map(drop)
    }
}

impl Filter for DynamicResources {
    type State = Wanted;

    fn sign(&self, pod: &PodInfo, _: &mut Signature) -> Reuse {
        if has_claims(pod) { Reuse::Never } else { Reuse::PerNode }
    }

    fn prefilter(&self, pod: &PodInfo, _: &mut Cluster) -> PreFilter<Wanted> {
        if !has_claims(pod) {
            return PreFilter::Skip;
        }
        match self.wanted(pod) {
            Ok(wanted) => PreFilter::Run(wanted),
            Err(rejection) => PreFilter::Reject(rejection),
        }
    }

    fn filter(&self, wanted: &Wanted, _: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        match self.allocate(wanted, node) {
            Ok(_) => FilterStatus::Success,
            Err(status) => status,
        }
    }
}

impl PostFilter for DynamicResources {
    /// Devices that no pod uses and that are elsewhere are given back, so that others can be had.
    fn post_filter(&self, attempt: &mut Attempt<'_>) -> PostFilterOutcome {
        if !attempt.was_asked(Self::NAME) {
            return PostFilterOutcome::Error("not found".to_owned());
        }
        let pod = attempt.pod();
        let Some(wanted) = has_claims(pod).then(|| self.wanted(pod).ok()).flatten() else {
            return PostFilterOutcome::Nothing("no new claims to deallocate".to_owned());
        };
        let elsewhere = |own: &&PodClaim| {
            let nodes = own.nodes.as_ref();
            nodes.is_some_and(|nodes| attempt.cluster().nodes().iter().any(|n| !nodes.matches(n.name(), n.labels())))
        };
        let mut elsewhere = wanted.claims.iter().filter(elsewhere).peekable();
        if elsewhere.peek().is_none() {
            return PostFilterOutcome::Nothing("no new claims to deallocate".to_owned());
        }
        let unused = elsewhere.find(|own| {
            let users = own.claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default();
            users.iter().all(|user| user.uid == pod.uid.as_str())
        });
        let (Some(unused), Some(client)) = (unused, &self.client) else {
            return PostFilterOutcome::Nothing("still not schedulable".to_owned());
        };
        prepare::start_to_deallocate(client, &unused.claim);
        PostFilterOutcome::Nothing("deallocation of ResourceClaim completed".to_owned())
    }
}

impl Reserve for DynamicResources {
    type Held = Held;

    fn reserve(&self, pod: &PodInfo, node: NodeRef<'_>) -> Result<Held, Rejection> {
        if !has_claims(pod) {
            return Ok(Held::default());
        }
        let wanted = self.wanted(pod)?;
        let mut chosen = self.allocate(&wanted, node).map_err(|status| match status {
            FilterStatus::Unschedulable(reasons) | FilterStatus::UnschedulableAndUnresolvable(reasons) => {
                Rejection::Unschedulable(reasons)
            }
            FilterStatus::Error(error) => Rejection::Error(error),
            FilterStatus::Success => Rejection::Error("no devices were found".to_owned()),
        })?;
        let mut decided = self.decided.lock();
        let claims = wanted.claims.iter().map(|own| {
            let uid = own.claim.metadata.uid.clone().unwrap_or_default();
            let allocation = chosen.remove(&uid);
            if let Some(allocation) = &allocation {
                decided.insert(uid, allocation.clone());
            }
            (own.claim.clone(), allocation.or_else(|| own.allocation.as_deref().cloned()))
        });
        Ok(Held { claims: claims.collect() })
    }

    fn unreserve(&self, held: &Held, pod: &PodInfo, _: &str) {
        {
            let mut decided = self.decided.lock();
            for (claim, _) in &held.claims {
                decided.remove(claim.metadata.uid.as_deref().unwrap_or_default());
            }
        }
        if let (Some(client), false) = (&self.client, held.claims.is_empty()) {
            let claims = held.claims.iter().map(|(claim, _)| claim.clone()).collect();
            prepare::start_to_unreserve(client, claims, pod);
        }
    }
}

impl PreBind for DynamicResources {
    fn prebind<'a>(&'a self, held: &'a Held, pod: &'a PodInfo, _: &'a str) -> BoxFuture<'a, Result<(), Rejection>> {
        async move {
            let Some(client) = self.client.clone() else { return Ok(()) };
            for (claim, allocation) in &held.claims {
                prepare::reserve(&client, claim, allocation.as_ref(), pod).await.map_err(Rejection::Error)?;
            }
            Ok(())
        }
        .boxed()
    }
}
