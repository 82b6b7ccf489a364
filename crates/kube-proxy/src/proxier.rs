//! What the proxy keeps in mind: the rules of every Service, what changed, and the back end that writes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use client::ObjectKey;
use client::informer::Lister;
use component_base::program::Failed;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::config::Config;
use crate::iptables;
use crate::iptables::{Balancer, Iptables};
use crate::ipvs::{self, Ipvs};
use crate::local::{NodeFacts, Surroundings};
use crate::metrics::ProxyMetrics;
use crate::model::{self, BY_SERVICE, Family, Place, ServiceRules};
use crate::nftables::{self, Mark, Nftables};

/// A Service, shorter than by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServiceId(pub u32);

/// One Service's rules, before and after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<'a> {
    pub id: ServiceId,
    /// `namespace/name`
    pub key: &'a str,
    pub old: Option<&'a ServiceRules>,
    pub new: Option<&'a ServiceRules>,
}

/// The rules of every Service as they were last given to the back end.
#[derive(Default)]
pub(crate) struct Tracker {
    services: HashMap<ObjectKey, (ServiceId, ServiceRules)>,
    next: u32,
}

/// A change that owns what it tells of.
pub(crate) struct Changed {
    pub id: ServiceId,
    pub key: ObjectKey,
    pub old: Option<ServiceRules>,
}

/// What the kernel does not have yet.
#[derive(Default)]
pub(crate) struct Unwritten {
    changed: BTreeMap<ObjectKey, Changed>,
    /// When the endpoints that changed were asked to.
    pub triggers: Vec<SystemTime>,
}

impl Unwritten {
    /// What was last written of a Service stays the old, however often it changes before it is written again.
    pub(crate) fn add(&mut self, changed: Vec<Changed>, triggers: Vec<SystemTime>) {
        for changed in changed {
            self.changed.entry(changed.key.clone()).or_insert(changed);
        }
        self.triggers.extend(triggers);
    }

    pub(crate) fn changed(&self) -> impl Iterator<Item = &Changed> {
        self.changed.values()
    }
}

impl Tracker {
    /// Takes in what became of these Services. Gives those whose rules changed.
    pub(crate) fn update(
        &mut self,
        keys: impl IntoIterator<Item = ObjectKey>,
        rules: impl Fn(&ObjectKey) -> Option<ServiceRules>,
    ) -> Vec<Changed> {
        let mut changed = Vec::new();
        for key in keys {
            let known = self.services.remove(&key);
            match (known, rules(&key)) {
                (None, None) => {}
                (Some((id, old)), None) => changed.push(Changed { id, key, old: Some(old) }),
                (known, Some(new)) => {
                    let (id, old) = match known {
                        Some((id, old)) => (id, Some(old)),
                        None => {
                            self.next += 1;
                            (ServiceId(self.next), None)
                        }
                    };
                    let differs = old.as_ref() != Some(&new);
                    self.services.insert(key.clone(), (id, new));
                    if differs {
                        changed.push(Changed { id, key, old });
                    }
                }
            }
        }
        changed
    }

    pub(crate) fn changes<'a>(&'a self, changed: impl IntoIterator<Item = &'a Changed>) -> Vec<Change<'a>> {
        let change = |c: &'a Changed| Change {
            id: c.id,
            key: c.key.as_str(),
            old: c.old.as_ref(),
            new: self.services.get(&c.key).map(|(_, rules)| rules),
        };
        changed.into_iter().map(change).collect()
    }

    /// Every Service as one that comes anew, in the order in which they came.
    pub(crate) fn all(&self) -> Vec<Change<'_>> {
        let mut all: Vec<Change<'_>> = self
            .services
            .iter()
            .map(|(key, (id, rules))| Change { id: *id, key: key.as_str(), old: None, new: Some(rules) })
            .collect();
        all.sort_by_key(|change| change.id);
        all
    }

    pub(crate) fn keys(&self) -> BTreeSet<ObjectKey> {
        self.services.keys().cloned().collect()
    }
}

/// The rules of a Service as the informers know it.
pub(crate) fn rules_of(
    key: &ObjectKey,
    services: &Lister<Service>,
    slices: &Lister<EndpointSlice>,
    place: &Place,
) -> Option<ServiceRules> {
    let service = services.get(key)?;
    let slices: Vec<Arc<EndpointSlice>> = slices.by_index(BY_SERVICE, key.as_str());
    model::rules_of(&service, &slices, place)
}

/// Which back end writes the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Nftables,
    Iptables,
    Ipvs,
}

