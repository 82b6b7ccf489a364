//! NetworkPolicy: which pods of this node may be reached, and whom they may reach.
//!
//! Packets are looked at where they pass between a pod and something that is not its own node: what the node itself sends
//! to its pods, such as probes, always passes. Pods and namespaces are watched only while there is a policy.

mod model;
mod ranges;
mod render;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use client::informer::{Event, Selection, SharedInformer, SharedInformerFactory, trim_pod};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::nft::{Table, Writer};
use crate::{LOOKS, RETRY};
pub(crate) use render::TABLE;

use model::{Direction, Labels, PodFacts, Protocol, World, namespace_labels};

/// Changes that come close together are written together.
const GATHER: Duration = Duration::from_millis(20);

/// Cluster DNS runs beside the pods; to policies it is the pod that they expect.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_SERVICE: &str = "kubernetes.io/service-name=kube-dns";
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");

/// What policies are made of, watched.
struct Sources {
    policies: SharedInformer<NetworkPolicy>,
    peers: Option<Peers>,
}

struct Peers {
    pods: SharedInformer<Pod>,
    namespaces: SharedInformer<Namespace>,
    dns: SharedInformer<EndpointSlice>,
    _watched: DropGuard,
}

/// Enforces the policies until `stop`.
pub(crate) async fn run(node: String, client: kube::Client, stop: CancellationToken) {
    let informers = SharedInformerFactory::new(client.clone(), stop.clone());
    let changed = Arc::new(Notify::new());
    let mut sources = Sources { policies: informers.informer(), peers: None };
    let notify = Arc::clone(&changed);
    sources.policies.on_event(move |_| notify.notify_one());
    if stop.run_until_cancelled(informers.synced()).await != Some(true) {
        return;
    }
    let mut writer = Writer::new(render::TABLE);
    let mut next_look = Instant::now() + LOOKS;
    loop {
        if sources.policies.lister().is_empty() {
            sources.peers = None;
        } else if sources.peers.is_none() {
            let watched = stop.child_token();
            let informers = SharedInformerFactory::new(client.clone(), watched.clone());
            informers.trim(trim_pod);
            sources.peers = Some(Peers::watch(&informers, watched.drop_guard(), &changed));
            if stop.run_until_cancelled(informers.synced()).await != Some(true) {
                return;
            }
        }
        let pause = match writer.write(sources.table(&node)).await {
            Ok(()) => next_look.saturating_duration_since(Instant::now()),
            Err(error) => {
                tracing::error!(%error, "network policies could not be written");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed.notified() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(pause) => {
                if !writer.is_whole().await {
                    tracing::warn!("the rules of network policies were changed by somebody else and are restored");
                }
                next_look = Instant::now() + LOOKS;
            }
        }
    }
}

impl Peers {
    fn watch(informers: &SharedInformerFactory, watched: DropGuard, changed: &Arc<Notify>) -> Self {
        let pods = informers.informer::<Pod>();
        let namespaces = informers.informer::<Namespace>();
        let dns = informers.namespaced::<EndpointSlice>(DNS_NAMESPACE, Selection::labels(DNS_SERVICE));
        let notify = Arc::clone(changed);
        pods.on_event(move |event| {
            let differs = match event {
                Event::Updated { old, new } => PodFacts::of(old) != PodFacts::of(new),
                Event::Added(pod) | Event::Deleted(pod) => PodFacts::of(pod).is_some(),
            };
            if differs {
                notify.notify_one();
            }
        });
        let notify = Arc::clone(changed);
        namespaces.on_event(move |event| {
            let labels = |namespace: &Arc<Namespace>| namespace.metadata.labels.clone();
            if event.old().map(labels) != event.now().map(labels) {
                notify.notify_one();
            }
        });
        let notify = Arc::clone(changed);
        dns.on_event(move |_| notify.notify_one());
        Peers { pods, namespaces, dns, _watched: watched }
    }
}

impl Sources {
    fn table(&self, node: &str) -> Table {
        let policies = self.policies.lister().list();
        let Some(peers) = self.peers.as_ref().filter(|_| !policies.is_empty()) else { return Table::default() };
        let world = World {
            node: node.to_owned(),
            policies,
            namespaces: peers.namespaces.lister().list().iter().map(|n| namespace_labels(n)).collect(),
            pods: peers.pods.lister().list().iter().filter_map(|pod| PodFacts::of(pod)).collect(),
            dns: peers.dns.lister().list().iter().map(|slice| dns_facts(slice)).collect(),
        };
        render::table(&world.isolation(Direction::Ingress), &world.isolation(Direction::Egress))
    }
}

/// Cluster DNS as policies see it: the endpoints of its Service that are no pods.
fn dns_facts(slice: &EndpointSlice) -> PodFacts {
    let own = slice.endpoints.iter().flatten().filter(|e| e.target_ref.is_none());
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        Some((port.name.clone().unwrap_or_default(), Protocol::parse(port.protocol.as_deref()), number))
    });
    PodFacts {
        namespace: DNS_NAMESPACE.to_owned(),
        labels: Labels::from([(DNS_LABEL.0.to_owned(), DNS_LABEL.1.to_owned())]),
        node: String::new(),
        ips: own.flat_map(|e| e.addresses.iter().filter_map(|ip| ip.parse().ok())).collect(),
        ports: ports.collect(),
    }
}
