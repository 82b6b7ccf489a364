//! The rules as they are documented, one after the other, over the objects as they are. It looks at everything every time.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodAffinityTerm, Taint, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::generate::World;

type Labels = BTreeMap<String, String>;

fn labels_of(labels: &Option<Labels>) -> Labels {
    labels.clone().unwrap_or_default()
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap()
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.metadata.labels.as_ref()?.get(key)
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap()
}

/// Without a selector nothing is selected.
fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return false };
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten().all(|own| {
        let value = labels.get(&own.key);
        let listed = value.is_some_and(|value| own.values.iter().flatten().any(|own| own == value));
        match &*own.operator {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("{other}"),
        }
    });
    equal && expressions
}

fn quantity(text: &str) -> i64 {
    if let Some(milli) = text.strip_suffix('m') {
        milli.parse().unwrap()
    } else if let Some(mebi) = text.strip_suffix("Mi") {
        mebi.parse::<i64>().unwrap() * 1024 * 1024
    } else {
        text.parse().unwrap()
    }
}

fn container(pod: &Pod) -> &Container {
    &pod.spec.as_ref().unwrap().containers[0]
}

/// CPU in thousandths and memory in bytes; what is not asked for counts as `cpu` and `memory`.
fn requests(pod: &Pod, cpu: i64, memory: i64) -> (i64, i64) {
    let requests = container(pod).resources.as_ref().and_then(|own| own.requests.clone()).unwrap_or_default();
    let amount = |name: &str, none: i64| requests.get(name).map_or(none, |own| quantity(&own.0));
    (amount("cpu", cpu), amount("memory", memory))
}

fn allocatable(node: &Node) -> (i64, i64, i64) {
    let list = node.status.as_ref().unwrap().allocatable.as_ref().unwrap();
    (quantity(&list["cpu"].0), quantity(&list["memory"].0), quantity(&list["pods"].0))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    toleration.key.as_deref() == Some(&taint.key) && toleration.operator.as_deref() == Some("Exists")
}

fn tolerated(pod: &Pod, taint: &Taint) -> bool {
    pod.spec.as_ref().unwrap().tolerations.iter().flatten().any(|own| tolerates(own, taint))
}

fn taints(node: &Node) -> Vec<Taint> {
    node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default()
}

fn keeps_away(taint: &Taint) -> bool {
    taint.effect == "NoSchedule" || taint.effect == "NoExecute"
}

fn node_selector_matches(pod: &Pod, node: &Node) -> bool {
    let selector = pod.spec.as_ref().unwrap().node_selector.clone().unwrap_or_default();
    selector.iter().all(|(key, value)| label(node, key) == Some(value))
}

/// The world with its pods sorted by node.
struct View<'a> {
    world: &'a World,
    on: BTreeMap<&'a str, Vec<&'a Pod>>,
}

impl<'a> View<'a> {
    fn pods_on(&self, node: &Node) -> &[&'a Pod] {
        self.on.get(name(node)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Every pod on a node that exists, with that node.
    fn all(&self) -> impl Iterator<Item = (&'a Node, &'a Pod)> + '_ {
        self.world.nodes.iter().flat_map(|node| self.pods_on(node).iter().map(move |pod| (node, *pod)))
    }

    fn namespace_labels(&self, namespace: &str) -> Labels {
        let found = self.world.namespaces.iter().find(|own| own.metadata.name.as_deref() == Some(namespace));
        found.map(|own| labels_of(&own.metadata.labels)).unwrap_or_default()
    }

    /// Whether the term of `owner` means the pod.
    fn means(&self, term: &PodAffinityTerm, owner: &Pod, pod: &Pod) -> bool {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace(owner).to_owned());
        }
        let by_selector = term.namespace_selector.as_ref();
        let there = namespaces.iter().any(|own| own == namespace(pod))
            || (by_selector.is_some() && selects(by_selector, &self.namespace_labels(namespace(pod))));
        let (own, its) = (labels_of(&owner.metadata.labels), labels_of(&pod.metadata.labels));
        let keys = |keys: &Option<Vec<String>>| keys.clone().unwrap_or_default();
        let same =
            keys(&term.match_label_keys).iter().all(|key| !own.contains_key(key) || its.get(key) == own.get(key));
        let other =
            keys(&term.mismatch_label_keys).iter().all(|key| !own.contains_key(key) || its.get(key) != own.get(key));
        there && selects(term.label_selector.as_ref(), &its) && same && other
    }
}

