//! What an apiserver makes by itself: the system's namespaces, RBAC's default roles, priority classes, flow-control objects,
//! and its own Service with the addresses at which it is reached.
//!
//! Everything is written only where it is missing or lacks something; what an operator has changed or opted out of
//! (`autoupdate: "false"`) stays.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::meta::{GroupVersion, Gvk, Gvr};
use apimachinery::status::Status;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::lister::Lister;
use crate::objects::ObjectWriter;

/// How often the caches are looked at while they catch up with the first objects.
const CACHE_LOOKS: Duration = Duration::from_millis(5);
const OBJECTS: &str = include_str!("../data/bootstrap.jsonl");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const RBAC: &str = "rbac.authorization.k8s.io";

/// Facts of this server that its objects hold.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At which other components reach this server.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    /// The Service networks; the first address of the first is the server's own Service.
    pub service_cidrs: Vec<ipnet::IpNet>,
    /// Data of `kube-system/extension-apiserver-authentication`: the CAs and headers that aggregated servers trust.
    pub authentication: Value,
    /// The groups and versions that are served.
    pub served: Vec<GroupVersion>,
}

impl Settings {
    fn objects(&self) -> impl Iterator<Item = (Gvr, Value)> {
        objects(|gv| self.served.contains(gv))
    }
}

/// Which version serves a kind of the data file.
const VERSIONS: &[(&str, &str)] = &[
    ("ClusterRole", "rbac.authorization.k8s.io/v1"),
    ("ClusterRoleBinding", "rbac.authorization.k8s.io/v1"),
    ("Role", "rbac.authorization.k8s.io/v1"),
    ("RoleBinding", "rbac.authorization.k8s.io/v1"),
    ("PriorityClass", "scheduling.k8s.io/v1"),
    ("FlowSchema", "flowcontrol.apiserver.k8s.io/v1"),
    ("PriorityLevelConfiguration", "flowcontrol.apiserver.k8s.io/v1"),
    ("Namespace", "v1"),
];

/// The rules of the ClusterRole `system:node`, which the Node authorizer holds without any binding.
#[must_use]
pub fn node_rules() -> Vec<crate::authz::rule::Rule> {
    let role = objects(|_| false).find(|(_, o)| o.kind() == "ClusterRole" && o.name() == "system:node");
    role.map(|(_, o)| o["rules"].items().iter().map(crate::authz::rule::Rule::parse).collect()).unwrap_or_default()
}

/// The fixed objects, with their resources. Those that depend on this server's settings are made in code. Some are there
/// only `when` a group and version is served.
fn objects<'a>(is_served: impl Fn(&GroupVersion) -> bool + 'a) -> impl Iterator<Item = (Gvr, Value)> + 'a {
    OBJECTS.lines().filter_map(move |line| {
        let mut object: Value = serde_json::from_str(line).ok()?;
        if let Some(when) = object.remove(&["when"])
            && !when.as_str().and_then(GroupVersion::parse).is_some_and(|gv| is_served(&gv))
        {
            return None;
        }
        let (_, api_version) = VERSIONS.iter().find(|(kind, _)| *kind == object.kind())?;
        object.set(&["apiVersion"], *api_version);
        let gv = GroupVersion::parse(api_version)?;
        let gvk = Gvk { group: gv.group, version: gv.version, kind: object.kind().into() };
        Some((api::resource_of_kind(&gvk)?.gvr.clone(), object))
    })
}

/// Makes everything once, then keeps the server's own Service true until `stop`. Failures are tried again.
pub async fn run(
    settings: Settings,
    writer: Arc<dyn ObjectWriter>,
    lister: Arc<dyn Lister>,
    done: impl FnOnce() + Send,
    stop: CancellationToken,
) {
    let mut pause = Duration::from_millis(50);
    while let Err(status) = once(&settings, &*writer, &*lister).await {
        tracing::warn!(error = %status, "the first objects could not be made, trying again");
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    // Authorization reads the caches: whoever comes in now must find the roles there.
    while !settings.objects().all(|(gvr, o)| lister.get(&gvr.group_resource(), o.namespace(), o.name()).is_some()) {
        if stop.run_until_cancelled(tokio::time::sleep(CACHE_LOOKS)).await.is_none() {
            return;
        }
    }
    done();
    let mut seen = u64::MAX;
    let mut tick = tokio::time::interval(Duration::from_secs(10));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let now = lister.generation("services") ^ lister.generation("endpointslices.discovery.k8s.io").rotate_left(32);
        if now != seen {
            match own_service(&settings, &*writer, &*lister).await {
                Ok(()) => seen = now,
                Err(status) => tracing::warn!(error = %status, "the server's own Service could not be kept"),
            }
        }
    }
    // Nobody shall be sent to a server that is gone.
    if let Err(status) = leave(&settings, &*writer, &*lister).await {
        tracing::debug!(error = %status, "this server's address stays in its Service");
    }
}

