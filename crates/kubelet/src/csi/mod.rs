//! Storage drivers of this node (CSI): who they are, what the API knows of them, and their volumes.
//!
//! Nothing is remembered of volumes but what lies beside their mounts, under upstream's names, so that a restarted kubelet,
//! or another one, can take them down. It is written before anything is asked for, and goes after everything is undone.

mod request;
mod turns;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::error::{ApiError, ignore_not_found};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tonic::transport::Channel;

use crate::context::Context;
use crate::plugins::csi::node_client::NodeClient;
use crate::plugins::csi::node_service_capability::{Type, rpc};
use crate::plugins::csi::{NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse};
use crate::plugins::registry::Plugin;
use turns::Turns;
pub(crate) use volume::{Failure, devices_in_use, set_up, set_up_inline, tear_down};

/// Upstream's limit for a call to a driver.
const CALL: Duration = Duration::from_secs(120);
/// By driver: the node's name there, as JSON.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// The drivers that are registered, and the pods whose volumes are looked at again and again.
#[derive(Default)]
pub(crate) struct Drivers {
    by_name: Mutex<BTreeMap<String, Driver>>,
    /// Uids of pods with a volume whose driver asks for `requiresRepublish`, or that may grow.
    looked_after: Mutex<BTreeSet<String>>,
    turns: Turns,
}

#[derive(Clone)]
struct Driver {
    client: NodeClient<Channel>,
    /// What its node service can do besides publishing.
    can: Vec<rpc::Type>,
}

impl Drivers {
    fn get(&self, name: &str) -> Result<Driver, Failure> {
        let missing = || Failure(format!("driver name {name} not found in the list of registered CSI drivers"));
        self.by_name.lock().get(name).cloned().ok_or_else(missing)
    }

    fn look_again(&self, pod: &Pod) {
        self.looked_after.lock().insert(pod.metadata.uid.clone().unwrap_or_default());
    }

    /// Whether the volumes of this pod are to be set up again from time to time.
    pub(crate) fn looks_again(&self, pod_uid: &str) -> bool {
        self.looked_after.lock().contains(pod_uid)
    }