#[derive(Default)]
struct Terms {
    near: Vec<PodAffinityTerm>,
    far: Vec<PodAffinityTerm>,
    likes: Vec<(i64, PodAffinityTerm)>,
}

fn terms(pod: &Pod) -> Terms {
    let Some(affinity) = pod.spec.as_ref().unwrap().affinity.as_ref() else { return Terms::default() };
    let (near, far) =
        (affinity.pod_affinity.clone().unwrap_or_default(), affinity.pod_anti_affinity.clone().unwrap_or_default());
    let mut likes = Vec::new();
    for own in near.preferred_during_scheduling_ignored_during_execution.unwrap_or_default() {
        likes.push((i64::from(own.weight), own.pod_affinity_term));
    }
    for own in far.preferred_during_scheduling_ignored_during_execution.unwrap_or_default() {
        likes.push((-i64::from(own.weight), own.pod_affinity_term));
    }
    Terms {
        near: near.required_during_scheduling_ignored_during_execution.unwrap_or_default(),
        far: far.required_during_scheduling_ignored_during_execution.unwrap_or_default(),
        likes,
    }
}

/// In one domain of the topology.
fn together(a: &Node, b: &Node, key: &str) -> bool {
    label(a, key).is_some() && label(a, key) == label(b, key)
}

fn affinity_allows(view: &View<'_>, node: &Node) -> bool {
    let pod = &view.world.pod;
    let own = terms(pod);
    let wanted = |other: &Pod| own.near.iter().all(|term| view.means(term, pod, other));
    if !own.near.is_empty() {
        if own.near.iter().any(|term| label(node, &term.topology_key).is_none()) {
            return false;
        }
        let somebody = own
            .near
            .iter()
            .all(|term| view.all().any(|(at, other)| wanted(other) && together(at, node, &term.topology_key)));
        let counted = |(at, other): (&Node, &Pod)| {
            wanted(other) && own.near.iter().any(|term| label(at, &term.topology_key).is_some())
        };
        let first = !view.all().any(counted) && wanted(pod);
        if !somebody && !first {
            return false;
        }
    }
    let unwanted = own.far.iter().any(|term| {
        view.all().any(|(at, other)| view.means(term, pod, other) && together(at, node, &term.topology_key))
    });
    let not_wanted = view.all().any(|(at, other)| {
        let theirs = terms(other).far;
        theirs.iter().any(|term| view.means(term, other, pod) && together(at, node, &term.topology_key))
    });
    !unwanted && !not_wanted
}

/// A constraint's pods: none for an empty selector, and none that are being deleted.
fn counted(constraint: &TopologySpreadConstraint, pod: &Pod, other: &Pod) -> bool {
    namespace(other) == namespace(pod)
        && other.metadata.deletion_timestamp.is_none()
        && !is_empty(constraint, pod)
        && selected(constraint, pod, other)
}

fn keys(constraint: &TopologySpreadConstraint, pod: &Pod) -> Vec<String> {
    let own = labels_of(&pod.metadata.labels);
    constraint.match_label_keys.iter().flatten().filter(|key| own.contains_key(*key)).cloned().collect()
}

fn is_empty(constraint: &TopologySpreadConstraint, pod: &Pod) -> bool {
    constraint.label_selector.as_ref().is_some_and(|own| {
        own.match_labels.iter().flatten().count() == 0 && own.match_expressions.iter().flatten().count() == 0
    }) && keys(constraint, pod).is_empty()
}

