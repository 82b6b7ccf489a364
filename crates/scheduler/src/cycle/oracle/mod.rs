//! Decisions against an oracle: random clusters and pods, the same feasible sets and final scores as a slow, literal
//! reference.

mod generate;
mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::{Classes, Cycle, Feasible};
use crate::cluster::{Cluster, NodeRef};
use crate::config::Config;
use crate::framework::{PluginContext, WaitingPods};
use crate::gangs::Gangs;
use crate::listers::{Listers, fixed};
use crate::profiles::Profiles;
use generate::{Tape, World};

fn profiles(world: &World) -> Profiles {
    let config = Config::default();
    let context = PluginContext {
        client: None,
        listers: Listers { services: fixed(world.services.clone()), ..Listers::empty() },
        waiting_pods: WaitingPods::default(),
        gangs: Gangs::default(),
        feature_gates: config.feature_gates.clone(),
    };
    Profiles::build(&config.profiles, &config.registry, &context).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

fn cluster(world: &World) -> Cluster {
    let mut cluster = Cluster::default();
    for namespace in &world.namespaces {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        cluster.set_namespace(&name, Some(namespace.metadata.labels.clone().unwrap_or_default()));
    }
    for node in &world.nodes {
        cluster.set_node(Arc::new(node.clone()));
    }
    for pod in &world.placed {
        let pod = cluster.pod_info(Arc::new(pod.clone()));
        cluster.set_pod(pod);
    }
    cluster
}

/// The feasible nodes, each with its final score.
fn decide(profiles: &Profiles, cluster: &mut Cluster, classes: &mut Classes, world: &World) -> BTreeMap<String, i64> {
    let (at, profile) = profiles.find("default-scheduler").expect("the default profile");
    let pod = cluster.pod_info(Arc::new(world.pod.clone()));
    let mut cycle = Cycle::start(at, profile, &pod, cluster, classes).unwrap_or_else(|error| panic!("{error:?}"));
    let feasible = match cycle.filter(&mut 0).unwrap_or_else(|error| panic!("{error:?}")) {
        Feasible::Class => cycle.class.verdicts.feasible().collect(),
        Feasible::These(nodes) => nodes,
    };
    let scores = cycle.scores(&feasible).unwrap_or_else(|error| panic!("{error:?}"));
    let name =
        |at| cycle.cluster.nodes().get(at).map(NodeRef::name).map(std::string::ToString::to_string).unwrap_or_default();
    feasible.iter().copied().map(name).zip(scores).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn decides_as_the_reference_does(tape in proptest::collection::vec(any::<u16>(), 400)) {
        let world = World::of(&mut Tape::new(&tape));
        let got = decide(&profiles(&world), &mut cluster(&world), &mut Classes::default(), &world);
        prop_assert_eq!(got, reference::decide(&world));
    }

    /// What was kept for a class is right after nodes and pods changed.
    #[test]
    fn decides_the_same_from_what_was_kept(tape in proptest::collection::vec(any::<u16>(), 400), more in any::<u16>()) {
        let mut tape = Tape::new(&tape);
        let mut world = World::of(&mut tape);
        let (profiles, mut classes, mut cluster) = (profiles(&world), Classes::default(), cluster(&world));
        decide(&profiles, &mut cluster, &mut classes, &world);
        for step in 0..4 {
            world.change(&mut tape, step, more);
            generate::apply(&world, &mut cluster);
            let got = decide(&profiles, &mut cluster, &mut classes, &world);
            prop_assert_eq!(got, reference::decide(&world));
        }
    }
}
