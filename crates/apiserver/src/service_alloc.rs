//! Addresses and node ports of Services.
//!
//! A cluster IP belongs to whoever has its IPAddress object: creating that object is the allocation, so that any number of
//! apiservers share one network (KEP-1880). Node ports are taken from what no Service in the cache has.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::meta::{Gvk, Gvr};
use apimachinery::status::Status;
use async_trait::async_trait;
use ipnet::IpNet;
use parking_lot::Mutex;
use rand::RngExt;

use crate::admission::{Operation, Plugin, Request};
use crate::lister::Lister;
use crate::objects::ObjectWriter;

const IP_ADDRESSES: &str = "ipaddresses.networking.k8s.io";
const SERVICE_CIDRS: &str = "servicecidrs.networking.k8s.io";
/// How many addresses are tried at random before the network is searched from its beginning.
const RANDOM_TRIES: usize = 32;

/// The IPAddress object by which a Service holds an address.
#[must_use]
pub fn ip_address(ip: &str, namespace: &str, service: &str) -> Value {
    let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
    let mut object = Value::from([("apiVersion", "networking.k8s.io/v1".into()), ("kind", "IPAddress".into())]);
    object.set(&["metadata", "name"], ip);
    object.set(
        &["metadata", "labels"],
        Value::from([
            ("ipaddress.kubernetes.io/ip-family", family.into()),
            ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io".into()),
        ]),
    );
    let parent =
        Value::from([("resource", "services".into()), ("namespace", namespace.into()), ("name", service.into())]);
    object.set(&["spec", "parentRef"], parent);
    object
}

pub struct ServiceAddresses {
    cidrs: Vec<IpNet>,
    ports: std::ops::RangeInclusive<u16>,
    lister: Arc<dyn Lister>,
    /// Set once the registry exists, which this plugin is itself a part of.
    writer: OnceLock<Arc<dyn ObjectWriter>>,
    /// Ports that were given out to Services which the cache does not show yet.
    pending_ports: Mutex<HashSet<u16>>,
}

impl ServiceAddresses {
    #[must_use]
    pub fn new(cidrs: Vec<IpNet>, ports: std::ops::RangeInclusive<u16>, lister: Arc<dyn Lister>) -> Self {
        ServiceAddresses { cidrs, ports, lister, writer: OnceLock::new(), pending_ports: Mutex::default() }
    }

    pub fn set_writer(&self, writer: Arc<dyn ObjectWriter>) {
        // A second call would be a mistake in the wiring; the first one stays.
        let _ = self.writer.set(writer);
    }

    async fn release_ip(&self, ip: &str) {
        let Some(writer) = self.writer.get() else { return };
        let gvr = Gvr::new("networking.k8s.io", "v1", "ipaddresses");
        if let Err(status) = writer.delete(&gvr, "", ip).await
            && status.code != 404
        {
            tracing::warn!(ip, error = %status, "a Service's address could not be released");
        }
    }

