//! NodeResourcesBalancedAllocation: nodes whose resources would be used more evenly with the pod are better.

use serde::Deserialize;

use super::{ResourceSpec, check_resources, column_of, default_resources};
use crate::cluster::{Cluster, NodeIdx, NodeRef, Resource};
use crate::framework::{MAX_NODE_SCORE, Plugin, PreScore, Reuse, Score, Signature};
use crate::pod::PodInfo;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BalancedArgs {
    resources: Vec<ResourceSpec>,
}

pub(crate) struct BalancedAllocation {
    resources: Vec<ResourceSpec>,
}

impl BalancedAllocation {
    /// # Errors
    /// All mistakes of the arguments, in one text.
    pub(crate) fn new(args: BalancedArgs) -> Result<Self, String> {
        let mut mistakes = Vec::new();
        check_resources(&args.resources, "resources", &mut mistakes);
        for (at, resource) in args.resources.iter().enumerate() {
            if resource.weight != 1 {
                mistakes.push(format!("resources[{at}].weight: Invalid value: {}: must be 1", resource.weight));
            }
        }
        let none = args.resources.is_empty();
        let resources = if none { default_resources() } else { args.resources };
        if mistakes.is_empty() { Ok(Self { resources }) } else { Err(mistakes.join(", ")) }
    }
}

impl Plugin for BalancedAllocation {
    const NAME: &'static str = "NodeResourcesBalancedAllocation";
}

/// Resources, and what the pod adds.
pub(crate) struct Added(Vec<(Resource, i64)>);

impl Score for BalancedAllocation {
    type State = Added;

    fn sign(&self, pod: &PodInfo, signature: &mut Signature) -> Reuse {
        signature.add(&pod.requests.real);
        Reuse::PerNode
    }

    fn prescore(&self, pod: &PodInfo, cluster: &mut Cluster, _: &[NodeIdx]) -> PreScore<Added> {
        let real = &pod.requests.real;
        let added = self.resources.iter().map(|spec| match column_of(&spec.name, cluster) {
            Resource::Scalar(id) => (Resource::Scalar(id), real.scalar(id)),
            Resource::Cpu => (Resource::Cpu, real.milli_cpu),
            Resource::Memory => (Resource::Memory, real.memory),
            Resource::EphemeralStorage => (Resource::EphemeralStorage, real.ephemeral_storage),
        });
        let mut added: Vec<_> = added.collect();
        // A pod that asks for nothing keeps every node as it is: it would go where others of its kind are.
        if added.iter().all(|(_, amount)| *amount == 0) {
            return PreScore::Skip;
        }
        added.retain(|(resource, amount)| *amount != 0 || !matches!(resource, Resource::Scalar(_)));
        PreScore::Run(Added(added))
    }

    /// 50 for a node that goes from even to one-sided, 75 if nothing changes, 100 for the opposite of the first.
    fn score(&self, Added(added): &Added, _: &PodInfo, node: NodeRef<'_>) -> i64 {
        let balance_with = |share: fn(i64) -> i64| {
            balance(added.iter().filter_map(|(resource, amount)| {
                let allocatable = node.allocatable(*resource);
                (allocatable != 0).then(|| fraction(node.requested(*resource) + share(*amount), allocatable))
            }))
        };
        let (with, without) = (balance_with(|amount| amount), balance_with(|_| 0));
        MAX_NODE_SCORE / 2 + (MAX_NODE_SCORE / 2 + with - without) / 2
    }
}

#[expect(clippy::cast_precision_loss, reason = "the rule is stated in floating point")]
fn fraction(requested: i64, allocatable: i64) -> f64 {
    (requested as f64 / allocatable as f64).min(1.0)
}

/// 100 if all fractions are the same, less by their standard deviation.
#[expect(clippy::cast_possible_truncation, reason = "between 0 and 100")]
fn balance(fractions: impl Iterator<Item = f64> + Clone) -> i64 {
    let count = fractions.clone().count();
    let deviation = match count {
        0 | 1 => 0.0,
        2 => {
            let mut two = fractions;
            let (a, b) = (two.next().unwrap_or_default(), two.next().unwrap_or_default());
            ((a - b) / 2.0).abs()
        }
        count => {
            #[expect(clippy::cast_precision_loss, reason = "a count of resources")]
            let count = count as f64;
            let mean = fractions.clone().sum::<f64>() / count;
            (fractions.map(|f| (f - mean) * (f - mean)).sum::<f64>() / count).sqrt()
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let most = MAX_NODE_SCORE as f64;
    ((1.0 - deviation) * most) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_use_is_best() {
        for (fractions, want) in [
            (vec![], 100),
            (vec![0.7], 100),
            (vec![0.5, 0.5], 100),
            (vec![1.0, 0.0], 50),
            (vec![0.25, 0.75], 75),
            (vec![0.0, 0.0, 1.0], 52),
        ] {
            assert_eq!(balance(fractions.iter().copied()), want, "{fractions:?}");
        }
    }
}
