//! Says which ServiceCIDRs are ready, and keeps one that is to go until no Service has an address that only it holds.

use std::net::IpAddr;

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ignore_not_found,
    informer::{Event, Lister, SharedInformer},
};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::{
    api::networking::v1::{IPAddress, ServiceCIDR},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{Api, Client, api::PostParams};

use crate::{
    context::Context,
    error::SyncError,
    finalizers::{add_finalizer, has_finalizer, remove_finalizer},
};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";

pub(crate) struct ServiceCidrController {
    client: Client,
    ranges: SharedInformer<ServiceCIDR>,
    range_lister: Lister<ServiceCIDR>,
    addresses: SharedInformer<IPAddress>,
    address_lister: Lister<IPAddress>,
}

impl ServiceCidrController {
    pub(crate) fn new(context: &Context) -> Self {
        let ranges = context.informers.informer::<ServiceCIDR>();
        let addresses = context.informers.informer::<IPAddress>();
        Self {
            client: context.client.clone(),
            range_lister: ranges.lister(),
            ranges,
            address_lister: addresses.lister(),
            addresses,
        }
    }

    async fn say(&self, range: &ServiceCIDR, ready: bool, reason: &str, message: &str) -> Result<(), SyncError> {
        let value = if ready { "True" } else { "False" };
        let mut written = range.clone();
        let conditions = written.status.get_or_insert_default().conditions.get_or_insert_default();
        if conditions.iter().any(|c| c.type_ == READY && c.status == value && c.reason == reason) {
            return Ok(());
        }
        conditions.retain(|condition| condition.type_ != READY);
        conditions.push(Condition {
            type_: READY.to_owned(),
            status: value.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::now()),
        });
        let name = range.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<ServiceCIDR>::all(self.client.clone());
        ignore_not_found(api.replace_status(name, &PostParams::default(), &written).await)?;
        Ok(())
    }
}

fn networks(range: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let cidrs = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| cidr.parse().ok())
}

/// Whether an address of the range would be in none of the others.
fn is_needed<'a>(
    range: &ServiceCIDR,
    others: impl Iterator<Item = &'a ServiceCIDR> + Clone,
    mut addresses: impl Iterator<Item = IpAddr>,
) -> bool {
    addresses.any(|address| {
        let holds = |range: &ServiceCIDR| networks(range).any(|network| network.contains(&address));
        holds(range) && !others.clone().any(holds)
    })
}

fn is_leaving(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_some()
}

impl Controller for ServiceCidrController {
    const NAME: &'static str = "ipaddresses";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        let all = |ranges: &Lister<ServiceCIDR>| {
            ranges
                .list()
                .iter()
                .filter(|range| is_leaving(range))
                .map(|range| ObjectKey::of(&**range))
                .collect::<Vec<_>>()
        };
        let ranges = self.range_lister.clone();
        watches.map(&self.ranges, move |event| {
            let mut keys = all(&ranges);
            keys.push(event.key());
            keys
        });
        let ranges = self.range_lister.clone();
        watches.map(&self.addresses, move |event| match event {
            Event::Deleted(_) => all(&ranges),
            Event::Added(_) | Event::Updated { .. } => Vec::new(),
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(range) = self.range_lister.get(key) else { return Ok(Action::await_change()) };
        let api = Api::<ServiceCIDR>::all(self.client.clone());
        if !is_leaving(&range) {
            if !has_finalizer(&*range, FINALIZER) {
                add_finalizer(&api, &*range, FINALIZER).await?;
                return Ok(Action::await_change());
            }
            self.say(&range, true, "", "Kubernetes Service CIDR is ready").await?;
            return Ok(Action::await_change());
        }
        if !has_finalizer(&*range, FINALIZER) {
            return Ok(Action::await_change());
        }
        let ranges = self.range_lister.list();
        let others = ranges
            .iter()
            .map(|other| &**other)
            .filter(|other| other.metadata.uid != range.metadata.uid && !is_leaving(other));
        let addresses = self.address_lister.list();
        let addresses = addresses.iter().filter_map(|address| address.metadata.name.as_deref()?.parse().ok());
        if is_needed(&range, others, addresses) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            self.say(&range, false, "Terminating", message).await?;
        } else {
            remove_finalizer(&api, &*range, FINALIZER).await?;
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(range: &str, others: &[&str], addresses: &[&str], want: bool) {
        let of = |cidr: &&str| serde_json::from_value::<ServiceCIDR>(json!({ "spec": { "cidrs": [cidr] } })).unwrap();
        let others: Vec<_> = others.iter().map(of).collect();
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        assert_eq!(is_needed(&of(&range), others.iter(), addresses), want);
    }

    #[test]
    fn a_range_is_needed_for_addresses_that_no_other_holds() {
        check("10.0.0.0/24", &[], &["10.0.0.1"], true);
        check("10.0.0.0/24", &["10.0.0.0/16"], &["10.0.0.1"], false);
        check("10.0.0.0/24", &["10.1.0.0/16"], &["10.0.0.1"], true);
        check("10.0.0.0/24", &[], &["10.2.0.1", "fd00::1"], false);
    }
}
