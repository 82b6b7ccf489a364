//! NodeResourcesFit and NodeResourcesBalancedAllocation: what pods ask for against what nodes have.

mod balanced;
mod fit;
mod scorer;

pub(super) use balanced::BalancedAllocation;
pub(super) use fit::Fit;

use serde::Deserialize;

use crate::cluster::{Cluster, Resource};

/// A resource that scores look at, and how much it weighs against others.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResourceSpec {
    name: String,
    /// 1 to 100.
    #[serde(default = "one")]
    weight: i64,
}

fn one() -> i64 {
    1
}

/// CPU and memory alike.
fn default_resources() -> Vec<ResourceSpec> {
    ["cpu", "memory"].map(|name| ResourceSpec { name: name.to_owned(), weight: 1 }).into()
}

fn check_resources(resources: &[ResourceSpec], path: &str, mistakes: &mut Vec<String>) {
    for (at, resource) in resources.iter().enumerate() {
        if resource.name.is_empty() {
            mistakes.push(format!("{path}[{at}].name: Required value"));
        }
        if !(1..=100).contains(&resource.weight) {
            mistakes.push(format!(
                "{path}[{at}].weight: Invalid value: {}: resource weight of {} not in valid range [1, 100]",
                resource.weight, resource.name
            ));
        }
    }
}

/// The column that is meant by a resource's name.
fn column_of(name: &str, cluster: &mut Cluster) -> Resource {
    match name {
        "cpu" => Resource::Cpu,
        "memory" => Resource::Memory,
        "ephemeral-storage" => Resource::EphemeralStorage,
        scalar => Resource::Scalar(cluster.intern_scalar(scalar)),
    }
}