    /// Takes a driver, and tells the API that it is on this node.
    pub(crate) async fn came(&self, context: &Context, plugin: &Plugin) -> Result<(), String> {
        if !plugin.versions.iter().any(|v| v == "1" || v.starts_with("1.") || v.starts_with("v1")) {
            return Err(format!("none of the versions {:?} is supported", plugin.versions));
        }
        let mut client = NodeClient::new(crate::plugins::connect(&plugin.endpoint));
        let said = |e: tonic::Status| e.message().to_owned();
        let info = tokio::time::timeout(CALL, client.node_get_info(NodeGetInfoRequest {})).await;
        let info = info.map_err(|e| e.to_string())?.map_err(said)?.into_inner();
        let can = tokio::time::timeout(CALL, client.node_get_capabilities(NodeGetCapabilitiesRequest {})).await;
        let can = can.map_err(|e| e.to_string())?.map_err(said)?.into_inner().capabilities;
        let can = can.into_iter().filter_map(|c| c.r#type).map(|Type::Rpc(rpc)| rpc.r#type()).collect();
        tell(context, &plugin.name, Some(&info)).await.map_err(|e| format!("cannot write CSINode: {e}"))?;
        self.by_name.lock().insert(plugin.name.clone(), Driver { client, can });
        Ok(())
    }

    pub(crate) async fn gone(&self, context: &Context, plugin: &Plugin) {
        self.by_name.lock().remove(&plugin.name);
        if let Err(error) = tell(context, &plugin.name, None).await {
            tracing::warn!(driver = plugin.name, %error, "the driver could not be taken from CSINode");
        }
    }
}

/// Writes or removes a driver in this node's CSINode, its id in the Node's annotation, and its topology in the labels.
async fn tell(context: &Context, driver: &str, info: Option<&NodeGetInfoResponse>) -> Result<(), kube::Error> {
    let Some(client) = &context.client else { return Ok(()) };
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get(&context.node_name).await?;
    let csi_nodes: Api<CSINode> = Api::all(client.clone());
    // Others may write at the same time: what was read is what is replaced, or it is read again.
    let mut tries = 0;
    loop {
        let known = ignore_not_found(csi_nodes.get(&context.node_name).await)?;
        let is_new = known.is_none();
        let mut csi_node = known.unwrap_or_else(|| new_csi_node(&context.node_name, &node));
        let drivers = with_driver(std::mem::take(&mut csi_node.spec.drivers), driver, info);
        csi_node.spec.drivers = drivers;
        let written = if is_new {
            csi_nodes.create(&PostParams::default(), &csi_node).await
        } else {
            csi_nodes.replace(&context.node_name, &PostParams::default(), &csi_node).await
        };
        match written {
            Ok(_) => break,
            Err(error) if tries < 5 && (error.is_conflict() || error.is_already_exists()) => tries += 1,
            Err(error) => return Err(error),
        }
    }
    let annotations = node.metadata.annotations.unwrap_or_default();
    let ids = ids_with(annotations.get(NODE_IDS).map(String::as_str), driver, info.map(|i| i.node_id.as_str()));
    let labels = info.and_then(|i| i.accessible_topology.clone()).map(|t| t.segments).unwrap_or_default();
    let patch = json!({ "metadata": { "annotations": { NODE_IDS: ids }, "labels": labels } });
    nodes.patch(&context.node_name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

fn new_csi_node(name: &str, node: &Node) -> CSINode {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
    CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } }
}

fn with_driver(mut all: Vec<CSINodeDriver>, name: &str, info: Option<&NodeGetInfoResponse>) -> Vec<CSINodeDriver> {
    all.retain(|driver| driver.name != name);
    all.extend(info.map(|info| {
        CSINodeDriver {
            name: name.to_owned(),
            node_id: info.node_id.clone(),
            topology_keys: info.accessible_topology.as_ref().map(|t| t.segments.keys().cloned().collect()),
            allocatable: (info.max_volumes_per_node > 0)
                .then(|| VolumeNodeResources { count: i32::try_from(info.max_volumes_per_node).ok() }),
        }
    }));
    all
}

/// The annotation with this driver's id, or without the driver; nothing when none is left.
fn ids_with(now: Option<&str>, driver: &str, id: Option<&str>) -> Option<String> {
    let mut ids: BTreeMap<String, String> = now.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    match id {
        Some(id) => drop(ids.insert(driver.to_owned(), id.to_owned())),
        None => drop(ids.remove(driver)),
    }
    (!ids.is_empty()).then(|| json!(ids).to_string())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Method, Response};

    use super::*;

    /// An apiserver with a node, where somebody else is always faster to write the CSINode.
    async fn contended(request: http::Request<kube::client::Body>) -> Result<Response<String>, Infallible> {
        let answer = |code: u16, body: serde_json::Value| {
            Ok(Response::builder().status(code).body(body.to_string()).unwrap_or_default())
        };
        let failed = |code: u16, reason: &str| {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
                "message": "", "code": code });
            answer(code, status)
        };
        match (request.method(), request.uri().path()) {
            (&Method::POST, _) => failed(409, "AlreadyExists"),
            (_, path) if path.contains("/csinodes/") => failed(404, "NotFound"),
            _ => answer(200, json!({ "metadata": { "name": "n1" } })),
        }
    }

    #[tokio::test]
    async fn a_driver_that_cannot_be_written_down_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let client = kube::Client::new(tower::service_fn(contended), "default");
        let context = Context { client: Some(client), ..Context::alone(dir.path()) };
        let told = tell(&context, "a.example", Some(&NodeGetInfoResponse::default())).await;
        assert!(told.is_err_and(|error| error.is_already_exists()));
    }

    #[test]
    fn drivers_come_and_go_beside_each_other() {
        let info = NodeGetInfoResponse { node_id: "n-1".into(), max_volumes_per_node: 3, accessible_topology: None };
        let one = with_driver(Vec::new(), "a.example", Some(&info));
        assert_eq!(one[0].allocatable.as_ref().and_then(|a| a.count), Some(3));
        let two = with_driver(one, "b.example", Some(&info));
        let names: Vec<String> = with_driver(two, "a.example", None).into_iter().map(|d| d.name).collect();
        assert_eq!(names, ["b.example"]);
        assert_eq!(ids_with(None, "a", Some("1")).as_deref(), Some(r#"{"a":"1"}"#));
        assert_eq!(ids_with(Some(r#"{"a":"1","b":"2"}"#), "a", None).as_deref(), Some(r#"{"b":"2"}"#));
        assert_eq!(ids_with(Some(r#"{"a":"1"}"#), "a", None), None);
    }
}