fn selected(constraint: &TopologySpreadConstraint, pod: &Pod, other: &Pod) -> bool {
    let (own, its) = (labels_of(&pod.metadata.labels), labels_of(&other.metadata.labels));
    selects(constraint.label_selector.as_ref(), &its)
        && keys(constraint, pod).iter().all(|key| its.get(key) == own.get(key))
}

fn included(constraint: &TopologySpreadConstraint, pod: &Pod, node: &Node) -> bool {
    let affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore") || node_selector_matches(pod, node);
    let taints = constraint.node_taints_policy.as_deref() != Some("Honor")
        || taints(node).iter().all(|taint| !keeps_away(taint) || tolerated(pod, taint));
    affinity && taints
}

fn constraints(pod: &Pod, when: &str) -> Vec<TopologySpreadConstraint> {
    let all = pod.spec.as_ref().unwrap().topology_spread_constraints.clone().unwrap_or_default();
    all.into_iter().filter(|own| own.when_unsatisfiable == when).collect()
}

fn spread_allows(view: &View<'_>, node: &Node) -> bool {
    let pod = &view.world.pod;
    let all = constraints(pod, "DoNotSchedule");
    all.iter().all(|own| {
        let Some(here) = label(node, &own.topology_key) else { return false };
        let mut counts: BTreeMap<&String, i64> = BTreeMap::new();
        for other in &view.world.nodes {
            let complete = all.iter().all(|own| label(other, &own.topology_key).is_some());
            if complete && included(own, pod, other) {
                let count = view.pods_on(other).iter().filter(|other| counted(own, pod, other)).count();
                *counts.entry(label(other, &own.topology_key).unwrap()).or_default() += i64::try_from(count).unwrap();
            }
        }
        let enough = i32::try_from(counts.len()).unwrap() >= own.min_domains.unwrap_or(1);
        let least = if enough { counts.values().copied().min().unwrap_or(0) } else { 0 };
        let itself = i64::from(selected(own, pod, pod));
        counts.get(here).copied().unwrap_or(0) + itself - least <= i64::from(own.max_skew)
    })
}

fn has_port(pod: &Pod) -> bool {
    container(pod).ports.is_some()
}

fn feasible(view: &View<'_>, node: &Node) -> bool {
    let pod = &view.world.pod;
    let there = view.pods_on(node);
    let (cpu, memory, pods) = allocatable(node);
    let used = |pick: fn((i64, i64)) -> i64| there.iter().map(|own| pick(requests(own, 0, 0))).sum::<i64>();
    let (wants_cpu, wants_memory) = requests(pod, 0, 0);
    node.spec.as_ref().unwrap().unschedulable != Some(true)
        && taints(node).iter().all(|taint| !keeps_away(taint) || tolerated(pod, taint))
        && node_selector_matches(pod, node)
        && !(has_port(pod) && there.iter().any(|own| has_port(own)))
        && i64::try_from(there.len()).unwrap() < pods
        && (wants_cpu == 0 || wants_cpu <= cpu - used(|(cpu, _)| cpu))
        && (wants_memory == 0 || wants_memory <= memory - used(|(_, memory)| memory))
        && spread_allows(view, node)
        && affinity_allows(view, node)
}

// === Scores ===

fn by_highest(scores: &[i64], reversed: bool) -> Vec<i64> {
    let highest = scores.iter().copied().max().unwrap_or(0);
    let scale = |score: &i64| if highest == 0 { 0 } else { 100 * score / highest };
    scores.iter().map(|score| if reversed { 100 - scale(score) } else { scale(score) }).collect()
}