impl Mode {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
        }
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        let all = [Mode::Nftables, Mode::Iptables, Mode::Ipvs];
        all.into_iter().find(|mode| mode.name() == text).ok_or_else(|| UnknownMode(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown proxy-mode: {0:?} (valid: \"nftables\", \"iptables\", \"ipvs\")")]
pub struct UnknownMode(String);

/// What writes the rules.
pub(crate) enum Backend {
    Nftables(Nftables),
    Iptables(Iptables),
    Ipvs(Box<Ipvs>),
}

fn surroundings(config: &Config, facts: &NodeFacts, present: &[IpAddr]) -> [Surroundings; 2] {
    Family::BOTH.map(|family| {
        let localhost = family == Family::V4 && config.serves_localhost();
        let mut node_port_ips = config.node_port_addresses.of(family, facts, present);
        node_port_ips.iter_mut().for_each(|ips| ips.retain(|ip| localhost || !ip.is_loopback()));
        let pods = config.detect_local.of(family, facts);
        Surroundings { family, masquerade_all: config.masquerade_all, pods, node_port_ips, localhost }
    })
}

/// Removes what back ends of other modes than this one wrote; of all, without one.
pub(crate) async fn clean_up_but(mode: Option<Mode>) -> Result<(), Failed> {
    if mode != Some(Mode::Nftables) {
        nftables::clean_up().await?;
    }
    // Both of them use iptables, with chains of the same names.
    if !matches!(mode, Some(Mode::Iptables | Mode::Ipvs)) {
        iptables::clean_up().await?;
    }
    if mode != Some(Mode::Ipvs) {
        ipvs::clean_up().await?;
    }
    Ok(())
}

impl Backend {
    pub(crate) async fn start(config: &Config, facts: &NodeFacts, present: &[IpAddr]) -> Self {
        let mut backend = Backend::new(config, facts, present);
        match &mut backend {
            Backend::Nftables(_) => {}
            Backend::Iptables(iptables) => iptables.leave_out_unusable().await,
            Backend::Ipvs(ipvs) => ipvs.leave_out_unusable().await,
        }
        backend
    }

    fn new(config: &Config, facts: &NodeFacts, present: &[IpAddr]) -> Self {
        let (mark, surroundings) = (1 << config.masquerade_bit, surroundings(config, facts, present));
        match config.mode {
            Mode::Nftables => Backend::Nftables(Nftables::new(Mark(mark), surroundings)),
            Mode::Iptables => Backend::Iptables(Iptables::new(mark, surroundings, Balancer::Chains)),
            Mode::Ipvs => Backend::Ipvs(Box::new(Ipvs::new(mark, surroundings, config.virtual_servers.clone()))),
        }
    }

    /// Tells it where it is now.
    pub(crate) fn surround(&mut self, config: &Config, facts: &NodeFacts, present: &[IpAddr], tracker: &Tracker) {
        let surroundings = surroundings(config, facts, present);
        match self {
            Backend::Nftables(nftables) => nftables.surround(surroundings),
            Backend::Iptables(iptables) => iptables.surround(surroundings, &tracker.all()),
            Backend::Ipvs(ipvs) => ipvs.surround(surroundings, &tracker.all()),
        }
    }

    /// Writes what changed since the last time. Gives the number of commands that took.
    pub(crate) async fn sync(&mut self, changes: &[Change<'_>], tracker: &Tracker) -> Result<usize, Failed> {
        match self {
            Backend::Nftables(nftables) => nftables.sync(changes, || tracker.all()).await,
            Backend::Iptables(iptables) => iptables.sync(changes).await,
            Backend::Ipvs(ipvs) => ipvs.sync(changes).await,
        }
    }

    /// Counts the rules of iptables, where there are any.
    pub(crate) fn count_rules(&self, metrics: &ProxyMetrics) {
        let iptables = match self {
            Backend::Nftables(_) => return,
            Backend::Iptables(iptables) => iptables,
            Backend::Ipvs(ipvs) => ipvs.rules(),
        };
        for (family, table, counted) in iptables.counts() {
            metrics.count_rules(family, table, counted.total, counted.written);
        }
    }

    /// Looks whether what was written is still there, and sees to it that the next sync brings it back.
    pub(crate) async fn check(&mut self) {
        match self {
            Backend::Nftables(nftables) => nftables.check().await,
            Backend::Iptables(iptables) => iptables.check().await,
            Backend::Ipvs(ipvs) => ipvs.check().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use serde_json::json;

    #[test]
    fn only_services_whose_rules_differ_are_changes() {
        let rules = |ip: &str| fixture::rules(json!({"clusterIP": ip, "ports": [{"port": 80}]}), &json!([]));
        let key = || ObjectKey::new("prod", "web");
        let mut tracker = Tracker::default();
        let first = tracker.update([key()], |_| rules("10.96.0.9"));
        assert!(first.len() == 1 && first[0].old.is_none());
        assert!(tracker.update([key()], |_| rules("10.96.0.9")).is_empty());
        let second = tracker.update([key()], |_| rules("10.96.0.10"));
        assert_eq!((second.len(), second[0].id), (1, first[0].id));
        assert!(tracker.changes(&second)[0].new.is_some());
        let gone = tracker.update([key()], |_| None);
        assert!(gone.len() == 1 && tracker.changes(&gone)[0].new.is_none());
        assert!(tracker.all().is_empty());
    }
    #[test]
    fn what_was_not_written_is_seen_from_what_was_written_last() {
        let rules = |ip: &str| fixture::rules(json!({"clusterIP": ip, "ports": [{"port": 80}]}), &json!([]));
        let key = || ObjectKey::new("prod", "web");
        let mut tracker = Tracker::default();
        tracker.update([key()], |_| rules("10.96.0.9"));
        let mut unwritten = Unwritten::default();
        // Two writes fail; between them the Service goes and comes again.
        unwritten.add(tracker.update([key()], |_| None), vec![SystemTime::UNIX_EPOCH]);
        unwritten.add(tracker.update([key()], |_| rules("10.96.0.10")), vec![SystemTime::UNIX_EPOCH]);
        let changes = tracker.changes(unwritten.changed());
        let of = |rules: Option<&ServiceRules>| rules.map(|r| r.ports[0].frontends[0].address.unwrap().to_string());
        let seen: Vec<_> = changes.iter().map(|c| (of(c.old), of(c.new))).collect();
        assert_eq!(seen, [(Some("10.96.0.9".to_owned()), Some("10.96.0.10".to_owned()))]);
        assert_eq!(unwritten.triggers.len(), 2);
    }
}
