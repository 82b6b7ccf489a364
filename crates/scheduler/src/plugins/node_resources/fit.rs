//! NodeResourcesFit: a node must have what the pod asks for; how full it gets decides which is best.

use k8s_openapi::api::core::v1::Node;
use serde::Deserialize;

use super::scorer::{Scorer, ShapePoint, Usage, check_shape};
use super::{ResourceSpec, check_resources, column_of, default_resources};
use crate::cluster::{Cluster, NodeIdx, NodeRef, Resource};
use crate::framework::{
    Actions, Change, ClusterEvent, EventResource, Filter, FilterStatus, Hint, Plugin, PreFilter, PreScore, Reasons,
    Reuse, Score, Signature,
};
use crate::pod::PodInfo;
use crate::quantity::Amount;
use crate::resources::{ScalarId, is_extended};

const TOO_MANY_PODS: &str = "Too many pods";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FitArgs {
    /// Extended resources that the filter leaves to others.
    ignored_resources: Vec<String>,
    /// The same by what stands before the slash.
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<Strategy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Strategy {
    #[serde(rename = "type")]
    type_: String,
    resources: Vec<ResourceSpec>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ratio {
    shape: Vec<ShapePoint>,
}

pub(crate) struct Fit {
    ignored: Vec<String>,
    ignored_groups: Vec<String>,
    scorer: Scorer,
    resources: Vec<ResourceSpec>,
}

impl Fit {
    /// # Errors
    /// All mistakes of the arguments, in one text.
    pub(crate) fn new(args: FitArgs) -> Result<Self, String> {
        let mut mistakes = Vec::new();
        let (scorer, resources) = match args.scoring_strategy {
            None => (Scorer::LeastAllocated, default_resources()),
            Some(strategy) => {
                let scorer = match &*strategy.type_ {
                    "" | "LeastAllocated" => Scorer::LeastAllocated,
                    "MostAllocated" => Scorer::MostAllocated,
                    "RequestedToCapacityRatio" => {
                        let shape = strategy.requested_to_capacity_ratio.map(|ratio| ratio.shape).unwrap_or_default();
                        check_shape(&shape, "scoringStrategy.requestedToCapacityRatio.shape", &mut mistakes);
                        Scorer::RequestedToCapacityRatio(shape)
                    }
                    other => {
                        mistakes.push(format!(
                            "scoringStrategy.type: Unsupported value: {other:?}: supported values: \"LeastAllocated\", \
                             \"MostAllocated\", \"RequestedToCapacityRatio\""
                        ));
                        Scorer::LeastAllocated
                    }
                };
                check_resources(&strategy.resources, "scoringStrategy.resources", &mut mistakes);
                let none = strategy.resources.is_empty();
                (scorer, if none { default_resources() } else { strategy.resources })
            }
        };
        if mistakes.is_empty() {
            Ok(Self {
                ignored: args.ignored_resources,
                ignored_groups: args.ignored_resource_groups,
                scorer,
                resources,
            })
        } else {
            Err(mistakes.join(", "))
        }
    }

    fn ignores(&self, name: &str) -> bool {
        let group = name.split('/').next().unwrap_or_default();
        is_extended(name)
            && (self.ignored.iter().any(|own| own == name) || self.ignored_groups.iter().any(|own| own == group))
    }
}

impl Plugin for Fit {
    const NAME: &'static str = "NodeResourcesFit";
    const REQUEUE_ON: &'static [ClusterEvent] = &[
        ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE.or(Actions::UPDATE_POD_SCALE_DOWN)),
        ClusterEvent::new(EventResource::UnscheduledPod, Actions::UPDATE_POD_SCALE_DOWN),
        ClusterEvent::new(EventResource::Node, Actions::ADD.or(Actions::UPDATE_NODE_ALLOCATABLE)),
    ];

    fn hint(&self, pod: &PodInfo, _: ClusterEvent, change: &Change<'_>) -> Hint {
        match change {
            Change::Node { old, new: Some(new) } => {
                Hint::queue_if(could_fit(pod, new) && old.is_none_or(|old| has_more(pod, old, new)))
            }
            _ => Hint::Queue,
        }
    }
}

/// What a node without any pods has of CPU, memory and storage.
fn capacity(node: &Node) -> (i64, i64, i64) {
    let list = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let amount = |name: &str| list.and_then(|list| list.get(name)).map(Amount::of).unwrap_or_default();
    (amount("cpu").milli_value(), amount("memory").value(), amount("ephemeral-storage").value())
}

/// Whether an empty node of this size could take the pod, as far as the three common resources go.
fn could_fit(pod: &PodInfo, node: &Node) -> bool {
    let (cpu, memory, storage) = capacity(node);
    let wanted = &pod.requests.real;
    wanted.milli_cpu <= cpu && wanted.memory <= memory && wanted.ephemeral_storage <= storage
}