fn least_allocated(view: &View<'_>, node: &Node) -> i64 {
    let assumed = |pod: &Pod| requests(pod, 100, 200 * 1024 * 1024);
    let (cpu, memory, _) = allocatable(node);
    let all = || view.pods_on(node).iter().copied().chain([&view.world.pod]);
    let share = |total: i64, used: i64| if used > total { 0 } else { (total - used) * 100 / total };
    (share(cpu, all().map(|pod| assumed(pod).0).sum()) + share(memory, all().map(|pod| assumed(pod).1).sum())) / 2
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "the rule is in floating point")]
fn balanced(view: &View<'_>, node: &Node) -> i64 {
    let own = requests(&view.world.pod, 0, 0);
    if own == (0, 0) {
        return 0;
    }
    let (cpu, memory, _) = allocatable(node);
    let used = view.pods_on(node).iter().map(|pod| requests(pod, 0, 0)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let evenness = |cpu_used: i64, memory_used: i64| {
        let fraction = |used: i64, total: i64| (used as f64 / total as f64).min(1.0);
        ((1.0 - ((fraction(cpu_used, cpu) - fraction(memory_used, memory)) / 2.0).abs()) * 100.0) as i64
    };
    50 + (50 + evenness(used.0 + own.0, used.1 + own.1) - evenness(used.0, used.1)) / 2
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "the rule is in floating point")]
fn image_locality(view: &View<'_>, node: &Node) -> i64 {
    let image = container(&view.world.pod).image.clone().unwrap();
    let image = if image.contains(':') { image } else { format!("{image}:latest") };
    let size = |node: &Node| {
        let images = node.status.as_ref().unwrap().images.clone().unwrap_or_default();
        images
            .iter()
            .filter(|own| own.names.iter().flatten().any(|own| *own == image))
            .map(|own| own.size_bytes.unwrap_or(0))
            .next_back()
    };
    let (least, most) = (23 * 1024 * 1024, 1000 * 1024 * 1024);
    let having = view.world.nodes.iter().filter(|node| size(node).is_some()).count();
    let bytes = size(node).map_or(0, |size| (size as f64 * (having as f64 / view.world.nodes.len() as f64)) as i64);
    100 * (bytes.clamp(least, most) - least) / (most - least)
}

/// The constraints that a pod without any has: those of its services' pods.
fn default_constraints(world: &World) -> Vec<TopologySpreadConstraint> {
    let labels = labels_of(&world.pod.metadata.labels);
    let mut selector = Labels::new();
    for service in &world.services {
        let own = service.spec.as_ref().unwrap().selector.clone().unwrap();
        if service.metadata.namespace == world.pod.metadata.namespace
            && own.iter().all(|(key, value)| labels.get(key) == Some(value))
        {
            selector.extend(own);
        }
    }
    if selector.is_empty() {
        return Vec::new();
    }
    let selector = LabelSelector { match_labels: Some(selector), match_expressions: None };
    [("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5)]
        .map(|(key, max_skew)| TopologySpreadConstraint {
            topology_key: key.to_owned(),
            max_skew,
            label_selector: Some(selector.clone()),
            ..TopologySpreadConstraint::default()
        })
        .into()
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "the rule is in floating point")]
fn spread(view: &View<'_>, nodes: &[&Node]) -> Vec<i64> {
    let pod = &view.world.pod;
    let own = pod.spec.as_ref().unwrap().topology_spread_constraints.clone().unwrap_or_default();
    let (all, needs_all) = match own.is_empty() {
        true => (default_constraints(view.world), false),
        false => (constraints(pod, "ScheduleAnyway"), true),
    };
    if all.is_empty() {
        return vec![0; nodes.len()];
    }
    let complete = |node: &Node| !needs_all || all.iter().all(|own| label(node, &own.topology_key).is_some());
    let counting: Vec<&Node> = nodes.iter().copied().filter(|node| complete(node)).collect();
    let raw: Vec<Option<i64>> = nodes
        .iter()
        .map(|node| {
            complete(node).then(|| {
                let mut score = 0.0;
                for own in &all {
                    let Some(here) = label(node, &own.topology_key) else { continue };
                    let on = |node: &Node| view.pods_on(node).iter().filter(|other| counted(own, pod, other)).count();
                    let (count, domains) = if own.topology_key == "kubernetes.io/hostname" {
                        (on(node), counting.len())
                    } else {
                        let there = |other: &&Node| label(other, &own.topology_key) == Some(here);
                        let counted = view.world.nodes.iter().filter(there);
                        let counted = counted.filter(|other| complete(other) && included(own, pod, other));
                        let domains: BTreeSet<Option<&String>> =
                            counting.iter().map(|node| label(node, &own.topology_key)).collect();
                        (counted.map(on).sum(), domains.len())
                    };
                    score += count as f64 * ((domains + 2) as f64).ln() + f64::from(own.max_skew - 1);
                }
                score.round() as i64
            })
        })
        .collect();
    let least = raw.iter().flatten().copied().min().unwrap_or(0);
    let most = raw.iter().flatten().copied().max().unwrap_or(0);
    let scale = |score: &Option<i64>| match score {
        None => 0,
        Some(_) if most == 0 => 100,
        Some(score) => 100 * (most + least - score) / most,
    };
    raw.iter().map(scale).collect()
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "the rule is in floating point")]
fn affinity(view: &View<'_>, nodes: &[&Node]) -> Vec<i64> {
    let pod = &view.world.pod;
    let raw: Vec<i64> = nodes
        .iter()
        .map(|node| {
            let mut sum = 0;
            for (at, other) in view.all() {
                for (weight, term) in &terms(pod).likes {
                    if view.means(term, pod, other) && together(at, node, &term.topology_key) {
                        sum += weight;
                    }
                }
                let theirs = terms(other);
                let hard = theirs.near.into_iter().map(|term| (1, term));
                for (weight, term) in hard.chain(theirs.likes) {
                    if view.means(&term, other, pod) && together(at, node, &term.topology_key) {
                        sum += weight;
                    }
                }
            }
            sum
        })
        .collect();
    let (least, most) = (raw.iter().copied().min().unwrap_or(0), raw.iter().copied().max().unwrap_or(0));
    let scale = |score: &i64| (100.0 * ((score - least) as f64 / (most - least) as f64)) as i64;
    if least == most { vec![0; raw.len()] } else { raw.iter().map(scale).collect() }
}