    /// The networks of the family: the server's own, and those of the ServiceCIDRs that are ready and stay (KEP-1880).
    fn cidrs_of(&self, family: &str) -> Vec<IpNet> {
        let mut all = self.cidrs.clone();
        for object in self.lister.list(SERVICE_CIDRS, "") {
            let conditions = object["status"]["conditions"].items();
            let is_ready = conditions.iter().any(|c| c.str_at(&["type"]) == "Ready" && c.str_at(&["status"]) == "True");
            if is_ready && object["metadata"]["deletionTimestamp"].is_null() {
                all.extend(strings(&object["spec"]["cidrs"]).iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()));
            }
        }
        let mut seen = HashSet::new();
        all.retain(|cidr| cidr.addr().is_ipv4() == (family == "IPv4") && seen.insert(*cidr));
        all
    }

    /// Takes a given address, or any free one of the family.
    async fn take_ip(&self, request: &Request, given: Option<&str>, family: &str) -> Result<String, String> {
        let cidrs = self.cidrs_of(family);
        if cidrs.is_empty() {
            return Err("not configured on this cluster".to_owned());
        }
        let used = |ip: &str| self.lister.get(IP_ADDRESSES, "", ip).is_some();
        if let Some(given) = given {
            let ip: IpAddr =
                given.parse().map_err(|_| format!("failed to allocate IP {given}: the provided IP is not valid"))?;
            let fits =
                |cidr: &IpNet| cidr.contains(&ip) && ip != cidr.network() && (ip != cidr.broadcast() || !ip.is_ipv4());
            if !cidrs.iter().any(fits) {
                return Err(format!(
                    "failed to allocate IP {given}: the provided network does not match the current range"
                ));
            }
            if self.is_own(request, given) {
                return Ok(given.to_owned()); // an earlier attempt to create this Service took it
            }
            if used(given) || !self.hold_ip(request, given).await? {
                return Err(format!("failed to allocate IP {given}: provided IP is already allocated"));
            }
            return Ok(given.to_owned());
        }
        for cidr in &cidrs {
            let size = host_count(cidr);
            // The lower band is left to addresses that users choose: min(max(16, size/16), 256) (KEP-3070).
            let band = (size / 16).clamp(16, 256).min(size / 2);
            for _ in 0..RANDOM_TRIES {
                let offset = rand::rng().random_range(band..size.max(band + 1));
                let Some(ip) = nth_host(cidr, offset) else { continue };
                let ip = ip.to_string();
                if !used(&ip) && self.hold_ip(request, &ip).await? {
                    return Ok(ip);
                }
            }
            for offset in (band..size).chain(0..band) {
                let Some(ip) = nth_host(cidr, offset) else { continue };
                let ip = ip.to_string();
                if !used(&ip) && self.hold_ip(request, &ip).await? {
                    return Ok(ip);
                }
            }
        }
        Err("range is full".to_owned())
    }

    fn is_own(&self, request: &Request, ip: &str) -> bool {
        self.lister.get(IP_ADDRESSES, "", ip).is_some_and(|held| {
            let parent = &held["spec"]["parentRef"];
            let same = |field: &str, own: &str| parent.str_at(&[field]) == own;
            same("resource", "services") && same("namespace", &request.namespace) && same("name", &request.name)
        })
    }

    /// Makes the IPAddress; false when somebody has it. A dry run holds nothing.
    async fn hold_ip(&self, request: &Request, ip: &str) -> Result<bool, String> {
        let (Some(writer), false) = (self.writer.get(), request.dry_run) else { return Ok(true) };
        let gvr = Gvr::new("networking.k8s.io", "v1", "ipaddresses");
        match writer.create(&gvr, ip_address(ip, &request.namespace, &request.name)).await {
            Ok(()) => Ok(true),
            Err(status) if status.reason == "AlreadyExists" => Ok(false),
            Err(status) => Err(status.message),
        }
    }

    fn used_ports(&self) -> HashSet<u16> {
        let services = self.lister.list("services", "");
        let mut used: HashSet<u16> = services.iter().flat_map(|s| ports_of(s)).collect();
        let mut pending = self.pending_ports.lock();
        pending.retain(|port| !used.contains(port));
        used.extend(pending.iter());
        used
    }

    fn take_port(&self, used: &mut HashSet<u16>) -> Option<u16> {
        let (first, last) = (*self.ports.start(), *self.ports.end());
        let size = last - first + 1;
        let band = (size / 32).clamp(16, 128).min(size / 2);
        let start = rand::rng().random_range(band..size.max(band + 1));
        let order = (start..size).chain(band..start).chain(0..band);
        let port = order.map(|offset| first + offset).find(|port| !used.contains(port))?;
        used.insert(port);
        Some(port)
    }

    async fn allocate(&self, request: &mut Request) -> Result<(), Status> {
        let old = request.old_object.clone();
        carry_over(&mut request.object, &old);
        let name = if request.name.is_empty() { request.object.name() } else { &request.name }.to_owned();
        let invalid = |errs: &FieldErrors| Status::invalid(&Gvk::new("", "v1", "Service"), &name, errs);
        let mut errs = api::validate_service_addresses(&request.object, &old);
        if !errs.is_empty() {
            return Err(invalid(&errs));
        }
        self.families(&mut request.object, &mut errs);
        if !errs.is_empty() {
            return Err(invalid(&errs));
        }
        if needs_ip(&request.object) && !is_headless(&request.object) {
            self.allocate_ips(request, &old, &mut errs).await;
        }
        if !errs.is_empty() {
            return Err(invalid(&errs));
        }
        self.allocate_ports(&mut request.object, &old, request.dry_run, &mut errs);
        if !errs.is_empty() {
            return Err(invalid(&errs));
        }
        Ok(())
    }

    /// ipFamilyPolicy and ipFamilies, from what is given and what the cluster has.
    fn families(&self, service: &mut Value, errs: &mut FieldErrors) {
        if !needs_ip(service) {
            return;
        }
        let family_of = |ip: &str| if ip.contains(':') { "IPv6" } else { "IPv4" };
        let cluster: Vec<&str> = self.cidrs.iter().map(|c| if c.addr().is_ipv4() { "IPv4" } else { "IPv6" }).collect();
        let given_ips: Vec<String> = strings(&service["spec"]["clusterIPs"]);
        let mut families: Vec<String> = strings(&service["spec"]["ipFamilies"]);
        let policy = service["spec"]["ipFamilyPolicy"].as_str().map(str::to_owned);
        if families.len() > 1 && policy.as_deref() == Some("SingleStack") {
            let at = Cursor::root(service).fields(&["spec", "ipFamilyPolicy"]);
            errs.invalid(
                &at,
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
            );
            return;
        }
        let headless_free = is_headless(service) && service["spec"]["selector"].entries().is_empty();
        if policy.as_deref() == Some("RequireDualStack") && cluster.len() < 2 && !headless_free {
            let at = Cursor::root(service).fields(&["spec", "ipFamilyPolicy"]);
            errs.invalid(&at, "this cluster is not configured for dual-stack services");
            return;
        }
        for (i, family) in families.iter().enumerate() {
            if !cluster.contains(&family.as_str()) && !headless_free {
                let path = Cursor::root(service).fields(&["spec", "ipFamilies"]).path.index(i);
                errs.invalid_value(&path, family.as_str(), "not configured on this cluster");
                return;
            }
        }
        if families.is_empty() {
            families = given_ips.iter().filter(|ip| *ip != "None").map(|ip| family_of(ip).to_owned()).collect();
        }
        if families.is_empty() {
            families.extend(cluster.first().map(ToString::to_string));
        }
        let policy = policy.unwrap_or_else(|| match (headless_free, families.len()) {
            (true, _) => "RequireDualStack".to_owned(),
            (_, 2) => "RequireDualStack".to_owned(),
            _ => "SingleStack".to_owned(),
        });
        if policy != "SingleStack" && families.len() == 1 {
            let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
            if cluster.contains(&other) || headless_free {
                families.push(other.to_owned());
            }
        }
        service.set(&["spec", "ipFamilyPolicy"], policy);
        service.set(&["spec", "ipFamilies"], families.into_iter().map(Value::from).collect::<Vec<_>>());
        if is_headless(service) {
            service.set(&["spec", "clusterIPs"], vec![Value::from("None")]);
        }
    }

    async fn allocate_ips(&self, request: &mut Request, old: &Value, errs: &mut FieldErrors) {
        let families = strings(&request.object["spec"]["ipFamilies"]);
        let given = strings(&request.object["spec"]["clusterIPs"]);
        let held: Vec<String> = if is_headless(old) { Vec::new() } else { strings(&old["spec"]["clusterIPs"]) };
        let mut taken: Vec<String> = Vec::new();
        let mut all: Vec<String> = Vec::new();
        for (i, family) in families.iter().enumerate() {
            let wanted = given.get(i).map(String::as_str).filter(|ip| !ip.is_empty());
            if let Some(ip) = wanted.filter(|ip| held.iter().any(|h| h == ip)) {
                all.push(ip.to_owned());
                continue;
            }
            match self.take_ip(request, wanted, family).await {
                Ok(ip) => {
                    taken.push(ip.clone());
                    all.push(ip);
                }
                Err(why) => {
                    let path = Cursor::root(&request.object).fields(&["spec", "clusterIPs"]).path;
                    let shown: Vec<Value> = given.iter().map(|ip| Value::from(ip.as_str())).collect();
                    errs.invalid_value(&path, shown, why);
                    for ip in &taken {
                        self.release_ip(ip).await;
                    }
                    return;
                }
            }
        }
        request.object.set(&["spec", "clusterIP"], all.first().cloned().unwrap_or_default());
        request.object.set(&["spec", "clusterIPs"], all.into_iter().map(Value::from).collect::<Vec<_>>());
    }

    fn allocate_ports(&self, service: &mut Value, old: &Value, dry_run: bool, errs: &mut FieldErrors) {
        let kind = service.str_at(&["spec", "type"]).to_owned();
        let wants = kind == "NodePort"
            || (kind == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"].as_bool() != Some(false));
        let own: HashSet<u16> = ports_of(old).collect();
        let mut used = self.used_ports();
        let mut fresh = Vec::new();
        if kind == "NodePort" || kind == "LoadBalancer" {
            let mut mine: Vec<(String, u16)> = Vec::new();
            let count = service["spec"]["ports"].items().len();
            for i in 0..count {
                let port = &service["spec"]["ports"].items()[i];
                let protocol = port.str_at(&["protocol"]).to_owned();
                let given = port["nodePort"].as_i64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
                // Two ports of one number and different protocols may share a node port.
                let number = port["port"].as_i64();
                let shared = (0..i).find_map(|j| {
                    let other = &service["spec"]["ports"].items()[j];
                    let same = other["port"].as_i64() == number && other.str_at(&["protocol"]) != protocol;
                    same.then(|| other["nodePort"].as_i64().and_then(|p| u16::try_from(p).ok())).flatten()
                });
                let chosen = match given {
                    Some(given) => {
                        let path = Cursor::root(service).fields(&["spec", "ports"]).path.index(i).child("nodePort");
                        let repeated = mine.iter().any(|(p, n)| *p != protocol && *n == given);
                        if !own.contains(&given) && !repeated {
                            if !self.ports.contains(&given) {
                                let range = format!("{}-{}", self.ports.start(), self.ports.end());
                                let why = format!(
                                    "provided port is not in the valid range. The range of valid ports is {range}"
                                );
                                errs.invalid_value(&path, i64::from(given), why);
                                return;
                            }
                            if used.contains(&given) {
                                errs.invalid_value(&path, i64::from(given), "provided port is already allocated");
                                return;
                            }
                            used.insert(given);
                            fresh.push(given);
                        }
                        Some(given)
                    }
                    None if wants => shared.or_else(|| {
                        let port = self.take_port(&mut used)?;
                        fresh.push(port);
                        Some(port)
                    }),
                    None => None,
                };
                let Some(chosen) = chosen else {
                    if wants {
                        let path = Cursor::root(service).fields(&["spec", "ports"]).path.index(i).child("nodePort");
                        errs.internal(&path, "failed to allocate a nodePort: range is full");
                        return;
                    }
                    continue;
                };
                mine.push((protocol, chosen));
                if let Some(port) = service.entry(&["spec", "ports"]).items_mut().get_mut(i) {
                    port.set(&["nodePort"], i64::from(chosen));
                }
            }
        }
        let local = service.str_at(&["spec", "externalTrafficPolicy"]) == "Local";
        if kind == "LoadBalancer" && local && service["spec"]["healthCheckNodePort"].as_i64().unwrap_or_default() == 0 {
            match self.take_port(&mut used) {
                Some(port) => {
                    service.set(&["spec", "healthCheckNodePort"], i64::from(port));
                    fresh.push(port);
                }
                None => {
                    let path = Cursor::root(service).fields(&["spec", "healthCheckNodePort"]).path;
                    errs.internal(&path, "failed to allocate a nodePort: range is full");
                }
            }
        }
        if !dry_run {
            self.pending_ports.lock().extend(fresh);
        }
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn needs_ip(service: &Value) -> bool {
    matches!(service.str_at(&["spec", "type"]), "ClusterIP" | "NodePort" | "LoadBalancer" | "")
}

fn is_headless(service: &Value) -> bool {
    service.str_at(&["spec", "clusterIP"]) == "None"
        || service["spec"]["clusterIPs"].items().first().and_then(Value::as_str) == Some("None")
}

fn ports_of(service: &Value) -> impl Iterator<Item = u16> + '_ {
    let ports = service["spec"]["ports"].items().iter().filter_map(|p| p["nodePort"].as_i64());
    let health = service["spec"]["healthCheckNodePort"].as_i64();
    ports.chain(health).filter_map(|p| u16::try_from(p).ok()).filter(|p| *p > 0)
}

/// clusterIP and clusterIPs say the same; an update that leaves out what was allocated keeps it.
fn carry_over(service: &mut Value, old: &Value) {
    let spec = service.entry(&["spec"]);
    if !old.is_null() && needs_ip(old) && spec.str_at(&["type"]) != "ExternalName" {
        let both_absent = spec.str_at(&["clusterIP"]).is_empty() && spec["clusterIPs"].items().is_empty();
        if both_absent {
            for field in ["clusterIP", "clusterIPs"] {
                spec.set(&[field], old["spec"][field].clone());
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if spec[field].is_null() {
                spec.set(&[field], old["spec"][field].clone());
            }
        }
        let with_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
        if with_ports(spec.str_at(&["type"])) && with_ports(old.str_at(&["spec", "type"])) {
            let known: Vec<(i64, String, i64)> = old["spec"]["ports"]
                .items()
                .iter()
                .filter_map(|p| {
                    Some((p["port"].as_i64()?, p.str_at(&["protocol"]).to_owned(), p["nodePort"].as_i64()?))
                })
                .collect();
            let taken: Vec<i64> = spec["ports"].items().iter().filter_map(|p| p["nodePort"].as_i64()).collect();
            for port in spec.entry(&["ports"]).items_mut() {
                if port["nodePort"].as_i64().unwrap_or_default() == 0 {
                    let same = |(number, protocol, node): &&(i64, String, i64)| {
                        port["port"].as_i64() == Some(*number)
                            && port.str_at(&["protocol"]) == protocol
                            && !taken.contains(node)
                    };
                    if let Some((_, _, node)) = known.iter().find(same).cloned() {
                        port.set(&["nodePort"], node);
                    }
                }
            }
            if spec["healthCheckNodePort"].as_i64().unwrap_or_default() == 0
                && !old["spec"]["healthCheckNodePort"].is_null()
                && spec.str_at(&["externalTrafficPolicy"]) == "Local"
            {
                spec.set(&["healthCheckNodePort"], old["spec"]["healthCheckNodePort"].clone());
            }
        }
    }
    let spec = service.entry(&["spec"]);
    let (one, many) = (spec.str_at(&["clusterIP"]).to_owned(), spec["clusterIPs"].items().is_empty());
    if !one.is_empty() && many {
        spec.set(&["clusterIPs"], vec![Value::from(one.as_str())]);
    } else if one.is_empty() && !many {
        let first = spec["clusterIPs"].items()[0].clone();
        spec.set(&["clusterIP"], first);
    }
}

/// Addresses of a network that hosts may have, at most 2^16 of them: more are never searched.
fn host_count(cidr: &IpNet) -> u64 {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len()).min(16);
    (1u64 << bits).saturating_sub(2).max(1)
}

fn nth_host(cidr: &IpNet, offset: u64) -> Option<IpAddr> {
    let ip = match cidr.network() {
        IpAddr::V4(ip) => IpAddr::from(u32::from(ip).checked_add(u32::try_from(offset + 1).ok()?)?.to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from(u128::from(ip).checked_add(u128::from(offset) + 1)?.to_be_bytes()),
    };
    cidr.contains(&ip).then_some(ip)
}

#[async_trait]
impl Plugin for ServiceAddresses {
    fn name(&self) -> &'static str {
        "ServiceAddresses"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && request.is_core("services")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        self.allocate(request).await
    }

    fn follows(&self, request: &Request) -> bool {
        request.is_core("services") && !request.dry_run
    }

    /// Of what was held before and what is held now, gives back what the outcome leaves without an owner.
    async fn finish(&self, request: &Request, stored: bool) {
        let (keep, drop) = if stored {
            (&request.object, &request.old_object)
        } else if request.operation == Operation::Delete {
            return;
        } else {
            (&request.old_object, &request.object)
        };
        let kept = strings(&keep["spec"]["clusterIPs"]);
        for ip in strings(&drop["spec"]["clusterIPs"]).iter().filter(|ip| *ip != "None" && !kept.contains(ip)) {
            self.release_ip(ip).await;
        }
        if !stored {
            let kept: HashSet<u16> = ports_of(keep).collect();
            let mut pending = self.pending_ports.lock();
            ports_of(drop).filter(|port| !kept.contains(port)).for_each(|port| {
                pending.remove(&port);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::UserInfo;
    use crate::lister::fixture::MapLister;

    fn request(spec: &str, old: &str) -> Request {
        let object = |spec: &str| -> Value {
            if spec.is_empty() {
                return Value::Null;
            }
            serde_json::from_str(&format!(r#"{{"metadata":{{"name":"s","namespace":"n"}},"spec":{spec}}}"#)).unwrap()
        };
        Request {
            operation: if old.is_empty() { Operation::Create } else { Operation::Update },
            gvr: Gvr::new("", "v1", "services"),
            gvk: Gvk::new("", "v1", "Service"),
            subresource: String::new(),
            namespace: "n".into(),
            name: "s".into(),
            user: Arc::new(UserInfo::default()),
            dry_run: false,
            options: Value::Null,
            object: object(spec),
            old_object: object(old),
            warnings: Vec::new(),
            audit_annotations: std::collections::BTreeMap::new(),
            reinvoke: false,
            again: false,
            asked: Vec::new(),
        }
    }

    async fn allocate(spec: &str, old: &str) -> Result<Value, String> {
        let lister = MapLister::default();
        lister.put(IP_ADDRESSES, ip_address("10.96.0.77", "x", "y"));
        for (name, cidr, status) in [("more", "10.200.0.0/24", "True"), ("not-yet", "10.201.0.0/24", "False")] {
            let object = format!(
                r#"{{"metadata":{{"name":"{name}"}},"spec":{{"cidrs":["{cidr}"]}},
                "status":{{"conditions":[{{"type":"Ready","status":"{status}"}}]}}}}"#
            );
            lister.put(SERVICE_CIDRS, serde_json::from_str(&object).unwrap());
        }
        let addresses = ServiceAddresses::new(vec!["10.96.0.0/16".parse().unwrap()], 30000..=32767, Arc::new(lister));
        let mut request = request(spec, old);
        addresses.admit(&mut request).await.map_err(|s| s.message)?;
        Ok(request.object["spec"].clone())
    }

    #[tokio::test]
    async fn a_service_gets_an_address_of_the_dynamic_band() {
        let spec = allocate(r#"{"type":"ClusterIP","ports":[{"port":80}]}"#, "").await.unwrap();
        let ip: std::net::Ipv4Addr = spec.str_at(&["clusterIP"]).parse().unwrap();
        assert!(ip >= std::net::Ipv4Addr::new(10, 96, 1, 1), "{ip}");
        assert_eq!(spec["clusterIPs"].items().len(), 1);
        assert_eq!(spec.str_at(&["ipFamilyPolicy"]), "SingleStack");
    }

    #[tokio::test]
    async fn a_chosen_address_must_be_free_and_fit() {
        let chosen = |ip: &str| format!(r#"{{"type":"ClusterIP","clusterIP":"{ip}"}}"#);
        assert_eq!(allocate(&chosen("10.96.0.98"), "").await.unwrap().str_at(&["clusterIP"]), "10.96.0.98");
        let taken = allocate(&chosen("10.96.0.77"), "").await.unwrap_err();
        assert_eq!(
            taken,
            "Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: provided IP is already allocated"
        );
        for outside in ["10.96.0.0", "10.201.0.7"] {
            let refused = allocate(&chosen(outside), "").await.unwrap_err();
            assert!(refused.ends_with("the provided network does not match the current range"), "{refused}");
        }
        assert_eq!(allocate(&chosen("10.200.0.7"), "").await.unwrap().str_at(&["clusterIP"]), "10.200.0.7");
    }

    #[tokio::test]
    async fn an_update_keeps_what_it_leaves_out() {
        let old = r#"{"type":"NodePort","clusterIP":"10.96.5.5","clusterIPs":["10.96.5.5"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"port":80,"protocol":"TCP","nodePort":30080}]}"#;
        let spec = allocate(r#"{"type":"NodePort","ports":[{"port":80,"protocol":"TCP"}]}"#, old).await.unwrap();
        assert_eq!(spec.str_at(&["clusterIP"]), "10.96.5.5");
        assert_eq!(spec["ports"].items()[0]["nodePort"].as_i64(), Some(30080));
    }

    #[tokio::test]
    async fn node_ports_come_from_their_range() {
        let spec =
            allocate(r#"{"type":"NodePort","ports":[{"port":80,"protocol":"TCP"},{"port":80,"protocol":"UDP"}]}"#, "")
                .await
                .unwrap();
        let ports: Vec<i64> = spec["ports"].items().iter().filter_map(|p| p["nodePort"].as_i64()).collect();
        assert_eq!(ports.len(), 2);
        assert_eq!(ports[0], ports[1]);
        assert!((30000..=32767).contains(&ports[0]));
        let outside = allocate(r#"{"type":"NodePort","ports":[{"port":80,"nodePort":80}]}"#, "").await.unwrap_err();
        assert!(
            outside.contains("provided port is not in the valid range. The range of valid ports is 30000-32767"),
            "{outside}"
        );
    }

    #[tokio::test]
    async fn a_headless_service_has_none() {
        let spec = allocate(r#"{"type":"ClusterIP","clusterIP":"None","selector":{"a":"b"}}"#, "").await.unwrap();
        assert_eq!(spec["clusterIPs"].items()[0].as_str(), Some("None"));
        assert_eq!(strings(&spec["ipFamilies"]), ["IPv4"]);
    }
}
