//! Drivers for dynamic resources that are registered on this node, the health of their devices, and their ResourceSlices,
//! which go when their driver does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::context::Context;
use crate::plugins::dra::v1::dra_plugin_client::DraPluginClient as V1;
use crate::plugins::dra::v1::{
    Claim, NodePrepareResourcesRequest, NodePrepareResourcesResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
};
use crate::plugins::dra::v1beta1::dra_plugin_client::DraPluginClient as V1Beta1;
use crate::plugins::dra_health::dra_resource_health_client::DraResourceHealthClient;
use crate::plugins::dra_health::{NodeWatchResourcesRequest, NodeWatchResourcesResponse};
use crate::plugins::registry::Plugin;

/// Upstream's limit for a call to a driver.
const CALL: Duration = Duration::from_secs(45);
/// So long a driver may be away before its ResourceSlices go.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// What is told of a device holds so long, where the driver does not say for how long.
const HEALTH_HOLDS: Duration = Duration::from_secs(30);
const HEALTH_SERVICE: &str = "v1alpha1.DRAResourceHealth";
const SERVICES: [&str; 2] = ["v1.DRAPlugin", "v1beta1.DRAPlugin"];

/// The interface that a driver speaks.
#[derive(Clone)]
enum Client {
    V1(V1<Channel>),
    V1Beta1(V1Beta1<Channel>),
}

#[derive(Clone)]
pub(super) struct Driver {
    endpoint: PathBuf,
    client: Client,
    /// Ends when the driver goes.
    gone: CancellationToken,
}

/// By pool and device.
type Health = BTreeMap<(String, String), (&'static str, Instant)>;

#[derive(Default)]
pub(crate) struct Drivers {
    /// Several at a time while one is replaced by the next; the last is asked.
    by_name: Mutex<BTreeMap<String, Vec<Driver>>>,
    health: Mutex<BTreeMap<String, Health>>,
    health_changed: Notify,
}

/// The service of a driver that is used, of those that it says it has.
fn service_of(offered: &[String]) -> Result<&'static str, String> {
    let chosen = offered.iter().find_map(|o| SERVICES.into_iter().find(|service| service == o));
    chosen.ok_or_else(|| {
        let shown = |names: &[String]| names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(" ");
        let ours = SERVICES.map(str::to_owned);
        format!(
            "none of services supported by the plugin ([{}]) are supported by the kubelet ([{}])",
            shown(offered),
            shown(&ours)
        )
    })
}

fn rpc(call: &str) -> impl Fn(tonic::Status) -> String {
    move |status| format!("{call}: rpc error: code = {:?} desc = {}", status.code(), status.message())
}

fn within<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL);
    request
}

impl Driver {
    pub(super) async fn prepare(&mut self, claims: Vec<Claim>) -> Result<NodePrepareResourcesResponse, String> {
        let request = within(NodePrepareResourcesRequest { claims });
        let answer = match &mut self.client {
            Client::V1(client) => client.node_prepare_resources(request).await,
            Client::V1Beta1(client) => client.node_prepare_resources(request).await,
        };
        Ok(answer.map_err(rpc("NodePrepareResources"))?.into_inner())
    }

    pub(super) async fn unprepare(&mut self, claims: Vec<Claim>) -> Result<NodeUnprepareResourcesResponse, String> {
        let request = within(NodeUnprepareResourcesRequest { claims });
        let answer = match &mut self.client {
            Client::V1(client) => client.node_unprepare_resources(request).await,
            Client::V1Beta1(client) => client.node_unprepare_resources(request).await,
        };
        Ok(answer.map_err(rpc("NodeUnprepareResources"))?.into_inner())
    }
}