async fn once(settings: &Settings, writer: &dyn ObjectWriter, lister: &dyn Lister) -> Result<(), Status> {
    // Namespaces first: the others live in them.
    let (namespaces, others): (Vec<_>, Vec<_>) = settings.objects().partition(|(gvr, _)| gvr.resource == "namespaces");
    for (gvr, object) in namespaces.into_iter().chain(others) {
        ensure(writer, lister, &gvr, object).await?;
    }
    let config_maps = Gvr::new("", "v1", "configmaps");
    let trust = object(
        "v1",
        "ConfigMap",
        "kube-system",
        "extension-apiserver-authentication",
        [("data", settings.authentication.clone())],
    );
    match lister.get("configmaps", "kube-system", "extension-apiserver-authentication") {
        None => create(writer, &config_maps, trust).await?,
        Some(present) if present["data"] != settings.authentication => {
            let mut merged = (*present).clone();
            merged.set(&["data"], settings.authentication.clone());
            writer.update(&config_maps, merged).await?;
        }
        Some(_) => {}
    }
    own_service(settings, writer, lister).await
}

/// Creates what is missing; gives roles and bindings back what they lack.
async fn ensure(writer: &dyn ObjectWriter, lister: &dyn Lister, gvr: &Gvr, wanted: Value) -> Result<(), Status> {
    let Some(present) = lister.get(&gvr.group_resource(), wanted.namespace(), wanted.name()) else {
        return create(writer, gvr, wanted).await;
    };
    if gvr.group != RBAC || present.annotation(AUTOUPDATE) == Some("false") {
        return Ok(());
    }
    let mut merged = (*present).clone();
    let aggregated = !wanted["aggregationRule"].is_null();
    for list in ["rules", "subjects"] {
        if aggregated && list == "rules" {
            continue; // a controller writes them
        }
        let lacking: Vec<Value> =
            wanted[list].items().iter().filter(|w| !present[list].items().contains(w)).cloned().collect();
        if !lacking.is_empty() {
            merged.entry(&[list]).make_array().extend(lacking);
        }
    }
    if merged == *present { Ok(()) } else { writer.update(gvr, merged).await }
}

async fn create(writer: &dyn ObjectWriter, gvr: &Gvr, object: Value) -> Result<(), Status> {
    match writer.create(gvr, object).await {
        Err(status) if status.reason == "AlreadyExists" => Ok(()), // another server was faster
        done => done,
    }
}

fn object<const N: usize>(
    api_version: &str,
    kind: &str,
    namespace: &str,
    name: &str,
    fields: [(&str, Value); N],
) -> Value {
    let mut object = Value::from([("apiVersion", api_version.into()), ("kind", kind.into())]);
    object.set(&["metadata", "name"], name);
    if !namespace.is_empty() {
        object.set(&["metadata", "namespace"], namespace);
    }
    for (key, value) in fields {
        object.set(&[key], value);
    }
    object
}

/// The address of the server's own Service: the first of the network.
#[must_use]
pub fn service_address(cidr: &ipnet::IpNet) -> IpAddr {
    // Of an IPv6 network the address of the network itself is counted among its hosts'.
    cidr.hosts().find(|ip| *ip != cidr.network()).unwrap_or_else(|| cidr.addr())
}

