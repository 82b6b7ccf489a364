//! Keeps the addresses of Services and what holds them in agreement: after a crash in between, an address may be held for
//! nobody, or a Service may have one that it does not hold.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::cache::feed::Feed;
use crate::lister::Lister;
use crate::objects::ObjectWriter;
use crate::service_alloc::ip_address;

const ADDRESSES: &str = "ipaddresses.networking.k8s.io";
const MANAGED: &str = "ipaddress.kubernetes.io/managed-by";
/// How often everything is compared.
const EVERY: Duration = Duration::from_secs(180);
/// An address that was taken just now may be of a Service that is about to be stored, in seconds.
const GRACE: i64 = 60;

/// What has to be done.
#[derive(Debug, PartialEq)]
enum Repair {
    /// A Service has an address that nobody holds for it.
    Hold { ip: String, namespace: String, service: String },
    /// An address is held for a Service that does not have it.
    Release { ip: String },
    /// Two Services have one address: only their owners can help.
    Report { ip: String, namespace: String, service: String },
}

/// Runs until `halt`.
pub(crate) async fn run(
    feed: Arc<Feed>,
    lister: Arc<dyn Lister>,
    writer: Arc<dyn ObjectWriter>,
    halt: CancellationToken,
) {
    if halt.run_until_cancelled(feed.reach_sync()).await.is_none() {
        return;
    }
    let mut tick = tokio::time::interval(EVERY);
    while halt.run_until_cancelled(tick.tick()).await.is_some() {
        let (services, addresses) = (lister.list("services", ""), lister.list(ADDRESSES, ""));
        for repair in plan(&services, &addresses, Timestamp::now()) {
            apply(&*writer, repair).await;
        }
    }
}

fn plan(services: &[Arc<Value>], addresses: &[Arc<Value>], now: Timestamp) -> Vec<Repair> {
    let held: HashMap<&str, &Value> = addresses.iter().map(|address| (address.name(), address.as_ref())).collect();
    // Who has each address, as namespace and name.
    let mut owners: HashMap<&str, (&str, &str)> = HashMap::new();
    let mut repairs = Vec::new();
    for service in services {
        let own = (service.namespace(), service.name());
        let ips = service.at(&["spec", "clusterIPs"]).items().iter().filter_map(Value::as_str);
        for ip in ips.filter(|ip| !ip.is_empty() && *ip != "None") {
            let holder = held.get(ip).map(|address| parent_of(address));
            if owners.contains_key(ip) || holder.is_some_and(|holder| holder != own) {
                repairs.push(Repair::Report { ip: ip.into(), namespace: own.0.into(), service: own.1.into() });
                continue;
            }
            if holder.is_none() {
                repairs.push(Repair::Hold { ip: ip.into(), namespace: own.0.into(), service: own.1.into() });
            }
            owners.insert(ip, own);
        }
    }
    let is_old = |address: &Value| {
        let made = address.str_at(&["metadata", "creationTimestamp"]).parse::<Timestamp>();
        made.is_ok_and(|made| now.as_second() - made.as_second() > GRACE)
    };
    let lost = addresses.iter().filter(|address| {
        address.label(MANAGED) == Some("ipallocator.k8s.io")
            && is_old(address)
            && owners.get(address.name()) != Some(&parent_of(address))
    });
    repairs.extend(lost.map(|address| Repair::Release { ip: address.name().to_owned() }));
    repairs
}

/// Namespace and name of the Service that an address is held for.
fn parent_of(address: &Value) -> (&str, &str) {
    let parent = address.at(&["spec", "parentRef"]);
    (parent.str_at(&["namespace"]), parent.str_at(&["name"]))
}

async fn apply(writer: &dyn ObjectWriter, repair: Repair) {
    let addresses = Gvr::new("networking.k8s.io", "v1", "ipaddresses");
    match repair {
        Repair::Hold { ip, namespace, service } => {
            tracing::warn!(ip, namespace, service, "a Service's address was not held, which is repaired");
            match writer.create(&addresses, ip_address(&ip, &namespace, &service)).await {
                Err(status) if status.reason != "AlreadyExists" => tracing::warn!(ip, %status, "it cannot be repaired"),
                Ok(()) | Err(_) => {}
            }
        }
        Repair::Release { ip } => {
            // The caches may be behind: the store says whether it is so still.
            let Ok(address) = writer.get(&addresses, "", &ip).await else { return };
            let (namespace, service) = parent_of(&address);
            let has_it = match writer.get(&Gvr::new("", "v1", "services"), namespace, service).await {
                Ok(service) => service.at(&["spec", "clusterIPs"]).items().iter().any(|own| own.as_str() == Some(&ip)),
                Err(status) => status.code != 404,
            };
            if has_it {
                return;
            }
            tracing::warn!(ip, namespace, service, "an address was held for nobody, which is repaired");
            match writer.delete(&addresses, "", &ip).await {
                Err(status) if status.code != 404 => tracing::warn!(ip, %status, "it cannot be repaired"),
                Ok(()) | Err(_) => {}
            }
        }
        Repair::Report { ip, namespace, service } => {
            tracing::error!(ip, namespace, service, "a Service has an address of another; please recreate it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ip: &str) -> Arc<Value> {
        let text = format!(r#"{{"metadata":{{"namespace":"n","name":"{name}"}},"spec":{{"clusterIPs":["{ip}"]}}}}"#);
        Arc::new(serde_json::from_str(&text).unwrap())
    }

    fn address(ip: &str, service: &str, made: &str) -> Arc<Value> {
        let mut address = ip_address(ip, "n", service);
        address.set(&["metadata", "creationTimestamp"], made);
        Arc::new(address)
    }

    #[track_caller]
    fn check(services: &[Arc<Value>], addresses: &[Arc<Value>], want: &[Repair]) {
        assert_eq!(plan(services, addresses, "2026-01-01T00:10:00Z".parse().unwrap()), want);
    }

    #[test]
    fn services_and_addresses_are_brought_into_agreement() {
        let old = "2026-01-01T00:00:00Z";
        check(&[service("a", "10.0.0.1"), service("h", "None")], &[address("10.0.0.1", "a", old)], &[]);
        let hold = Repair::Hold { ip: "10.0.0.1".into(), namespace: "n".into(), service: "a".into() };
        check(&[service("a", "10.0.0.1")], &[], &[hold]);
        let release = || Repair::Release { ip: "10.0.0.2".into() };
        check(
            &[service("a", "10.0.0.1")],
            &[address("10.0.0.1", "a", old), address("10.0.0.2", "b", old)],
            &[release()],
        );
        // It may be about to be stored.
        check(&[], &[address("10.0.0.2", "b", "2026-01-01T00:09:30Z")], &[]);
        let report = Repair::Report { ip: "10.0.0.1".into(), namespace: "n".into(), service: "b".into() };
        check(&[service("a", "10.0.0.1"), service("b", "10.0.0.1")], &[address("10.0.0.1", "a", old)], &[report]);
    }
}