impl Drivers {
    pub(super) fn get(&self, name: &str) -> Result<Driver, String> {
        let found = self.by_name.lock().get(name).and_then(|all| all.last().cloned());
        found.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    fn is_here(&self, name: &str) -> bool {
        self.by_name.lock().contains_key(name)
    }

    pub(super) fn add(&self, plugin: &Plugin, stop: &CancellationToken) -> Result<Driver, String> {
        let (name, endpoint) = (&plugin.name, plugin.endpoint.clone());
        let service = service_of(&plugin.versions).map_err(|why| {
            let at = endpoint.display();
            format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {at}: {why}")
        })?;
        let channel = crate::plugins::connect(&endpoint);
        let client = match service {
            "v1.DRAPlugin" => Client::V1(V1::new(channel)),
            _ => Client::V1Beta1(V1Beta1::new(channel)),
        };
        let driver = Driver { endpoint, client, gone: stop.child_token() };
        let mut all = self.by_name.lock();
        let known = all.entry(name.clone()).or_default();
        if known.iter().any(|other| other.endpoint == driver.endpoint) {
            let at = driver.endpoint.display();
            return Err(format!("endpoint {at} already registered for DRA driver plugin {name}"));
        }
        known.push(driver.clone());
        Ok(driver)
    }

    pub(super) fn remove(&self, plugin: &Plugin) {
        let mut all = self.by_name.lock();
        let Some(known) = all.get_mut(&plugin.name) else { return };
        for gone in known.extract_if(.., |driver| driver.endpoint == plugin.endpoint) {
            gone.gone.cancel();
        }
        if known.is_empty() {
            all.remove(&plugin.name);
        }
    }

    /// What is known of a device now.
    pub(super) fn health_of(&self, driver: &str, pool: &str, device: &str) -> &'static str {
        let all = self.health.lock();
        let known = all.get(driver).and_then(|devices| devices.get(&(pool.to_owned(), device.to_owned())));
        known.filter(|(_, until)| Instant::now() < *until).map_or("Unknown", |(health, _)| health)
    }

    /// Returns when the health of a device has changed.
    pub(crate) async fn health_changed(&self) {
        self.health_changed.notified().await;
    }

    fn learn(&self, driver: &str, told: NodeWatchResourcesResponse) {
        let one = |device: crate::plugins::dra_health::DeviceHealth| {
            let holds = u64::try_from(device.health_check_timeout_seconds).ok().filter(|seconds| *seconds > 0);
            let until = Instant::now() + holds.map_or(HEALTH_HOLDS, Duration::from_secs);
            let health = match device.health {
                1 => "Healthy",
                2 => "Unhealthy",
                _ => "Unknown",
            };
            let id = device.device.unwrap_or_default();
            ((id.pool_name, id.device_name), (health, until))
        };
        let fresh: Health = told.devices.into_iter().map(one).collect();
        let words = |health: &Health| health.iter().map(|(id, (word, _))| (id.clone(), *word)).collect::<Vec<_>>();
        let mut all = self.health.lock();
        let before = all.insert(driver.to_owned(), fresh).unwrap_or_default();
        if words(&before) != words(&all[driver]) {
            self.health_changed.notify_one();
        }
    }

    fn forget_health(&self, driver: &str) {
        if self.health.lock().remove(driver).is_some() {
            self.health_changed.notify_one();
        }
    }
}

/// Follows what a driver tells of its devices until it goes; one that does not tell for too long is not believed any more.
async fn follow_health(context: Arc<Context>, plugin: Plugin) {
    let drivers = &context.claims.drivers;
    loop {
        let mut client = DraResourceHealthClient::new(crate::plugins::connect(&plugin.endpoint));
        if let Ok(stream) = client.node_watch_resources(NodeWatchResourcesRequest {}).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(told)) = stream.message().await {
                drivers.learn(&plugin.name, told);
            }
        }
        drivers.forget_health(&plugin.name);
        tokio::time::sleep(RETRY).await;
    }
}