/// Whether the node has more of something that the pod asks for, or may have, as resources of other names are not compared.
fn has_more(pod: &PodInfo, old: &Node, new: &Node) -> bool {
    let (old_cpu, old_memory, old_storage) = capacity(old);
    let (cpu, memory, storage) = capacity(new);
    let wanted = &pod.requests.real;
    let pods = |node: &Node| node.status.as_ref()?.allocatable.as_ref()?.get("pods").map(Amount::of);
    pods(new) > pods(old)
        || (wanted.milli_cpu > 0 && cpu > old_cpu)
        || (wanted.memory > 0 && memory > old_memory)
        || (wanted.ephemeral_storage > 0 && storage > old_storage)
        || !wanted.scalars.is_empty()
}

/// What is checked besides the three common resources: id, amount and what is said when it is missing.
#[derive(Clone, Debug)]
pub(crate) struct FitState {
    scalars: Vec<(ScalarId, i64, String)>,
}

impl Filter for Fit {
    type State = FitState;

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&pod.requests.real);
        Reuse::PerNode
    }

    fn prefilter(&self, pod: &PodInfo, cluster: &mut Cluster) -> PreFilter<FitState> {
        let names = cluster.scalar_names();
        let scalars = pod.requests.real.scalars.iter().filter(|(_, amount)| *amount != 0);
        let scalars = scalars.filter(|(id, _)| !self.ignores(names.name(*id)));
        let scalars = scalars.map(|(id, amount)| (*id, *amount, format!("Insufficient {}", names.name(*id)))).collect();
        PreFilter::Run(FitState { scalars })
    }

    fn filter(&self, state: &FitState, pod: &PodInfo, node: NodeRef<'_>) -> FilterStatus {
        let wanted = &pod.requests.real;
        let mut reasons = Reasons::new();
        let mut unresolvable = false;
        if i64::try_from(node.pods().len()).unwrap_or(i64::MAX) >= node.allowed_pods() {
            reasons.push(TOO_MANY_PODS.into());
        }
        let mut check = |resource: Resource, amount: i64, reason: &dyn Fn() -> std::borrow::Cow<'static, str>| {
            let allocatable = node.allocatable(resource);
            if amount > 0 && amount > allocatable - node.requested(resource) {
                reasons.push(reason());
                unresolvable |= amount > allocatable;
            }
        };
        check(Resource::Cpu, wanted.milli_cpu, &|| "Insufficient cpu".into());
        check(Resource::Memory, wanted.memory, &|| "Insufficient memory".into());
        check(Resource::EphemeralStorage, wanted.ephemeral_storage, &|| "Insufficient ephemeral-storage".into());
        for (id, amount, reason) in &state.scalars {
            check(Resource::Scalar(*id), *amount, &|| reason.clone().into());
        }
        match (reasons.is_empty(), unresolvable) {
            (true, _) => FilterStatus::Success,
            (false, false) => FilterStatus::Unschedulable(reasons),
            (false, true) => FilterStatus::UnschedulableAndUnresolvable(reasons),
        }
    }
}

/// Resources that are scored: what the pod adds, and how much it weighs.
pub(crate) struct ScoredResources(Vec<(Resource, i64, i64)>);

impl Score for Fit {
    type State = ScoredResources;

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&(&pod.requests.real, pod.requests.non_zero));
        Reuse::PerNode
    }

    fn prescore(&self, pod: &PodInfo, cluster: &mut Cluster, _: &[NodeIdx]) -> PreScore<ScoredResources> {
        let scored = self.resources.iter().filter_map(|spec| {
            let resource = column_of(&spec.name, cluster);
            let amount = match resource {
                Resource::Cpu => pod.requests.non_zero.0,
                Resource::Memory => pod.requests.non_zero.1,
                Resource::EphemeralStorage => pod.requests.real.ephemeral_storage,
                // What the pod does not ask for does not make a node better or worse.
                Resource::Scalar(id) => Some(pod.requests.real.scalar(id)).filter(|amount| *amount != 0)?,
            };
            Some((resource, amount, spec.weight))
        });
        PreScore::Run(ScoredResources(scored.collect()))
    }

    fn score(&self, ScoredResources(scored): &ScoredResources, _: &PodInfo, node: NodeRef<'_>) -> i64 {
        self.scorer.score(scored.iter().filter_map(|(resource, amount, weight)| {
            let allocatable = node.allocatable(*resource);
            let requested = node.non_zero_requested(*resource) + amount;
            (allocatable != 0).then_some(Usage { requested, allocatable, weight: *weight })
        }))
    }
}
