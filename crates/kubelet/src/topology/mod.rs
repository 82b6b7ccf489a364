//! Topology manager (KEP-693): before anything of a pod runs, its containers get CPUs, memory and devices of the same NUMA
//! nodes, as far as the policy asks for that.
//!
//! It knows what managers would like and tells them what is decided; who has what is theirs to know.

mod hints;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::Mutex;

pub(crate) use hints::{Hint, Hints, Policy};

use crate::context::Context;
use crate::numa::Nodes;
use crate::pod::admission::Refusal;
use crate::pod::plan;

/// What is aligned as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scope {
    #[default]
    Container,
    Pod,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyPolicy {
    pub(crate) policy: Policy,
    pub(crate) scope: Scope,
    pub(crate) prefers_closest: bool,
    pub(crate) max_nodes: usize,
}

impl Default for TopologyPolicy {
    /// Upstream's defaults.
    fn default() -> Self {
        TopologyPolicy { policy: Policy::None, scope: Scope::Container, prefers_closest: false, max_nodes: 8 }
    }
}

pub(crate) struct Topology {
    policy: TopologyPolicy,
    nodes: Nodes,
    /// One pod at a time: what is free when it is asked for must be free when it is given.
    turn: Mutex<()>,
}

impl Topology {
    pub(crate) fn new(policy: TopologyPolicy, nodes: Nodes) -> Result<Self, String> {
        if policy.policy != Policy::None && nodes.len() > policy.max_nodes {
            return Err(format!(
                "unsupported on machines with more than {} NUMA Nodes; consider setting the topology manager policy option max-allowable-numa-nodes",
                policy.max_nodes
            ));
        }
        Ok(Topology { policy, nodes, turn: Mutex::default() })
    }

    fn decide(&self, all: &[Hints]) -> Result<Hint, Refusal> {
        let decided = self.policy.policy.decide(all, &self.nodes, self.policy.prefers_closest);
        decided.ok_or_else(|| Refusal {
            reason: "TopologyAffinityError".to_owned(),
            message: "Resources cannot be allocated with Topology locality".to_owned(),
        })
    }
}

/// Gives the pod's containers what is theirs alone, or says why it cannot run here. What it has already it keeps.
pub(crate) async fn admit(context: &Context, pod: &Pod) -> Result<(), Refusal> {
    let topology = &context.topology;
    let _turn = match topology.policy.policy {
        Policy::None => None,
        _ => Some(topology.turn.lock().await),
    };
    let of_pod = match topology.policy.scope {
        _ if topology.policy.policy == Policy::None => Some(topology.decide(&[])?),
        Scope::Pod => Some(topology.decide(&wishes(context, pod, None))?),
        Scope::Container => None,
    };
    for container in plan::init_containers(pod).iter().chain(plan::containers(pod)) {
        let hint = match of_pod {
            Some(hint) => hint,
            None => topology.decide(&wishes(context, pod, Some(container)))?,
        };
        give(context, pod, container, hint).await.map_err(|message| Refusal {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!("Allocate failed due to {message}, which is unexpected"),
        })?;
    }
    Ok(())
}

/// What the managers would like for one container, or for the pod as a whole.
fn wishes(context: &Context, pod: &Pod, container: Option<&Container>) -> Vec<Hints> {
    let mut all = vec![context.cpus.wishes(pod, container)];
    all.extend(context.memory.wishes(pod, container));
    all.extend(context.devices.wishes(pod, container, &context.topology.nodes));
    all
}

async fn give(context: &Context, pod: &Pod, container: &Container, hint: Hint) -> Result<(), String> {
    context.cpus.allocate(pod, container, hint.mask)?;
    context.memory.allocate(pod, container, hint)?;
    context.devices.reserve(pod, container, hint.mask).await.map_err(|e| e.0)
}