/// Takes a driver.
pub(crate) fn came(context: &Arc<Context>, plugin: &Plugin, stop: &CancellationToken) -> Result<(), String> {
    let driver = context.claims.drivers.add(plugin, stop)?;
    if plugin.versions.iter().any(|service| service == HEALTH_SERVICE) {
        let (context, plugin) = (Arc::clone(context), plugin.clone());
        tokio::spawn(async move {
            let following = follow_health(Arc::clone(&context), plugin.clone());
            if driver.gone.run_until_cancelled(following).await.is_none() {
                context.claims.drivers.forget_health(&plugin.name);
            }
        });
    }
    Ok(())
}

/// Lets a driver go. If none takes its place in time, nothing of it can be allocated on this node any more.
pub(crate) fn gone(context: &Arc<Context>, plugin: &Plugin, stop: &CancellationToken) {
    context.claims.drivers.remove(plugin);
    let (context, name, stop) = (Arc::clone(context), plugin.name.clone(), stop.clone());
    tokio::spawn(async move {
        let wipe = async {
            tokio::time::sleep(PATIENCE).await;
            if !context.claims.drivers.is_here(&name) {
                wipe_slices(&context, Some(&name)).await;
            }
        };
        stop.run_until_cancelled(wipe).await
    });
}

/// Removes this node's ResourceSlices, of all drivers or of one; drivers that are here publish theirs again.
pub(crate) async fn wipe_slices(context: &Context, driver: Option<&str>) {
    let Some(client) = &context.client else { return };
    let slices: Api<ResourceSlice> = Api::all(client.clone());
    let of_driver = driver.map(|name| format!(",spec.driver={name}")).unwrap_or_default();
    let selected = ListParams::default().fields(&format!("spec.nodeName={}{of_driver}", context.node_name));
    let mut pause = Duration::from_secs(1);
    loop {
        // A driver that has come back publishes again what is there now.
        if driver.is_some_and(|name| context.claims.drivers.is_here(name)) {
            return;
        }
        match slices.delete_collection(&DeleteParams::default(), &selected).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => return, // the API is not served
            Err(error) => tracing::debug!(%error, "the node's ResourceSlices could not be removed"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_service_that_both_know_is_used() {
        let check = |offered: &[&str], want: Result<&str, &str>| {
            let offered: Vec<String> = offered.iter().map(ToString::to_string).collect();
            assert_eq!(service_of(&offered).map_err(|e| e.to_string()), want.map_err(str::to_owned));
        };
        check(&["v1alpha1.DRAResourceHealth", "v1.DRAPlugin", "v1beta1.DRAPlugin"], Ok("v1.DRAPlugin"));
        check(&["v1beta1.DRAPlugin"], Ok("v1beta1.DRAPlugin"));
        let words = "none of services supported by the plugin ([\"v9.X\"]) are supported by the kubelet \
            ([\"v1.DRAPlugin\" \"v1beta1.DRAPlugin\"])";
        check(&["v9.X"], Err(words));
    }

    #[test]
    fn what_is_told_of_a_device_holds_for_a_while() {
        use crate::plugins::dra_health::{DeviceHealth, DeviceIdentifier};
        let drivers = Drivers::default();
        let tell = |health: i32| {
            let device = Some(DeviceIdentifier { pool_name: "p".into(), device_name: "d".into() });
            let told = DeviceHealth { device, health, ..DeviceHealth::default() };
            drivers.learn("x", NodeWatchResourcesResponse { devices: vec![told] });
        };
        assert_eq!(drivers.health_of("x", "p", "d"), "Unknown");
        tell(1);
        assert_eq!(drivers.health_of("x", "p", "d"), "Healthy");
        tell(2);
        assert_eq!(drivers.health_of("x", "p", "d"), "Unhealthy");
        drivers.health.lock().get_mut("x").unwrap().values_mut().for_each(|(_, until)| *until = Instant::now());
        assert_eq!(drivers.health_of("x", "p", "d"), "Unknown");
    }
}