/// The ServiceCIDR, the Service `kubernetes` and the endpoints that lead to this server.
async fn own_service(settings: &Settings, writer: &dyn ObjectWriter, lister: &dyn Lister) -> Result<(), Status> {
    let cidrs = Gvr::new("networking.k8s.io", "v1", "servicecidrs");
    if lister.get("servicecidrs.networking.k8s.io", "", "kubernetes").is_none() {
        let list: Vec<Value> = settings.service_cidrs.iter().map(|c| c.to_string().into()).collect();
        let spec = Value::from([("cidrs", Value::Array(list))]);
        let condition = Value::from([
            ("type", "Ready".into()),
            ("status", "True".into()),
            ("reason", "".into()),
            ("message", "Kubernetes default Service CIDR is ready".into()),
            ("lastTransitionTime", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()),
        ]);
        let status = Value::from([("conditions", Value::Array(vec![condition]))]);
        let made =
            object("networking.k8s.io/v1", "ServiceCIDR", "", "kubernetes", [("spec", spec), ("status", status)]);
        create(writer, &cidrs, made).await?;
    }
    let Some(first) = settings.service_cidrs.first() else { return Ok(()) };
    let ip = service_address(first).to_string();
    let family = if first.addr().is_ipv4() { "IPv4" } else { "IPv6" };
    let one = |text: &str| Value::Array(vec![text.into()]);
    if lister.get("services", "default", "kubernetes").is_none() {
        let port = Value::from([
            ("name", "https".into()),
            ("port", 443i64.into()),
            ("protocol", "TCP".into()),
            ("targetPort", i64::from(settings.secure_port).into()),
        ]);
        let spec = Value::from([
            ("type", "ClusterIP".into()),
            ("clusterIP", ip.as_str().into()),
            ("clusterIPs", one(&ip)),
            ("ipFamilies", one(family)),
            ("ipFamilyPolicy", "SingleStack".into()),
            ("internalTrafficPolicy", "Cluster".into()),
            ("sessionAffinity", "None".into()),
            ("ports", Value::Array(vec![port])),
        ]);
        let mut service = object("v1", "Service", "default", "kubernetes", [("spec", spec)]);
        service.set(
            &["metadata", "labels"],
            Value::from([("component", "apiserver".into()), ("provider", "kubernetes".into())]),
        );
        create(writer, &Gvr::new("", "v1", "services"), service).await?;
    }
    if lister.get("ipaddresses.networking.k8s.io", "", &ip).is_none() {
        let made = crate::service_alloc::ip_address(&ip, "default", "kubernetes");
        create(writer, &Gvr::new("networking.k8s.io", "v1", "ipaddresses"), made).await?;
    }
    endpoints(settings, writer, lister, true).await
}

async fn leave(settings: &Settings, writer: &dyn ObjectWriter, lister: &dyn Lister) -> Result<(), Status> {
    endpoints(settings, writer, lister, false).await
}

