//! The plugins, a module each, and the one list of them.

mod default_binder;
mod default_preemption;
mod dynamic_resources;
mod gang_scheduling;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod pod_topology_spread;
mod priority_sort;
mod scheduling_gates;
mod taint_toleration;
mod volumes;

use serde::de::DeserializeOwned;

use component_base::feature_gates::Gate;

use crate::config::decode_args;
use crate::framework::{PluginContext, Points, PointsOf, Registry};

/// Upstream's default plugins: in the order in which they are enabled at every extension point that they have, with
/// their weights where they score.
pub(crate) const DEFAULTS: &[(&str, i32)] = &[
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 0),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
];

/// Gangs of pods are scheduled together or not at all.
pub(crate) use gang_scheduling::GangScheduling;

pub(crate) const GANG_SCHEDULING: Gate = Gate { name: "GangScheduling", default: false, locked: false };

/// All plugins of this crate.
#[must_use]
pub fn in_tree() -> Registry {
    Registry::default()
        .with("SchedulingGates", |_, _| Ok(PointsOf::new(scheduling_gates::SchedulingGates).pre_enqueue().points()))
        .with("PrioritySort", |_, _| Ok(PointsOf::new(priority_sort::PrioritySort).queue_sort().points()))
        .with("NodeUnschedulable", |_, _| Ok(PointsOf::new(node_unschedulable::NodeUnschedulable).filter().points()))
        .with("NodeName", |_, _| Ok(PointsOf::new(node_name::NodeName).filter().points()))
        .with("TaintToleration", |_, _| Ok(PointsOf::new(taint_toleration::TaintToleration).filter().score().points()))
        .with(
            "NodeAffinity",
            with_args("NodeAffinityArgs", |args, _| {
                Ok(PointsOf::new(node_affinity::NodeAffinity::new(&args)).filter().score().points())
            }),
        )
        .with("NodePorts", |_, _| Ok(PointsOf::new(node_ports::NodePorts).filter().points()))
        .with(
            "NodeResourcesFit",
            with_args("NodeResourcesFitArgs", |args, _| {
                node_resources::Fit::new(args).map(|fit| PointsOf::new(fit).filter().score().points())
            }),
        )
        .with("VolumeRestrictions", |_, context| {
            Ok(PointsOf::new(volumes::VolumeRestrictions::new(&context.listers)).filter().points())
        })
        .with("NodeVolumeLimits", |_, context| {
            Ok(PointsOf::new(volumes::NodeVolumeLimits::new(&context.listers)).filter().points())
        })
        .with(
            "VolumeBinding",
            with_args("VolumeBindingArgs", |args, context| {
                volumes::VolumeBinding::new(&args, context.client.clone(), &context.listers)
                    .map(|binding| PointsOf::new(binding).filter().reserve().pre_bind().points())
            }),
        )
        .with("VolumeZone", |_, context| {
            Ok(PointsOf::new(volumes::VolumeZone::new(&context.listers)).filter().points())
        })
        .with(
            "PodTopologySpread",
            with_args("PodTopologySpreadArgs", |args, context| {
                pod_topology_spread::PodTopologySpread::new(args, &context.listers)
                    .map(|spread| PointsOf::new(spread).filter().score().points())
            }),
        )
        .with(
            "InterPodAffinity",
            with_args("InterPodAffinityArgs", |args, _| {
                inter_pod_affinity::InterPodAffinity::new(args)
                    .map(|affinity| PointsOf::new(affinity).filter().score().points())
            }),
        )
        .with("GangScheduling", |_, context| {
            let gangs = GangScheduling::new(context);
            Ok(PointsOf::new(gangs).pre_enqueue().reserve().permit().points())
        })
        .with("DynamicResources", |_, context| {
            let plugin = dynamic_resources::DynamicResources::new(context.client.clone(), &context.listers);
            Ok(PointsOf::new(plugin).pre_enqueue().filter().post_filter().reserve().pre_bind().points())
        })
        .with(
            "DefaultPreemption",
            with_args("DefaultPreemptionArgs", |args, context| {
                default_preemption::DefaultPreemption::new(&args, &context.listers)
                    .map(|preemption| PointsOf::new(preemption).post_filter().points())
            }),
        )
        .with(
            "NodeResourcesBalancedAllocation",
            with_args("NodeResourcesBalancedAllocationArgs", |args, _| {
                node_resources::BalancedAllocation::new(args).map(|balanced| PointsOf::new(balanced).score().points())
            }),
        )
        .with("ImageLocality", |_, _| Ok(PointsOf::new(image_locality::ImageLocality).score().points()))
        .with("DefaultBinder", |_, context| {
            Ok(PointsOf::new(default_binder::DefaultBinder::new(context.client.clone())).bind().points())
        })
}

/// A plugin whose arguments are of a kind of their own.
fn with_args<A: DeserializeOwned + Default>(
    kind: &'static str,
    build: impl Fn(A, &PluginContext) -> Result<Points, String> + Send + Sync + 'static,
) -> impl Fn(&serde_json::Value, &PluginContext) -> Result<Points, String> + Send + Sync + 'static {
    move |args, context| build(decode_args(args, kind)?, context)
}