fn preferred(pod: &Pod, node: &Node) -> i64 {
    let affinity = pod.spec.as_ref().unwrap().affinity.as_ref().and_then(|own| own.node_affinity.as_ref());
    let terms = affinity.and_then(|own| own.preferred_during_scheduling_ignored_during_execution.clone());
    let ssd = label(node, "disk").is_some_and(|disk| disk == "ssd");
    terms.into_iter().flatten().filter(|_| ssd).map(|term| i64::from(term.weight)).sum()
}

pub(super) fn decide(world: &World) -> BTreeMap<String, i64> {
    let mut on: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in &world.placed {
        on.entry(pod.spec.as_ref().unwrap().node_name.as_deref().unwrap()).or_default().push(pod);
    }
    let view = View { world, on };
    let nodes: Vec<&Node> = world.nodes.iter().filter(|node| feasible(&view, node)).collect();
    let intolerable = |node: &&Node| {
        let prefers = taints(node).into_iter().filter(|taint| taint.effect == "PreferNoSchedule");
        i64::try_from(prefers.filter(|taint| !tolerated(&world.pod, taint)).count()).unwrap()
    };
    let columns = [
        (3, by_highest(&nodes.iter().map(intolerable).collect::<Vec<_>>(), true)),
        (2, by_highest(&nodes.iter().map(|node| preferred(&world.pod, node)).collect::<Vec<_>>(), false)),
        (1, nodes.iter().map(|node| least_allocated(&view, node)).collect()),
        (1, nodes.iter().map(|node| balanced(&view, node)).collect()),
        (1, nodes.iter().map(|node| image_locality(&view, node)).collect()),
        (2, spread(&view, &nodes)),
        (2, affinity(&view, &nodes)),
    ];
    let total = |at: usize| columns.iter().map(|(weight, scores)| weight * scores[at]).sum();
    nodes.iter().enumerate().map(|(at, node)| (name(node).to_owned(), total(at))).collect()
}
