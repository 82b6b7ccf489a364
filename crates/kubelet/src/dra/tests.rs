//! Claims on a driver that keeps books, spoken to over its real interface, and an apiserver that has one claim.

use std::convert::Infallible;
use std::sync::Arc;

use http::Response;
use serde_json::json;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::*;
use crate::plugins::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use crate::plugins::dra::v1beta1::dra_plugin_server as v1beta1;
use crate::plugins::registry::Plugin;

const DRIVER: &str = "toys.example.com";

#[derive(Clone, Default)]
struct Toys {
    calls: Arc<Mutex<Vec<String>>>,
    refuses: Arc<Mutex<bool>>,
}

impl Toys {
    fn prepared(&self, claims: Vec<rpc::Claim>) -> rpc::NodePrepareResourcesResponse {
        let error = if *self.refuses.lock() { "no toys".to_owned() } else { String::new() };
        let one = |claim: rpc::Claim| {
            self.calls.lock().push(format!("prepare {}", claim.name));
            let device = rpc::Device {
                request_names: vec!["r".into()],
                pool_name: "n1".into(),
                device_name: "one".into(),
                cdi_device_ids: vec!["example.com/toy=one".into()],
                share_id: None,
            };
            (claim.uid, rpc::NodePrepareResourceResponse { devices: vec![device], error: error.clone() })
        };
        rpc::NodePrepareResourcesResponse { claims: claims.into_iter().map(one).collect() }
    }

    fn unprepared(&self, claims: Vec<rpc::Claim>) -> rpc::NodeUnprepareResourcesResponse {
        let one = |claim: rpc::Claim| {
            self.calls.lock().push(format!("unprepare {}", claim.name));
            (claim.uid, rpc::NodeUnprepareResourceResponse::default())
        };
        rpc::NodeUnprepareResourcesResponse { claims: claims.into_iter().map(one).collect() }
    }

    fn said(&self) -> String {
        std::mem::take(&mut *self.calls.lock()).join("; ")
    }
}

type Answer<T> = Result<tonic::Response<T>, Status>;

/// Both versions of the service have the same messages.
macro_rules! serves {
    ($service:path) => {
        #[tonic::async_trait]
        impl $service for Toys {
            async fn node_prepare_resources(
                &self,
                request: Request<rpc::NodePrepareResourcesRequest>,
            ) -> Answer<rpc::NodePrepareResourcesResponse> {
                Ok(tonic::Response::new(self.prepared(request.into_inner().claims)))
            }

            async fn node_unprepare_resources(
                &self,
                request: Request<rpc::NodeUnprepareResourcesRequest>,
            ) -> Answer<rpc::NodeUnprepareResourcesResponse> {
                Ok(tonic::Response::new(self.unprepared(request.into_inner().claims)))
            }
        }
    };
}

serves!(DraPlugin);
serves!(v1beta1::DraPlugin);

/// A claim that is allocated and reserved for the pods `a` and `b`.
async fn claim(_: http::Request<kube::client::Body>) -> Result<Response<String>, Infallible> {
    let user = |uid: &str| json!({ "resource": "pods", "name": uid, "uid": uid });
    let result = json!({ "driver": DRIVER, "pool": "n1", "device": "one", "request": "r" });
    let claim = json!({ "metadata": { "name": "shared", "namespace": "ns", "uid": "c1" }, "spec": {},
        "status": { "reservedFor": [user("a"), user("b")], "allocation": { "devices": { "results": [result] } } } });
    Ok(Response::new(claim.to_string()))
}

struct Machine {
    dir: tempfile::TempDir,
    context: Arc<Context>,
    toys: Toys,
    stop: CancellationToken,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let toys = Toys::default();
        let listener = UnixListener::bind(dir.path().join("dra.sock")).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(DraPluginServer::new(toys.clone()))
            .add_service(v1beta1::DraPluginServer::new(toys.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let context = Self::kubelet(&dir);
        Machine { dir, context, toys, stop: CancellationToken::new() }
    }

    fn kubelet(dir: &tempfile::TempDir) -> Arc<Context> {
        let client = kube::Client::new(tower::service_fn(claim), "default");
        Arc::new(Context { client: Some(client), ..Context::alone(dir.path()) })
    }

    fn register(&self, version: &str) {
        let plugin = self.plugin(version);
        drivers::came(&self.context, &plugin, &self.stop).unwrap();
    }

    fn plugin(&self, version: &str) -> Plugin {
        let endpoint = self.dir.path().join("dra.sock");
        Plugin {
            kind: "DRAPlugin".into(),
            name: DRIVER.into(),
            versions: vec![version.into()],
            endpoint: endpoint.clone(),
            found_at: endpoint,
        }
    }

    async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        self.context.claims.prepare(&self.context, pod).await
    }
}