/// Adds this server's address to the endpoints of `kubernetes`, or takes it out.
async fn endpoints(
    settings: &Settings,
    writer: &dyn ObjectWriter,
    lister: &dyn Lister,
    present: bool,
) -> Result<(), Status> {
    // Loopback leads nobody here but ourselves, and is no endpoint that validation takes.
    if settings.advertise_address.is_loopback() {
        return Ok(());
    }
    let address = settings.advertise_address.to_string();
    let family = if settings.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" };
    let slices = Gvr::new("discovery.k8s.io", "v1", "endpointslices");
    let now = lister.get("endpointslices.discovery.k8s.io", "default", "kubernetes");
    let listed = now.iter().flat_map(|s| s["endpoints"].items()).flat_map(|e| e["addresses"].items());
    let mut addresses: Vec<String> = listed.filter_map(Value::as_str).map(str::to_owned).collect();
    addresses.retain(|a| *a != address);
    if present {
        addresses.push(address);
    }
    addresses.sort();
    let port = Value::from([
        ("name", "https".into()),
        ("port", i64::from(settings.secure_port).into()),
        ("protocol", "TCP".into()),
    ]);
    let ready = Value::from([("ready", true.into())]);
    let each = addresses
        .iter()
        .map(|a| Value::from([("addresses", Value::Array(vec![a.as_str().into()])), ("conditions", ready.clone())]));
    let list = Value::Array(each.collect());
    let ports = Value::Array(vec![port.clone()]);
    match now {
        None => {
            let fields = [("addressType", family.into()), ("endpoints", list), ("ports", ports)];
            let mut slice = object("discovery.k8s.io/v1", "EndpointSlice", "default", "kubernetes", fields);
            slice.set(&["metadata", "labels"], Value::from([("kubernetes.io/service-name", "kubernetes".into())]));
            create(writer, &slices, slice).await?;
        }
        Some(slice) if slice["endpoints"] != list || slice["ports"] != ports => {
            let mut slice = (*slice).clone();
            slice.set(&["endpoints"], list);
            slice.set(&["ports"], ports);
            writer.update(&slices, slice).await?;
        }
        Some(_) => {}
    }
    let subset = Value::from([
        ("addresses", Value::Array(addresses.iter().map(|a| Value::from([("ip", a.as_str().into())])).collect())),
        ("ports", Value::Array(vec![port])),
    ]);
    let subsets = if addresses.is_empty() { Value::Array(Vec::new()) } else { Value::Array(vec![subset]) };
    let gvr = Gvr::new("", "v1", "endpoints");
    match lister.get("endpoints", "default", "kubernetes") {
        None => {
            let mut made = object("v1", "Endpoints", "default", "kubernetes", [("subsets", subsets)]);
            made.set(
                &["metadata", "labels"],
                Value::from([("endpointslice.kubernetes.io/skip-mirror", "true".into())]),
            );
            create(writer, &gvr, made).await
        }
        Some(old) if old["subsets"] != subsets => {
            let mut changed = (*old).clone();
            changed.set(&["subsets"], subsets);
            writer.update(&gvr, changed).await
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    struct MapWriter(Arc<MapLister>);

    #[async_trait::async_trait]
    impl ObjectWriter for MapWriter {
        async fn create(&self, gvr: &Gvr, object: Value) -> Result<(), Status> {
            self.0.put(&gvr.group_resource(), object);
            Ok(())
        }

        async fn update(&self, gvr: &Gvr, object: Value) -> Result<(), Status> {
            self.create(gvr, object).await
        }

        async fn delete(&self, _: &Gvr, _: &str, _: &str) -> Result<(), Status> {
            Ok(())
        }
    }

    #[test]
    fn the_first_address_of_a_network_is_not_that_of_the_network_itself() {
        let first = |cidr: &str| service_address(&cidr.parse().unwrap()).to_string();
        assert_eq!((first("10.96.0.0/16"), first("fd00:96::/112")), ("10.96.0.1".into(), "fd00:96::1".into()));
    }

    fn settings() -> Settings {
        Settings {
            advertise_address: [192, 0, 2, 1].into(),
            secure_port: 6443,
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            authentication: Value::from([("client-ca-file", "pem".into())]),
            served: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_new_cluster_has_its_first_objects() {
        let lister = Arc::new(MapLister::default());
        let writer = MapWriter(Arc::clone(&lister));
        once(&settings(), &writer, &*lister).await.unwrap();
        for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            assert!(lister.get("namespaces", "", namespace).is_some(), "{namespace}");
        }
        assert_eq!(lister.list("clusterroles.rbac.authorization.k8s.io", "").len(), 69);
        let service = lister.get("services", "default", "kubernetes").unwrap();
        assert_eq!(service.str_at(&["spec", "clusterIP"]), "10.96.0.1");
        assert!(lister.get("ipaddresses.networking.k8s.io", "", "10.96.0.1").is_some());
        assert!(!node_rules().is_empty());
    }

    #[tokio::test]
    async fn a_default_role_gets_back_what_it_lacks_unless_it_opted_out() {
        let lister = Arc::new(MapLister::default());
        let writer = MapWriter(Arc::clone(&lister));
        let roles = "clusterroles.rbac.authorization.k8s.io";
        let role = |annotation: &str| {
            serde_json::from_str(&format!(
                r#"{{"metadata":{{"name":"system:basic-user","annotations":{{"{AUTOUPDATE}":"{annotation}"}}}},"rules":[]}}"#
            ))
            .unwrap()
        };
        lister.put(roles, role("false"));
        once(&settings(), &writer, &*lister).await.unwrap();
        assert!(lister.get(roles, "", "system:basic-user").unwrap()["rules"].items().is_empty());
        lister.put(roles, role("true"));
        once(&settings(), &writer, &*lister).await.unwrap();
        assert!(!lister.get(roles, "", "system:basic-user").unwrap()["rules"].items().is_empty());
    }

    #[tokio::test]
    async fn servers_share_the_endpoints() {
        let lister = Arc::new(MapLister::default());
        let writer = MapWriter(Arc::clone(&lister));
        let other = Settings { advertise_address: [192, 0, 2, 2].into(), ..settings() };
        for s in [&settings(), &other] {
            own_service(s, &writer, &*lister).await.unwrap();
        }
        let count = || {
            lister.get("endpointslices.discovery.k8s.io", "default", "kubernetes").unwrap()["endpoints"].items().len()
        };
        assert_eq!(count(), 2);
        leave(&other, &writer, &*lister).await.unwrap();
        assert_eq!(count(), 1);
    }
}