fn pod(uid: &str) -> Pod {
    let used = |request: &str| json!({ "claims": [{ "name": "toy", "request": request }] });
    let containers = json!([{ "name": "all", "resources": used("") }, { "name": "one", "resources": used("r") },
        { "name": "other", "resources": used("x") }, { "name": "none" }]);
    let spec =
        json!({ "containers": containers, "resourceClaims": [{ "name": "toy", "resourceClaimName": "shared" }] });
    serde_json::from_value(json!({ "metadata": { "name": uid, "namespace": "ns", "uid": uid }, "spec": spec })).unwrap()
}

#[tokio::test]
async fn a_claim_is_prepared_once_and_given_back_with_its_last_pod() {
    for version in ["v1.DRAPlugin", "v1beta1.DRAPlugin"] {
        let machine = Machine::new();
        let missing = format!("DRA driver {DRIVER} is not registered");
        assert_eq!(machine.prepare(&pod("a")).await, Err(missing));
        assert!(machine.context.claims.pods().is_empty(), "nothing is noted without the driver");
        machine.register(version);
        let foreign = machine.prepare(&pod("c")).await.unwrap_err();
        assert_eq!(foreign, "pod c (c) is not allowed to use ResourceClaim shared (c1)");
        for uid in ["a", "a", "b"] {
            machine.prepare(&pod(uid)).await.unwrap();
        }
        assert_eq!(machine.toys.said(), "prepare shared");
        machine.context.claims.unprepare("a").await.unwrap();
        assert_eq!(machine.toys.said(), "");
        machine.context.claims.unprepare("b").await.unwrap();
        assert_eq!(machine.toys.said(), "unprepare shared");
        assert!(machine.context.claims.pods().is_empty());
    }
}

#[tokio::test]
async fn containers_get_the_devices_of_their_requests() {
    let machine = Machine::new();
    machine.register("v1.DRAPlugin");
    let pod = pod("a");
    machine.prepare(&pod).await.unwrap();
    let devices = |container: &Container| machine.context.claims.cdi_devices(&pod, container).unwrap();
    let all: Vec<Vec<String>> = pod.spec.as_ref().unwrap().containers.iter().map(devices).collect();
    let one = || vec!["example.com/toy=one".to_owned()];
    assert_eq!(all, [one(), one(), vec![], vec![]]);
    let health = |index: usize| machine.context.claims.health(&pod, &pod.spec.as_ref().unwrap().containers[index]);
    let shown = |status: &ResourceStatus| {
        let device = &status.resources.as_ref().unwrap()[0];
        format!("{} {} {}", status.name, device.resource_id, device.health.as_deref().unwrap())
    };
    assert_eq!(shown(&health(0)[0]), "claim:toy example.com/toy=one Unknown");
    assert_eq!(shown(&health(1)[0]), "claim:toy/r example.com/toy=one Unknown");
    assert!(health(2).is_empty());
}

#[tokio::test]
async fn the_next_kubelet_gives_back_what_the_first_has_prepared() {
    let mut machine = Machine::new();
    machine.register("v1.DRAPlugin");
    *machine.toys.refuses.lock() = true;
    let refused = machine.prepare(&pod("a")).await.unwrap_err();
    assert_eq!(refused, "NodePrepareResources failed for ResourceClaim shared: no toys");
    machine.toys.said();
    machine.context = Machine::kubelet(&machine.dir);
    machine.register("v1.DRAPlugin");
    assert_eq!(machine.context.claims.pods(), ["a".to_owned()].into());
    machine.context.claims.unprepare("a").await.unwrap();
    assert_eq!(machine.toys.said(), "unprepare shared");
}

#[tokio::test]
async fn a_driver_that_is_replaced_is_there_all_the_time() {
    let machine = Machine::new();
    machine.register("v1.DRAPlugin");
    let twice = drivers::came(&machine.context, &machine.plugin("v1.DRAPlugin"), &machine.stop).unwrap_err();
    assert!(twice.contains("already registered"), "{twice}");
    let next = machine.dir.path().join("next.sock");
    let next = Plugin { endpoint: next.clone(), found_at: next, ..machine.plugin("v1.DRAPlugin") };
    drivers::came(&machine.context, &next, &machine.stop).unwrap();
    drivers::gone(&machine.context, &next, &machine.stop);
    machine.prepare(&pod("a")).await.unwrap();
    drivers::gone(&machine.context, &machine.plugin("v1.DRAPlugin"), &machine.stop);
    assert!(machine.context.claims.unprepare("a").await.is_err());
}
